"""The application in this process, on both databases, with a broker that is not there; law: a client is a client, everything goes over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from orchestrator import keys
from orchestrator.api import create_app
from orchestrator.clock import SYSTEM
from orchestrator.settings import load
from orchestrator.store import Store, audit, tokens
from schemas.access import AuditFilter, Role
from schemas.agents import AuditEntry

DEAD_BROKER = "redis://127.0.0.1:1/0"
SECRET = "a secret of more than thirty-two bytes"
LOCAL = ("127.0.0.1", 50000)


class Silent:
    """A bell that nobody hears."""

    def ring(self, queue: str, *, delay_s: float = 0.0) -> None: ...

    def send(self, activity: object) -> None: ...


class Api:
    """An application and what it wrote."""

    def __init__(
        self, url: str, store: Store, *, peer: tuple[str, int] = LOCAL, headers: dict[str, str] | None = None, **settings: Any
    ) -> None:
        self.store = store
        self.settings = load({}, **{"database_url": url, "broker_url": DEAD_BROKER, **settings})
        self.app = create_app(self.settings, store=store, bell=Silent())
        self.http = TestClient(self.app, base_url="http://localhost:8000", client=peer, headers=headers, raise_server_exceptions=False)

    def audit(self, **wanted: Any) -> list[AuditEntry]:
        with self.store.transaction(readonly=True) as tx:
            return audit.entries(tx, AuditFilter(**wanted))

    def token(self, role: Role, name: str = "somebody", ttl_s: float | None = None) -> dict[str, str]:
        """The header of a new API token."""
        key = keys.fresh()
        with self.store.transaction() as tx:
            tokens.add(tx, id=SYSTEM.fresh_id(), name=name, role=role, hash=keys.hashed(key), ttl_s=ttl_s)
        return bearer(key)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store.open(database_url)
    opened.upgrade()
    yield opened
    opened.dispose()


@pytest.fixture
def open_api(database_url: str, store: Store) -> Iterator[Callable[..., Api]]:
    opened: list[Api] = []

    def make(**options: Any) -> Api:
        api = Api(database_url, store, **options)
        api.http.__enter__()
        opened.append(api)
        return api

    yield make
    for api in opened:
        api.http.__exit__(None, None, None)


@pytest.fixture
def api(open_api: Callable[..., Api]) -> Api:
    """Open to this machine, as in development."""
    return open_api()


@pytest.fixture
def guarded_api(open_api: Callable[..., Api]) -> Api:
    """One that asks for keys."""
    return open_api(auth_mode="token", manager_token="new-token,old-token", jwt_secret=SECRET, peer=("192.0.2.7", 50000))
