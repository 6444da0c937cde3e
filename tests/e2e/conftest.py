"""Sites of real processes: shops, and sites whose workers are to die; whatever they start has ended when the test does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import DoomedSite, Shop, broker_of, site

SHORT_LEASES: dict[str, object] = {"lease_s": 3.0, "lease_beat_s": 1.0, "forgotten_s": 0.3}


@pytest.fixture
def shop(valkey: Any, sqlite_url: str, tmp_path: Path) -> Iterator[Shop]:
    """SQLite and the embedded broker."""
    with site(Shop, tmp_path, sqlite_url, broker_of(valkey)) as opened:
        yield opened


@pytest.fixture(params=["sqlite-valkey", "postgresql-rabbitmq"])
def any_shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """Each database once, and each broker once."""
    database, broker = request.param.split("-")
    url = request.getfixturevalue("sqlite_url" if database == "sqlite" else "postgres_url")
    server = request.getfixturevalue(broker)
    with site(Shop, tmp_path, url, broker_of(server) if broker == "valkey" else server.url) as opened:
        yield opened


@pytest.fixture
def doomed_site(valkey: Any, sqlite_url: str, tmp_path: Path) -> Iterator[DoomedSite]:
    """SQLite and the embedded broker."""
    with site(DoomedSite, tmp_path, sqlite_url, broker_of(valkey), **SHORT_LEASES) as opened:
        yield opened


@pytest.fixture
def chaos_site(database_url: str, valkey: Any, tmp_path: Path) -> Iterator[DoomedSite]:
    """Each database and the embedded broker."""
    with site(DoomedSite, tmp_path, database_url, broker_of(valkey), **SHORT_LEASES) as opened:
        yield opened
