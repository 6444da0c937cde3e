"""Beats in this process, on a clock that tests move; the store's clock is the same one on SQLite."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from celery import Celery
from celery.schedules import schedule

from beat.scheduler import StoreScheduler
from orchestrator.celery import Orchestrator
from orchestrator.clock import SYSTEM, utc
from orchestrator.settings import load
from orchestrator.store import Store
from schemas.runs import PendingActivity
from schemas.settings import Settings
from tests.store.conftest import Desk

numbers = itertools.count(1)


class MovableClock:
    def __init__(self) -> None:
        self.wall = SYSTEM.now()
        self.steady = 100.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.steady

    def sleep(self, seconds: float) -> None:
        """The broker's thread would spin."""
        SYSTEM.sleep(seconds)

    def random(self) -> float:
        return 0.5

    def fresh_id(self) -> str:
        return SYSTEM.fresh_id()

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.steady += seconds


class Bells:
    """A broker that writes down what it was asked for."""

    def __init__(self) -> None:
        self.rung: list[str] = []
        self.sent: list[PendingActivity] = []

    def ring(self, queue: str, *, delay_s: float = 0.0) -> None:
        self.rung.append(queue)

    def send(self, activity: PendingActivity) -> None:
        self.sent.append(activity)


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store.open(database_url)
    opened.upgrade()
    yield opened
    opened.dispose()


@pytest.fixture
def desk(store: Store) -> Desk:
    return Desk(store)


@pytest.fixture
def bells() -> Bells:
    return Bells()


@pytest.fixture
def settings(tmp_path) -> Settings:
    return load({}, home=tmp_path)


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture
def queue() -> str:
    """Where the entries of the beats of this test send to."""
    return f"tocks-{next(numbers)}-{SYSTEM.fresh_id()}"


MakeBeat = Callable[..., StoreScheduler]


@pytest.fixture
def make_beat(sqlite_url: str, clock: MovableClock, queue: str) -> Iterator[MakeBeat]:
    """Another beat on the same database; its schedule is "tock" every 10 seconds."""
    first = Store.open(sqlite_url, clock=clock)
    first.upgrade()
    first.dispose()
    made: list[StoreScheduler] = []

    def make(*, database: str = sqlite_url, broker: str = "memory://", **entries) -> StoreScheduler:
        app = Celery("shop", broker=broker, set_as_current=False)
        Orchestrator(app, settings=load({}, database_url=database), clock=clock)
        app.conf.result_expires = None  # its nightly entry lives on the real clock
        app.conf.beat_schedule = entries or {"tock": every(10, clock, queue)}
        beat = StoreScheduler(app)
        made.append(beat)
        return beat

    yield make
    for beat in made:
        beat.close()
        beat._ours.store.dispose()
        beat.app.close()


def every(seconds: float, clock: MovableClock, queue: str, **more) -> dict[str, object]:
    """An entry of `beat_schedule` on the test's clock."""
    return {"task": "tock", "schedule": schedule(seconds, nowfun=lambda: utc(clock.now())), "options": {"queue": queue}, **more}


def messages(beat: StoreScheduler, queue: str) -> int:
    """How many messages wait in a queue, whoever sent them."""
    with beat.app.connection_for_read() as connection, connection.SimpleQueue(queue) as waiting:
        return int(waiting.qsize())
