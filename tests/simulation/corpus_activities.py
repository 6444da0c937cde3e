"""Activities of the corpus: what they do, how long they seem to take, and how they behave when told to stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from orchestrator import activity
from orchestrator.errors import ApplicationError

SIDE_QUEUE = "side"
MAIN_QUEUE = "main"
TASK_QUEUE = "tasks"
TASK = "sim.task"


@dataclass(frozen=True)
class Manner:
    """How an attempt behaves in time: seconds it takes (attempt, chance), whether it shows life, heeds a cancellation, kills its worker."""

    lasts_s: Callable[[int, Random], float] = lambda attempt, random: random.choice((0.0, 0.001, 0.01, 0.3))
    beats: bool = False
    heeds: bool = False
    kills: bool = False


@activity.defn(name="sim.add")
def add(left: int, right: int) -> int:
    return left + right


@activity.defn(name="sim.flaky")
def flaky(failures: int) -> int:
    attempt = activity.info().attempt
    if attempt <= failures:
        raise ApplicationError(f"attempt {attempt} fails")
    return attempt


@activity.defn(name="sim.hopeless")
def hopeless() -> None:
    raise ApplicationError("never")


@activity.defn(name="sim.once")
def once(value: int) -> int:
    return value


@activity.defn(name="sim.slow")
def slow(value: int) -> int:
    return value


@activity.defn(name="sim.stubborn")
def stubborn(value: int) -> int:
    return value


@activity.defn(name="sim.silent")
def silent(value: int) -> int:
    return value


@activity.defn(name="sim.poison")
def poison() -> None:
    raise AssertionError("its worker is dead before it gets here")


def task(left: int, right: int) -> int:
    """Known to workers as a Celery task."""
    return left * right


def _hangs_first(attempt: int, random: Random) -> float:
    return 1000.0 if attempt == 1 else 0.01


MANNERS: dict[str, Manner] = {
    "sim.slow": Manner(lambda attempt, random: random.uniform(0.5, 8.0), beats=True, heeds=True),
    "sim.stubborn": Manner(lambda attempt, random: random.uniform(0.5, 8.0)),
    "sim.hopeless": Manner(lambda attempt, random: random.choice((0.0, 0.5, 3.0))),
    "sim.silent": Manner(_hangs_first),
    "sim.poison": Manner(kills=True),
    "sim.once": Manner(lambda attempt, random: random.choice((0.0, 0.01, 1.0, 3.0))),
}
PLAIN = Manner()
