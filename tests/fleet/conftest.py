"""A fleet on each database whose bell only remembers, and what its supervisors were told; law: no worker, no broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.fleet import Fleet
from orchestrator.reports import Told, supervision_id
from orchestrator.store import Store, documents, runs
from schemas.agents import AgentSpec
from schemas.history import SignalReceived
from schemas.runs import PendingActivity
from schemas.settings import Settings

NODE = "a-1@here"


class Bell:
    """A broker that remembers what it was asked to ring."""

    def __init__(self) -> None:
        self.rung: list[str] = []

    def ring(self, queue: str, *, delay_s: float = 0.0) -> None:
        self.rung.append(queue)

    def send(self, activity: PendingActivity) -> None:
        raise AssertionError("a fleet sends no tasks")


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store.open(database_url)
    opened.upgrade()
    yield opened
    opened.dispose()


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def settings(database_url: str) -> Settings:
    return Settings(database_url=database_url, broker_url="memory://", remote_control_s=0.2)


@pytest.fixture
def fleet(settings: Settings, store: Store, bell: Bell) -> Iterator[Fleet]:
    with Fleet(settings, store=store, bell=bell) as fleet:
        yield fleet


@pytest.fixture
def told(fleet: Fleet, store: Store):
    """What the supervisor of an agent was told and has not read yet."""

    def look(agent_id: str) -> list[Told]:
        with store.transaction(readonly=True) as tx:
            found = runs.resolve(tx, supervision_id(agent_id))
            if found is None:
                return []
            events = [event for (event,) in tx.run("SELECT event FROM inbox WHERE run_id = :run_id ORDER BY id", run_id=found[0])]
        converter = fleet.converter
        signals = [documents.arrival(event) for event in events]
        return [
            converter.decode(signal.args[0], Told, what="news")  # type: ignore[misc] # decode says object
            for signal in signals
            if isinstance(signal, SignalReceived)
        ]

    return look


@pytest.fixture
def spec() -> AgentSpec:
    return AgentSpec(id="a-1", type="echo")


@pytest.fixture
def running(fleet: Fleet, spec: AgentSpec):
    """An agent that has said that it is there."""
    return fleet.ready(spec, node=NODE, pid=4711, pid_started_at=1.0, capabilities={"echo": "1.0"})
