"""A process dies at every crash point there is; another one goes on, and every law and outcome holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator import crashpoints
from orchestrator.errors import DatabaseUnavailable
from tests.beat.conftest import MovableClock, clock, every, make_beat, messages, queue
from tests.simulation.faults import Faults, SimulatedCrash
from tests.simulation.points import all_points, bare_sends, nameless_commits
from tests.simulation.worlds import simulate

__all__ = ["clock", "make_beat", "queue"]  # fixtures

POINTS = all_points()
OF_BEAT = [point for point in POINTS if point.startswith("beat.")]
ELSEWHERE = {
    "deadletters.": "one transaction of an operator; nothing comes after it but rings",
    "tokens.": "one transaction of an operator or of a request; nothing comes after it",
    "audit": "one row of a request that is over",
    "fleet.": "commands and signs of life of agents: each is one transaction, and the fleet's workflows find what it wrote",
    "works.": "workers with agents die there in tests/e2e/test_agents_chaos.py",
    "letters.add": "a worker dies there in tests/e2e/test_agent_messages.py",
    "bus.lease": "it is a lease like that of beat, and only says who tells; tests/e2e/test_bus.py",
}
"""Beginning of a point -> why nobody of the simulation dies there: it knows neither operators nor agents."""

PLAIN = ("sequence", "fan", "elsewhere", "at_most_once", "started_often")
SCENARIOS = {
    "tasks.": ("tasks", "sequence"),
    "before_publish": ("tasks",),
    "after_publish": ("tasks",),
    "timers.": ("naps", "race"),
    "activities.": ("silent", "race"),
    "workers.recover": ("poisoned", "sequence"),
    "workers.strike": ("poisoned", "sequence"),
    "client.": ("collect", "canceled", "terminated", "started_often"),
    "questions.": ("collect",),
    "children.": ("household",),
    "turns.set_aside": ("unwritable", "sequence"),
}
GENTLE = Faults(until_s=12.0, refused=0.03, stops=2)
SEEDS_MAX = 60
HITS = 3


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    crashpoints.arm(None)


def test_there_are_many_points_and_every_commit_and_publish_has_some():
    assert len(POINTS) >= 25
    assert not nameless_commits(), "give these transactions a purpose: it names their crash points"
    assert not bare_sends(), "put crash points around these"
    assert all(any(point.startswith(elsewhere) for point in POINTS) for elsewhere in ELSEWHERE)


@pytest.mark.slow
@pytest.mark.parametrize("point", [point for point in POINTS if point not in OF_BEAT and not point.startswith(tuple(ELSEWHERE))])
def test_a_process_that_dies_there_harms_nothing(point):
    only = next((names for prefix, names in SCENARIOS.items() if point.startswith(prefix)), PLAIN)
    hits = 0
    for seed in range(SEEDS_MAX):
        hits += simulate(seed, faults=GENTLE, only=only, aim=point, aim_hit=1 + seed % 3).aimed
        if hits == HITS:
            return
    assert hits, f"no scenario comes by {point}"


@pytest.mark.parametrize("point", OF_BEAT)
def test_a_beat_that_dies_there_is_followed_by_one_that_misses_nothing(point, make_beat, clock: MovableClock, queue):
    beat = make_beat()
    died = False

    def die(name: str) -> None:
        nonlocal died
        if name == point and not died:
            died = True
            raise SimulatedCrash(name)

    beat.tick()  # it has taken over and knows its entries
    clock.advance(10.5)
    crashpoints.arm(die)
    try:
        for _ in range(3):
            beat.tick()
            clock.advance(10.5)
        beat.close()
    except SimulatedCrash:
        beat._active = beat._in_tick = False  # it is dead: its `close` does nothing more
    crashpoints.arm(None)
    assert died, f"beat does not come by {point}"
    successor = make_beat(tock=every(10, clock, queue))
    clock.advance(60)  # its lease is over
    before = messages(successor, queue)
    for _ in range(3):
        try:
            successor.tick()
        except DatabaseUnavailable:
            pytest.fail("the dead beat holds the database")
    assert messages(successor, queue) == before + 1, "the overdue entry is fired once"
