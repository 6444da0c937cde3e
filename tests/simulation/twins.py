"""Twins of what the engine touches: clock, broker, database faults, attempts; law: all they do comes from the world's one random generator."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator import activity
from orchestrator.core.definitions import ACTIVITIES
from orchestrator.core.failures import to_failure
from orchestrator.core.payloads import PayloadConverter
from orchestrator.crashpoints import crashpoint
from orchestrator.errors import DatabaseUnavailable
from orchestrator.store import Store, Transaction
from orchestrator.store.transaction import Answered
from schemas.history import ActivityScheduled, Failure
from schemas.runs import ActivityKey, Beat, BeatAnswer, PendingActivity, WorkerIdentity, WorkerRow
from tests.simulation.corpus_activities import MANNERS, PLAIN, TASK, TASK_QUEUE
from workers.attempts import Attempt, Budget, Outcome

if TYPE_CHECKING:
    from tests.simulation.processes import Process
    from tests.simulation.world import World

THREADS = 4
BEATS_PER_TIMEOUT = 3


class ProcessClock:
    """What one process takes for the time: the world's steady time and a wall clock that may be off."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.skew_s = 0.0

    def now(self) -> float:
        return self._world.wall + self.skew_s

    def monotonic(self) -> float:
        return self._world.steady

    def sleep(self, seconds: float) -> None:
        self._world.pass_time(seconds)

    def random(self) -> float:
        return self._world.random.random()

    def fresh_id(self) -> str:
        return self._world.fresh_id()


class ShakyStore(Store):
    """A store whose transactions fail before they begin, before they commit, or after they have committed, and in which others come between."""

    world: World

    @contextmanager
    def transaction(self, *, readonly: bool = False, purpose: str = "transaction", **options: bool) -> Iterator[Transaction]:
        world = self.world
        world.between(purpose)
        fault = world.database_fault(readonly=readonly)
        if fault == "away":
            raise DatabaseUnavailable("the database is away")
        with super().transaction(readonly=readonly, purpose=purpose, **options) as tx:
            yield tx
            if fault == "refused":
                raise DatabaseUnavailable("the database went away before the commit")
        if fault == "unknown":
            raise DatabaseUnavailable("the database went away during the commit")
        world.between(f"{purpose} after")


@dataclass
class Message:
    """A message on its way."""

    queue: str
    activity: PendingActivity | None  # None: a doorbell


class Wire:
    """The broker: messages may be lost, doubled, late, out of order, and all of them wiped."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.messages: list[Message] = []

    def ring(self, queue: str, *, delay_s: float = 0.0) -> None:
        crashpoint("before_ring")
        if not (self._world.settings.ring_window_s and any(m.queue == queue and m.activity is None for m in self.messages)):
            self._post(Message(queue, None), delay_s)
        crashpoint("after_ring")

    def send(self, pending: PendingActivity) -> None:
        crashpoint("before_publish")
        self._post(Message(pending.queue, pending))
        crashpoint("after_publish")

    def wipe(self) -> None:
        self._world.note(f"wipe {len(self.messages)}")
        self.messages.clear()

    def hint(self, _tx: object, _dialect: str, queues: Iterable[str]) -> dict[str, Answered]:
        """Instead of PostgreSQL's: somebody may be told, too early, twice or in vain, and callers believe that he was."""
        world = self._world
        hinted = {}
        for name in sorted(queues):
            if world.random.random() < 0.2:
                continue  # there is nobody who listens
            hinted[name] = Answered([()])
            takers = [worker for worker in world.workers if name in worker.queues]
            for taker in world.random.sample(takers, world.random.randint(0, min(2, len(takers)))):
                world.note(f"hint {name} to {taker.name}")
                taker.after(world.random.uniform(0.0, 0.003), taker.engine.ring)
        return hinted

    def _post(self, message: Message, delay_s: float = 0.0) -> None:
        world, faults = self._world, self._world.faults
        world.note(f"post {message.queue} {message.activity and message.activity.key}")
        copies = 0 if world.chance(faults.drop) else 2 if world.chance(faults.double) else 1
        for _ in range(copies):
            sent = Message(message.queue, message.activity)
            self.messages.append(sent)
            late_s = world.random.uniform(0.0, 8.0) if world.chance(faults.late) else world.random.uniform(0.0, 0.003)
            world.after(delay_s + late_s, partial(self._deliver, sent))

    def _deliver(self, message: Message) -> None:
        if not any(message is waiting for waiting in self.messages):
            return  # wiped
        self.messages = [waiting for waiting in self.messages if waiting is not message]
        takers = [worker for worker in self._world.workers if worker.alive and message.queue in worker.queues]
        if not takers:
            if message.activity is not None:
                self._world.after(1.0, lambda: self._requeue(message))
            return
        taker = self._world.random.choice(takers)
        if message.activity is None:
            taker.engine.ring()
        else:
            taker.receive(message)

    def _requeue(self, message: Message) -> None:
        self.messages.append(message)
        self._deliver(message)


class NoWatchdog:
    """Turns take no time here."""

    @contextmanager
    def turn(self, what: str) -> Iterator[None]:
        yield


@dataclass
class Running:
    """An attempt in progress."""

    attempt: Attempt
    outcome: Outcome | None = None
    over: bool = False
    details: tuple[Any, ...] = ()


@dataclass
class TwinRunner:
    """Runs attempts in simulated time, in one process."""

    world: World
    process: Process
    converter: PayloadConverter
    notes: queue.SimpleQueue[Any]
    attempts: dict[ActivityKey, Running] = field(default_factory=dict)

    def budget(self) -> Budget:
        return Budget({}, seconds=0.05 * THREADS, threads=THREADS - len(self.attempts), coroutines=0)

    def start(self, batch: Sequence[PendingActivity]) -> None:
        for pending in batch:
            attempt = Attempt(pending, ACTIVITIES[pending.scheduled.type], self)  # type: ignore[arg-type] # it only notes signs of life
            running = self.attempts[pending.key] = Running(attempt)
            self.process.after(self.world.random.uniform(0.0, 0.01), partial(self._begin, running))

    def cancel(self, key: ActivityKey) -> None:
        running = self.attempts.get(key)
        if running is None or running.attempt.cancelled:
            return
        running.attempt.cancelled = True
        if MANNERS.get(running.attempt.pending.scheduled.type, PLAIN).heeds:
            failure = Failure(kind="canceled", message="told to stop")
            self.process.after(0.01, lambda: self._end(running, Outcome(running.attempt.pending, failure=failure)))

    def beats(self) -> list[Beat]:
        return [
            Beat(key, (self.world.steady,))
            for key, running in self.attempts.items()
            if MANNERS.get(running.attempt.pending.scheduled.type, PLAIN).beats
        ]

    def told(self, answers: Iterable[BeatAnswer]) -> None:
        for answer in answers:
            if answer.cancel_requested or answer.gone:
                self.cancel(answer.key)

    def beat_interval_s(self) -> float | None:
        timeouts = [running.attempt.info.heartbeat_s for running in self.attempts.values() if running.attempt.info.heartbeat_s is not None]
        return min(timeouts) / BEATS_PER_TIMEOUT if timeouts else None

    def adopt(self, pending: PendingActivity) -> Attempt:
        attempt = Attempt(pending, None, self)  # type: ignore[arg-type] # as above
        self.attempts[pending.key] = Running(attempt)
        return attempt

    def release(self, key: ActivityKey) -> None:
        self.attempts.pop(key, None)

    def note(self, key: ActivityKey, details: tuple[Any, ...]) -> None:
        return

    def _begin(self, running: Running) -> None:
        pending = running.attempt.pending
        manner = MANNERS.get(pending.scheduled.type, PLAIN)
        if running.over:
            return
        self.world.executed(pending)
        if manner.kills:
            self.world.crash(self.process, f"by {pending.scheduled.type}")
            return
        outcome = self._called(running.attempt)
        lasts_s = manner.lasts_s(pending.key.attempt, self.world.random)
        self.process.after(lasts_s, lambda: self._end(running, outcome))

    def _called(self, attempt: Attempt) -> Outcome:
        token = activity.CURRENT.set(attempt)
        try:
            assert attempt.definition is not None, "tasks take another way"
            scheduled = attempt.pending.scheduled
            values = self.converter.decode_args(scheduled.args, attempt.definition.signature, what=scheduled.type)
            return Outcome(attempt.pending, result=self.converter.encode(attempt.definition.fn(*values), what="result"))
        except Exception as error:  # noqa: BLE001 - author code
            return Outcome(attempt.pending, failure=to_failure(error, self.converter))
        finally:
            activity.CURRENT.reset(token)

    def _end(self, running: Running, outcome: Outcome) -> None:
        if not running.over:
            running.over = True
            self.attempts.pop(running.attempt.pending.key, None)
            self.notes.put(outcome)


class TwinVitals:
    """Who a simulated process is, and whether another one of the same machine lives."""

    def __init__(self, world: World, process: Process) -> None:
        self._world = world
        self._process = process

    def identity(self, *, worker_id: str, node: str, queues: tuple[str, ...], build: str) -> WorkerIdentity:
        return WorkerIdentity(worker_id, node, self._process.host, "boot", self._process.pid, 0.0, queues, build)

    def process_lives(self, row: WorkerRow) -> bool:
        return any(process.pid == row.identity.pid for process in self._world.workers if process.alive)


def twin_route(scheduled: ActivityScheduled, run_queue: str) -> tuple[ActivityScheduled, str]:
    """As `workers.host.route`, for an application with one task."""
    if scheduled.type != TASK:
        return scheduled, scheduled.queue or run_queue
    changes = {name: getattr(scheduled, name) for name in scheduled.__dataclass_fields__}
    return type(scheduled)(**{**changes, "task": True}), scheduled.queue or TASK_QUEUE
