"""A whole engine without a broker: real store, real host, real client, in this process; law: every test runs on both databases.

`house` makes workers. Rings go straight to them, and `house.tick()` does what beat would.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from celery import Celery

from beat.ticks import CHORES
from orchestrator.celery import Orchestrator
from orchestrator.client import Client
from orchestrator.clock import SYSTEM
from orchestrator.core.definitions import ACTIVITIES, WORKFLOWS
from orchestrator.settings import load
from orchestrator.store import Store
from schemas.runs import PendingActivity
from schemas.settings import Settings
from workers.coroutines import CoroutineLoop
from workers.host import Host
from workers.threads import Threads

WAIT_MAX_S = 15.0


class House:
    """Workers, a client and a bell that reaches them."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.settings = load({}, database_url=url, broker_url="memory://", poll_s=0.2, heartbeat_flush_s=0.02, neighbours_s=0.2)
        self.store = Store.open(url)
        self.store.upgrade()
        self.client = Client(url, "memory://", store=self.store, bell=self)
        self.hosts: list[Host] = []
        self.sent: list[PendingActivity] = []

    def ring(self, _queue: str, *, delay_s: float = 0.0) -> None:
        for host in self.hosts:
            host.ring()

    def send(self, activity: PendingActivity) -> None:
        self.sent.append(activity)

    def flush(self) -> None:
        """Nothing is on its way here."""

    def worker(self, *queues: str, node: str = "", threads: int = 4, **settings: object) -> Host:
        chosen: Settings = self.settings.model_copy(update=settings)
        orchestrator = Orchestrator(Celery("engine", broker="memory://", set_as_current=False), settings=chosen)
        orchestrator.__dict__["broker"] = self
        loop = CoroutineLoop(100, name="engine-loop")
        loop.start()
        names: Sequence[str] = queues or ("default",)
        host = Host(
            orchestrator,
            node=node or f"worker-{len(self.hosts)}",
            queues=lambda: names,
            threads=Threads(threads, name="engine"),
            loop=loop,
        )
        self.hosts.append(host)
        host.start()
        return host

    def run(self, workflow: Any, *args: object) -> Any:
        """Start a workflow and wait for its result."""
        return self.client.start_workflow(workflow, args=list(args)).result(timeout=WAIT_MAX_S)

    def tick(self) -> None:
        for chore in CHORES:
            chore.do(self.store, self, self.settings)

    def until(self, happened: Callable[[], object]) -> None:
        """Tick until something has happened."""
        deadline = SYSTEM.monotonic() + WAIT_MAX_S
        while not happened():
            assert SYSTEM.monotonic() < deadline, "it did not happen in time"
            self.tick()

    def close(self) -> None:
        for host in self.hosts:
            host.stop(drain_s=0.0)
        self.client.close()
        self.store.dispose()


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    workflows, activities = dict(WORKFLOWS), dict(ACTIVITIES)
    opened = House(database_url)
    yield opened
    opened.close()
    for registry, before in ((WORKFLOWS, workflows), (ACTIVITIES, activities)):
        registry.clear()
        registry.update(before)  # type: ignore[arg-type] # each with its own


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("orchestrator")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)
