"""Rings through Celery: what may wait is one message with whatever else is rung for the queue, and nothing stays behind."""

from __future__ import annotations

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.dispatch import CeleryBroker, celery_for
from orchestrator.settings import load
from tests.beat.conftest import MovableClock

LONG_S = 600.0


@pytest.fixture
def app():
    made = celery_for(load({}, broker_url="memory://", database_url="sqlite://"))
    yield made
    made.close()


@pytest.fixture
def broker(app):
    made = CeleryBroker(app, window_s=0.0)
    yield made
    made.flush()


def messages(app, queue):
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as waiting:
        return waiting.qsize()


def test_what_may_wait_goes_with_the_next_ring(app, broker):
    broker.ring("together", delay_s=LONG_S)
    broker.ring("together", delay_s=LONG_S)
    broker.ring("together")
    broker.flush()
    broker.flush()
    assert messages(app, "together") == 1


def test_what_may_wait_is_rung_when_its_time_has_come(app, broker):
    broker.ring("later", delay_s=0.02)
    deadline = SYSTEM.monotonic() + 20
    while not messages(app, "later"):
        assert SYSTEM.monotonic() < deadline, "it is not rung for"


def test_a_process_that_ends_rings_for_what_may_wait(app, broker):
    broker.ring("end", delay_s=LONG_S)
    broker.flush()
    assert messages(app, "end") == 1


class AskedClock(MovableClock):
    """Stands until it is moved, and knows how often it was looked at."""

    asked = 0

    def monotonic(self) -> float:
        self.asked += 1
        return super().monotonic()


def test_rings_within_the_window_wait_and_are_one_message(app):
    clock = AskedClock()
    broker = CeleryBroker(app, window_s=0.02, clock=clock)
    broker.ring("often")
    broker.flush()
    for _ in range(3):
        asked = clock.asked
        broker.ring("often")
        deadline = SYSTEM.monotonic() + 20
        while clock.asked < asked + 6:  # the thread has seen the ring, and has found again that it is to wait
            assert SYSTEM.monotonic() < deadline, "the thread sleeps"
        assert messages(app, "often") == 1
    clock.advance(0.02)
    broker.flush()
    assert messages(app, "often") == 2
