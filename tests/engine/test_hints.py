"""PostgreSQL tells a worker of work; the worker has no broker here that would."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator import activity, connection, workflow
from tests.engine.conftest import House
from workers import ear

FAR_S = 600.0  # the next poll
LISTENING = "datname = current_database() AND query LIKE 'LISTEN%orchestrator_%' AND query NOT LIKE '%orchestrator_closed%'"


class MuteHouse(House):
    """No bell reaches anybody."""

    def ring(self, _queue: str, *, delay_s: float = 0.0) -> None:
        """Ring in vain."""


@pytest.fixture
def mute(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(connection, "HINT_PAUSE", 0.0)  # else the broker is to tell of every second thing
    monkeypatch.setattr(ear, "DEAF_MAX_S", 0.05)
    opened = MuteHouse(postgres_url)
    yield opened
    opened.close()


def listeners(house: House) -> set[int]:
    with house.store.transaction(readonly=True) as tx:
        return {pid for (pid,) in tx.run(f"SELECT pid FROM pg_stat_activity WHERE {LISTENING}")}


@activity.defn
def hinted_double(number: int) -> int:
    return 2 * number


@workflow.defn
class HintedSum:
    def __init__(self) -> None:
        self.numbers: list[int] = []

    @workflow.run
    async def run(self, wanted: int) -> int:
        await workflow.wait_condition(lambda: len(self.numbers) >= wanted)
        return sum([await workflow.execute_activity(hinted_double, number) for number in self.numbers])

    @workflow.signal
    def add(self, number: int) -> None:
        self.numbers.append(number)

    @workflow.query
    def count(self) -> int:
        return len(self.numbers)


def test_starts_signals_and_queries_wake_a_worker_that_no_message_reaches(mute):
    mute.worker(poll_s=FAR_S)
    mute.until(lambda: listeners(mute))
    handle = mute.client.start_workflow(HintedSum, 2)
    handle.signal("add", 3)
    assert handle.query("count", timeout=20) == 1
    handle.signal("add", 4)
    assert handle.result(timeout=20) == 14


def test_a_worker_without_hints_does_not_listen(mute):
    mute.worker(hints=False)
    assert mute.client.start_workflow(HintedSum, 0).result(timeout=20) == 0, "the poll finds it"
    assert not listeners(mute)


def test_an_ear_that_was_cut_off_listens_again(mute):
    mute.worker(poll_s=FAR_S)
    mute.until(lambda: listeners(mute))
    with mute.store.transaction(readonly=True) as tx:
        cut = tx.run(f"SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity WHERE {LISTENING}")
    mute.until(lambda: listeners(mute) and listeners(mute) != {pid for pid, _ in cut})
    assert mute.client.start_workflow(HintedSum, 0).result(timeout=20) == 0


def test_a_worker_that_stops_takes_its_ear_along(mute):
    host = mute.worker(poll_s=FAR_S)
    mute.until(lambda: listeners(mute))
    host.stop(drain_s=0.0)
    mute.until(lambda: not listeners(mute))
