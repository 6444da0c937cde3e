"""Runs attempts of activities on this process's threads and loop; law: each attempt is reported exactly once, whatever it does.

Plain functions run on threads, `async def` ones as coroutines. Short plain activities share a thread job, because handing over costs more
than they do. How much a process takes on is judged by how long each type took lately.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestrator import activity
from orchestrator.clock import Clock
from orchestrator.core.definitions import ACTIVITIES, ActivityDefinition
from orchestrator.core.failures import to_failure
from orchestrator.core.payloads import PayloadConverter
from orchestrator.errors import CancelledError, PayloadError, PayloadMismatch
from schemas.history import Failure, Json
from schemas.runs import ActivityKey, Beat, BeatAnswer, PendingActivity
from workers.coroutines import CoroutineLoop
from workers.showing import Showing
from workers.threads import Interruption, Threads

FIRST_GUESS_S = 0.005  # how long an activity of an unknown type is taken to last
SHORT_S = 0.001  # activities that last less than this share a thread job
SHARED_S = 0.004  # such a job lasts about this long
PACE_WEIGHT = 0.2  # of the newest observation in the running mean
BEATS_PER_TIMEOUT = 3  # signs of life written within one heartbeat timeout


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an attempt; `failure` is None if it has a result."""

    activity: PendingActivity
    result: Json = None
    failure: Failure | None = None


class Budget:
    """What this process can take on in one cycle, in seconds of its threads and in coroutines."""

    def __init__(self, paces: dict[str, float], *, seconds: float, threads: int, coroutines: int) -> None:
        self._paces = paces
        self._seconds = seconds
        self._threads = threads  # that are free: a long activity may always have one
        self._coroutines = coroutines

    def take(self, definition: ActivityDefinition) -> bool:
        """Reserve room for one activity."""
        if definition.is_async:
            self._coroutines -= 1
            return self._coroutines >= 0
        pace = self._paces.get(definition.name, FIRST_GUESS_S)
        if self._threads <= 0 and (definition.needs_thread or self._seconds < pace):
            return False
        self._threads -= 1
        self._seconds -= pace
        return True

    @property
    def room(self) -> int:
        """About how many more activities fit."""
        slowest = max(self._paces.values(), default=FIRST_GUESS_S)
        return max(self._threads, int(self._seconds / max(slowest, SHORT_S / 10)), 0) + max(self._coroutines, 0) // 2

    def rooms(self, definitions: Mapping[str, ActivityDefinition], most: int) -> list[tuple[list[str], int]]:
        """Which activities may be claimed, and how many of them: those that need a thread only as threads are free."""
        room = min(self.room, most)
        needy = [name for name, definition in definitions.items() if definition.needs_thread]
        if not needy:
            return [(list(definitions), room)]
        others = [name for name in definitions if name not in needy]
        return [(needy, min(max(self._threads, 0), most)), (others, room)]


class Runner(Protocol):
    """What the engine asks of whoever runs attempts; the simulation has its own."""

    def budget(self) -> Budget:
        """What can be taken on now."""
        ...

    def start(self, batch: Sequence[PendingActivity]) -> None:
        """Run these attempts; each will be reported."""
        ...

    def cancel(self, key: ActivityKey) -> None:
        """Tell a running attempt to stop."""
        ...

    def beats(self) -> list[Beat]:
        """The signs of life since the last call."""
        ...

    def told(self, answers: Iterable[BeatAnswer]) -> None:
        """What the signs of life brought back."""
        ...

    def beat_interval_s(self) -> float | None:
        """How often signs of life must be written; None if nobody gives any."""
        ...


class Attempt:
    """One running attempt; what `activity.info()` and `activity.heartbeat()` speak to."""

    __slots__ = ("_runner", "cancelled", "definition", "info", "pending", "shown_at", "task")

    def __init__(self, pending: PendingActivity, definition: ActivityDefinition | None, runner: AttemptRunner) -> None:
        self.pending = pending
        self.definition = definition  # None: a Celery task
        self.cancelled = False
        self.task: asyncio.Task[None] | None = None
        self.shown_at: float | None = None  # monitors were told then that it begins
        self._runner = runner
        scheduled = pending.scheduled
        self.info = activity.Info(
            activity_id=scheduled.activity_id,
            activity_type=scheduled.type,
            attempt=pending.key.attempt,
            run_id=pending.key.run_id,
            workflow_id=pending.workflow_id,
            workflow_type=pending.workflow_type,
            queue=pending.queue,
            seq=pending.key.seq,
            scheduled_at=pending.scheduled_at,
            started_at=pending.started_at or pending.scheduled_at,
            start_to_close_s=scheduled.start_to_close_s,
            schedule_to_close_s=scheduled.schedule_to_close_s,
            heartbeat_s=scheduled.heartbeat_s,
            heartbeat_details=pending.heartbeat_details,
        )

    def heartbeat(self, details: tuple[Any, ...]) -> None:
        """Note a sign of life."""
        self._runner.note(self.pending.key, details)
        if self.cancelled and not self.is_async:
            raise CancelledError("the activity was told to stop")

    def is_cancelled(self) -> bool:
        """Whether this attempt has been told to stop."""
        return self.cancelled

    @property
    def is_async(self) -> bool:
        """Whether it runs as a coroutine."""
        return self.definition is not None and self.definition.is_async


class SharedJob:
    """Some plain attempts, one after the other on one thread."""

    def __init__(self, runner: AttemptRunner, attempts: Sequence[Attempt]) -> None:
        self._runner = runner
        self._left = list(reversed(attempts))

    def run(self) -> None:
        """Run them; may be interrupted at any point."""
        while self._left:
            self._runner.run_plain(self._left[-1])
            self._left.pop()

    def conclude(self) -> None:
        """Report what an interruption left."""
        for attempt in self._left:
            failure = Failure(kind="application", type="Interrupted", message="the worker interrupted the activity")
            self._runner.finish(attempt, Outcome(attempt.pending, failure=failure), None)


class AttemptRunner:
    """Attempts on threads and on one asyncio loop."""

    def __init__(
        self,
        threads: Threads,
        loop: CoroutineLoop,
        *,
        converter: PayloadConverter,
        report: Callable[[Outcome], None],
        eager_s: float,
        clock: Clock,
        showing: Showing | None = None,
    ) -> None:
        self._threads = threads
        self._loop = loop
        self._converter = converter
        self._report = report
        self._eager_s = eager_s
        self._clock = clock
        self._showing = showing
        self._attempts: dict[ActivityKey, Attempt] = {}
        self._paces: dict[str, float] = {}
        self._beats: dict[ActivityKey, tuple[Any, ...]] = {}

    # --- for the engine --------------------------------------------------------------------------------------------------

    def budget(self) -> Budget:
        """What can be taken on now."""
        attempts = list(self._attempts.values())
        plain = [attempt for attempt in attempts if attempt.definition is not None and not attempt.is_async]
        load_s = sum(self._paces.get(attempt.pending.scheduled.type, FIRST_GUESS_S) for attempt in plain)
        return Budget(
            self._paces,
            seconds=self._eager_s * self._threads.limit - load_s,
            threads=self._threads.limit - len(plain),
            coroutines=self._loop.limit - (len(attempts) - len(plain)),
        )

    def start(self, batch: Sequence[PendingActivity]) -> None:
        """Run these attempts; each will be reported."""
        shared: list[Attempt] = []
        shared_s = 0.0
        coroutines: list[Attempt] = []
        shown_at = self._show(batch)
        for pending in batch:
            attempt = Attempt(pending, ACTIVITIES[pending.scheduled.type], self)
            attempt.shown_at = shown_at
            self._attempts[pending.key] = attempt
            if attempt.is_async:
                coroutines.append(attempt)
                continue
            pace = self._paces.get(pending.scheduled.type, FIRST_GUESS_S)
            if pace > SHORT_S:
                self._threads.submit(SharedJob(self, [attempt]))
                continue
            shared.append(attempt)
            shared_s += pace
            if shared_s >= SHARED_S:
                self._threads.submit(SharedJob(self, shared))
                shared, shared_s = [], 0.0
        if shared:
            self._threads.submit(SharedJob(self, shared))
        if coroutines:
            self._loop.call_soon(self._launch, coroutines)

    def cancel(self, key: ActivityKey) -> None:
        """Tell a running attempt to stop."""
        attempt = self._attempts.get(key)
        if attempt is None or attempt.cancelled:
            return
        attempt.cancelled = True
        if attempt.is_async:
            self._loop.call_soon(_cancel, attempt)

    def beats(self) -> list[Beat]:
        """The signs of life since the last call, as payloads."""
        noted, self._beats = self._beats, {}
        return [Beat(key, self._payloads(key, details)) for key, details in noted.items() if key in self._attempts]

    def told(self, answers: Iterable[BeatAnswer]) -> None:
        """Stop those that are to stop."""
        for answer in answers:
            if answer.cancel_requested or answer.gone:
                self.cancel(answer.key)

    def beat_interval_s(self) -> float | None:
        """How often signs of life must be written so that none of the running attempts times out."""
        timeouts = [attempt.info.heartbeat_s for attempt in list(self._attempts.values()) if attempt.info.heartbeat_s is not None]
        if not timeouts and not self._beats:
            return None
        return min(timeouts, default=float("inf")) / BEATS_PER_TIMEOUT

    # --- for Celery tasks that run as activities ---------------------------------------------------------------------------

    def adopt(self, pending: PendingActivity) -> Attempt:
        """Know an attempt that somebody else runs, for its signs of life and its cancellation."""
        attempt = self._attempts[pending.key] = Attempt(pending, None, self)
        return attempt

    def release(self, key: ActivityKey) -> None:
        """Forget it."""
        self._attempts.pop(key, None)

    # --- for attempts ----------------------------------------------------------------------------------------------------

    def note(self, key: ActivityKey, details: tuple[Any, ...]) -> None:
        """Keep the latest sign of life of an attempt until it is written."""
        self._beats[key] = details

    def run_plain(self, attempt: Attempt) -> None:
        """Run a plain attempt on this thread."""
        begun = self._clock.monotonic()
        token = activity.CURRENT.set(attempt)
        try:
            result = self._definition(attempt).fn(*self._values(attempt))
            outcome = Outcome(attempt.pending, result=self._encoded(attempt, result))
        except Interruption:
            raise
        except BaseException as error:  # noqa: BLE001 - author code, SystemExit included: it fails the attempt, not the worker
            outcome = Outcome(attempt.pending, failure=self._failure(error))
        finally:
            activity.CURRENT.reset(token)
        self.finish(attempt, outcome, self._clock.monotonic() - begun)

    def finish(self, attempt: Attempt, outcome: Outcome, seconds: float | None) -> None:
        """Report an attempt and learn from how long it took."""
        if self._attempts.pop(attempt.pending.key, None) is None:
            return  # reported already
        if seconds is not None:
            name = attempt.pending.scheduled.type
            pace = self._paces.get(name, seconds)
            self._paces[name] = pace + PACE_WEIGHT * (seconds - pace)
        if self._showing is not None and attempt.shown_at is not None:
            self._showing.ended(outcome, self._clock.monotonic() - attempt.shown_at if seconds is None else seconds)
        self._report(outcome)

    def _show(self, batch: Sequence[PendingActivity]) -> float | None:
        """Tell monitors, if there are any, that these begin; returns when."""
        if self._showing is None or not self._showing.wanted():
            return None
        self._showing.begun(batch)
        return self._clock.monotonic()

    def _launch(self, attempts: Sequence[Attempt]) -> None:
        loop = asyncio.get_running_loop()
        for attempt in attempts:
            context = contextvars.copy_context()
            context.run(activity.CURRENT.set, attempt)
            attempt.task = loop.create_task(self._run_coroutine(attempt), context=context)
            if attempt.cancelled:
                attempt.task.cancel()

    async def _run_coroutine(self, attempt: Attempt) -> None:
        try:
            async with self._loop.gate:
                result = await self._definition(attempt).fn(*self._values(attempt))
            outcome = Outcome(attempt.pending, result=self._encoded(attempt, result))
        except BaseException as error:  # noqa: BLE001 - author code, SystemExit included: it fails the attempt, not the worker
            outcome = Outcome(attempt.pending, failure=self._failure(error))
        self.finish(attempt, outcome, None)

    def _definition(self, attempt: Attempt) -> ActivityDefinition:
        assert attempt.definition is not None, "Celery traces its own tasks"
        return attempt.definition

    def _values(self, attempt: Attempt) -> list[Any]:
        scheduled = attempt.pending.scheduled
        if scheduled.kwargs:  # called by a name that the caller's process did not know
            raise PayloadMismatch(f"activity {scheduled.type!r} takes positional arguments only; kwargs are for Celery tasks")
        return self._converter.decode_args(scheduled.args, self._definition(attempt).signature, what=f"activity {scheduled.type!r}")

    def _encoded(self, attempt: Attempt, result: object) -> Json:
        return self._converter.encode(result, what=f"the result of activity {attempt.pending.scheduled.type!r}")

    def _failure(self, error: BaseException) -> Failure:
        failure = to_failure(error, self._converter)
        if isinstance(error, PayloadError):
            # The same arguments or code would fail for ever: a retry cannot mend them.
            return Failure(kind="application", type=failure.type, message=failure.message, stack=failure.stack, non_retryable=True)
        return failure

    def _payloads(self, key: ActivityKey, details: tuple[Any, ...]) -> tuple[Json, ...]:
        try:
            return tuple(self._converter.encode_args(details, what="heartbeat details"))
        except PayloadError as error:
            # The field's rule: details that cannot be carried are the activity's fault, and it is told to stop.
            self.cancel(key)
            return (f"heartbeat details lost: {error.message}",)


def _cancel(attempt: Attempt) -> None:
    if attempt.task is not None:
        attempt.task.cancel()
