"""Agents without a worker around them: threads, a loop, a store; law: real ones, only time is a twin."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from orchestrator.agent import Agent
from orchestrator.clock import SYSTEM
from orchestrator.store import Store
from schemas.agents import AgentSpec, Work
from schemas.settings import Settings
from workers.coroutines import CoroutineLoop
from workers.hosted import Hosted, Surroundings
from workers.packages.echo import Echo
from workers.threads import Threads


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    opened = Store.open(sqlite_url)
    yield opened
    opened.dispose()


@pytest.fixture
def around(store: Store) -> Iterator[Surroundings]:
    threads, loop = Threads(50, name="bodies"), CoroutineLoop(50, name="bodies-loop")
    loop.start()
    yield Surroundings(store, threads, loop)
    threads.close()
    loop.stop()


@pytest.fixture
def hosted(around: Surroundings) -> Callable[..., Hosted]:
    """Host an agent of a class."""

    def host(kind: type[Agent] = Echo, agent_id: str = "", settings: Settings | None = None, **fields) -> Hosted:
        spec = AgentSpec(id=agent_id or kind.type, type=kind.type, **fields)
        return Hosted(kind(spec, settings), around)

    return host


@pytest.fixture
def work() -> Callable[..., Work]:
    """A work that somebody asked for."""

    def asked(agent_type: str = "echo", **fields) -> Work:
        ids = {"request_id": SYSTEM.fresh_id(), "trace_id": SYSTEM.fresh_id()}
        return Work(agent_type=agent_type, **{**ids, **fields})

    return asked
