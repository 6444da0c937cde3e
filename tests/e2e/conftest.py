"""A site of real worker and beat processes whose tables are held against the laws when it closes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.store import Store
from tests.e2e import doomed
from tests.e2e.processes import Site, Worker, broker_of, site
from tests.laws import check_laws

CLOCKS_S = 0.02  # how far a worker's idea of the database's clock may be off

Doom = Callable[..., Worker]


class DoomedSite:
    """Workers of `tests.e2e.doomed`, some of which die at a crash point."""

    def __init__(self, opened: Site) -> None:
        self.site = opened

    def worker(self, doom: str = "", **options: Any) -> Worker:
        """A worker process that exits at the crash point `doom`; without one it is well."""
        self.site.environment["DOOM"] = doom
        options.setdefault("wait", not doom)
        return self.site.worker(include="tests.e2e.doomed", **options)

    def start(self, count: int, steps: int = 3) -> list[Any]:
        return [self.site.client.start_workflow(doomed.everything, steps, id=f"w-{number}") for number in range(count)]

    def counted(self, kind: str) -> list[tuple[str, ...]]:
        """What activities wrote down, without their attempt."""
        return [tuple(line.split()[:3]) for line in self.site.notes(kind)]

    def judge(self) -> None:
        check_laws(self.site.store, early_s=CLOCKS_S)
        once = self.counted("once")
        assert len(set(once)) == len(once), f"an activity that may run once ran twice: {once}"


@pytest.fixture
def doomed_site(valkey: Any, tmp_path: Path) -> Iterator[DoomedSite]:
    """SQLite and the embedded broker; all laws hold at the end."""
    with site(tmp_path, f"sqlite:///{tmp_path / 'test.db'}", broker_of(valkey), lease_s=3.0, lease_beat_s=1.0, forgotten_s=0.3) as opened:
        yield DoomedSite(opened)


@pytest.fixture
def chaos_site(database_url: str, valkey: Any, tmp_path: Path) -> Iterator[DoomedSite]:
    """Each database and the embedded broker."""
    with site(tmp_path, database_url, broker_of(valkey), lease_s=3.0, lease_beat_s=1.0, forgotten_s=0.3) as opened:
        yield DoomedSite(opened)


def laws_of(url: str) -> None:
    """Hold the laws against any database."""
    store = Store.open(url)
    try:
        check_laws(store, early_s=CLOCKS_S)
    finally:
        store.dispose()
