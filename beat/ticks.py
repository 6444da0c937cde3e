"""What beat does whenever time has passed, as a table of chores; law: each is bounded, tells how much it did, and harms nobody if it runs twice.

A chore that fails does not stop the others. Only a database that is away stops them all: there is nothing to do without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass

from orchestrator import dispatch
from orchestrator.clock import Clock
from orchestrator.dispatch import Broker
from orchestrator.errors import DatabaseNotMigrated, DatabaseUnavailable
from orchestrator.store import Store, control, due
from schemas.settings import Settings

log = logging.getLogger("beat.ticks")

PAUSE_MIN_S = 0.001
PRUNE_INTERVAL_S = 60.0


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to do, and how long to leave it after it found nothing more to do."""

    name: str
    do: Callable[[Store, Broker, Settings], int]
    every_s: Callable[[Settings], float]


@dataclass(frozen=True, slots=True)
class TickReport:
    """How much each chore did, in the order of the table, and the errors of those that failed."""

    done: dict[str, int]
    failed: dict[str, Exception]

    @property
    def worked(self) -> int:
        """How much was done in all."""
        return sum(self.done.values())


def fire_timers(store: Store, broker: Broker, settings: Settings) -> int:
    """Fire the timers that are due, and close the runs whose time is over."""
    return dispatch.fire_timers(store, broker, settings)


def part_children(store: Store, broker: Broker, settings: Settings) -> int:
    """End or cancel child workflows whose parent has closed."""
    return dispatch.part_children(store, broker, batch_max=settings.due_batch_max)


def expire_activities(store: Store, broker: Broker, settings: Settings) -> int:
    """Time out the attempts whose deadline has passed."""
    return dispatch.expire_activities(store, broker, batch_max=settings.due_batch_max)


def publish_tasks(store: Store, broker: Broker, settings: Settings) -> int:
    """Send Celery tasks that are due their message, or another one if the last seems lost."""
    return dispatch.publish_tasks(store, broker, settings)


def ring_forgotten(store: Store, broker: Broker, settings: Settings) -> int:
    """Ring for queues whose work has waited for too long."""
    return dispatch.ring_forgotten(store, broker, older_than_s=settings.forgotten_s)


def recover_expired(store: Store, broker: Broker, settings: Settings) -> int:
    """Make ready again what silent workers had."""
    return dispatch.recover_expired(store, broker, batch_max=settings.due_batch_max)


def prune_questions(store: Store, broker: Broker, settings: Settings) -> int:
    """Forget queries that nobody will answer or read any more."""
    with store.transaction(purpose="questions.prune") as tx:
        return control.prune_questions(tx, older_than_s=settings.question_s)


CHORES = (
    Chore("fire_timers", fire_timers, every_s=lambda settings: 0.0),
    Chore("part_children", part_children, every_s=lambda settings: 0.0),
    Chore("expire_activities", expire_activities, every_s=lambda settings: 0.0),
    Chore("publish_tasks", publish_tasks, every_s=lambda settings: 0.0),
    # A queue that nobody serves keeps every message it gets: do not ring for it at each tick.
    Chore("ring_forgotten", ring_forgotten, every_s=lambda settings: settings.forgotten_s),
    Chore("recover_expired", recover_expired, every_s=lambda settings: settings.lease_beat_s / 4),
    Chore("prune_questions", prune_questions, every_s=lambda settings: PRUNE_INTERVAL_S),
)


def tick(store: Store, broker: Broker, settings: Settings, *, chores: Collection[Chore] = CHORES) -> TickReport:
    """Do each chore once. Raises DatabaseUnavailable or DatabaseNotMigrated; any other error of a chore is in the report."""
    done: dict[str, int] = {}
    failed: dict[str, Exception] = {}
    for chore in chores:
        try:
            done[chore.name] = chore.do(store, broker, settings)
        except (DatabaseUnavailable, DatabaseNotMigrated):
            raise
        except Exception as error:  # noqa: BLE001 - the chores after it have nothing to do with it; `Rounds` logs it
            failed[chore.name] = error
    return TickReport(done, failed)


def pause_s(store: Store, settings: Settings, *, worked: bool) -> float:
    """How long beat may sleep: until the next due moment, but at most `tick_s` and at least about a millisecond.

    What is due already although the last tick did nothing waits for a worker, not for beat; then the pause is `tick_s`.
    """
    with store.transaction(readonly=True) as tx:
        due_at = due.next_due_at(tx, dispatch.head_start_s(settings))
        wait = settings.tick_s if due_at is None else due_at - tx.now()
    if wait <= 0 and not worked:
        return settings.tick_s
    return max(PAUSE_MIN_S, min(wait, settings.tick_s))


class Rounds:
    """The chores of one process over time: each when its interval is over, a failure logged once until the chore succeeds again."""

    def __init__(self, store: Store, broker: Broker, settings: Settings, *, clock: Clock) -> None:
        self._store = store
        self._broker = broker
        self._settings = settings
        self._clock = clock
        self._next_at: dict[str, float] = {}  # on the monotonic clock
        self._failing: set[str] = set()
        self._came_due_until = 0.0  # on the database's clock
        # The one chore that remembers something: a queue is rung once for an activity whose backoff has ended, not at each tick.
        self._chores = (*CHORES, Chore("ring_came_due", self._ring_came_due, every_s=lambda settings: 0.0))

    def go(self) -> float:
        """Do what is to be done now; return the seconds until the next round. Raises as `tick` does."""
        now = self._clock.monotonic()
        report = tick(self._store, self._broker, self._settings, chores=[c for c in self._chores if self._next_at.get(c.name, now) <= now])
        for chore in self._chores:
            if chore.name in report.done or chore.name in report.failed:
                full = report.done.get(chore.name, 0) >= self._settings.due_batch_max
                self._next_at[chore.name] = now if full else now + chore.every_s(self._settings)
        self._tell(report)
        return pause_s(self._store, self._settings, worked=report.worked > 0)

    def _ring_came_due(self, store: Store, broker: Broker, settings: Settings) -> int:
        """Ring for queues of activities whose backoff has ended since the last time."""
        with store.transaction(readonly=True) as tx:
            now = tx.now()
            queues = due.came_due(tx, since=self._came_due_until or now - settings.forgotten_s)
        self._came_due_until = now
        dispatch.ring_all(broker, queues)
        return len(queues)

    def _tell(self, report: TickReport) -> None:
        for name, error in report.failed.items():
            if name not in self._failing:
                log.error("chore %s of beat failed, the others go on and it is tried again", name, exc_info=error)
        self._failing = (self._failing | set(report.failed)) - set(report.done)
