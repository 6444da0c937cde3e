"""One run's code in memory: arrivals in, commands out; law: a function of its history, with no other input and no effect.

`activate` takes one turn. What author code may ask for inside it (`schedule_activity`, `wait_condition`, ...) are the methods below it;
`orchestrator.workflow` gives them their public names. Ordering, conditions and two-phase cancellation follow the field-tested rules of
Temporal's Python runtime (docs/ARCHITECTURE.md, "Semantics").
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from orchestrator.core import guard
from orchestrator.core.definitions import Handler, WorkflowDefinition
from orchestrator.core.failures import is_cancellation, to_exception, to_failure
from orchestrator.core.loop import WorkflowLoop
from orchestrator.core.payloads import PayloadConverter
from orchestrator.errors import (
    ActivityError,
    CancelledError,
    EngineStop,
    FailureError,
    OrchestratorError,
    PayloadError,
    QueryFailed,
    ReadOnlyContext,
    TooManyPending,
)
from schemas.history import (
    ActivityCanceled,
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    Arrival,
    CancelRequested,
    Command,
    Json,
    RunCanceled,
    RunCompleted,
    RunContinued,
    RunFailed,
    RunStarted,
    SignalReceived,
    Terminal,
    TimerCanceled,
    TimerFired,
    TimerStarted,
)

CancellationType = Literal["try_cancel", "wait_cancellation_completed", "abandon"]

BUFFERED_SIGNALS_MAX = 10_000  # signals without a handler that one run keeps
PENDING_MAX = 10_000  # activities and timers that one run may wait for at the same time


class ContinueAsNew(EngineStop):
    """Raised by `workflow.continue_as_new`; ends the run and starts the next one."""

    def __init__(self, command: RunContinued) -> None:
        super().__init__("continue as new")
        self.command = command


@dataclass(slots=True)
class Operation:
    """Something the run waits for: an activity. `outcome` is set once, by the arrival or by a cancellation."""

    command: ActivityScheduled
    returns: Any
    cancellation: CancellationType
    outcome: tuple[bool, Any] | None = None  # (succeeded, payload or exception)
    waiter: asyncio.Future[None] | None = None
    cancel_sent: bool = False


class Instance:
    """A run's workflow object, its loop and what it waits for. Not thread-safe; belongs to the thread that made it."""

    def __init__(self, definition: WorkflowDefinition, converter: PayloadConverter) -> None:
        self.definition = definition
        self.converter = converter
        self.loop = WorkflowLoop(self)
        self.started: RunStarted | None = None
        self.turn = 0
        self.history_events = 0
        self.replaying = False
        self.cancel_reason: str | None = None
        self.terminal: Terminal | None = None
        self.random = random.Random()  # noqa: S311 - reproducible on purpose; seeded with the run id
        self.remarks: list[str] = []
        self._object: Any = None
        self._main: asyncio.Task[None] | None = None
        self._seq = 0
        self._commands: dict[tuple[str, int], Command] = {}
        self._operations: dict[int, Operation] = {}
        self._timers: dict[int, Callable[[], None]] = {}
        self._conditions: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._signals: dict[str, Handler] = dict(definition.signals)
        self._queries: dict[str, Handler] = dict(definition.queries)
        self._buffered: list[SignalReceived] = []
        self._seen_signals: set[str] = set()
        self._handlers_running = 0
        self._read_only: str | None = None
        self._turn_error: BaseException | None = None

    # --- a turn ----------------------------------------------------------------------------------------------------------

    def activate(self, at: float, arrivals: Sequence[Arrival], *, replaying: bool = False) -> tuple[Command, ...]:
        """Take a turn: apply what arrived, run author code until it waits, return what it asks for.

        Raises what makes the turn (not the run) fail: a non-deterministic call, a wrong definition, or, where the author chose
        `on_exception="retry_turn"`, the author's own exception. After that the instance must not be used any more.
        """
        self.replaying = replaying
        self.loop.now = at
        self._commands = {}
        with self.loop, guard.forbidden():
            # Signals first: their handlers run before the run itself looks at the world, also in the first turn.
            for arrival in arrivals:
                if type(arrival) is SignalReceived:
                    self._signal(arrival)
            for arrival in arrivals:
                APPLY[type(arrival)](self, arrival)
            self._settle()
        error = self._turn_error or self.loop.unhandled
        if error is not None:
            raise error
        self.turn += 1
        commands = tuple(self._commands.values())
        if self.terminal is not None:
            commands = (*commands, self.terminal)
        self.history_events += len(arrivals) + len(commands)
        return commands

    def query(self, name: str, args: Sequence[Json]) -> Json:
        """Ask the workflow object something; changes nothing. Raises QueryFailed."""
        if name == "__stack_trace":
            return self.stack_trace()
        handler = self._queries.get(name)
        if handler is None:
            known = ", ".join(sorted(self._queries)) or "none"
            message = f"workflow {self.definition.name!r} has no query {name!r}; it has: {known}"
            raise QueryFailed(message)
        self._read_only = f"query {name!r}"
        try:
            with self.loop, guard.forbidden():
                values = self.converter.decode_args(args, handler.signature, what=f"query {name!r}")
                return self.converter.encode(handler.fn(self._instance(), *values), what=f"the answer of query {name!r}")
        except Exception as error:
            message = f"query {name!r} failed: {type(error).__name__}: {error}"
            raise QueryFailed(message) from error
        finally:
            self._read_only = None

    def stack_trace(self) -> str:
        """Where each of the run's coroutines waits."""
        lines = []
        for task in sorted(self.loop.tasks, key=lambda task: task.get_name()):
            frames = [f"  {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}" for frame in task.get_stack()]
            lines.append("\n".join([task.get_name(), *frames]))
        return "\n".join(lines)

    def close(self) -> None:
        """Leave memory: close every coroutine here and now, on this thread, so that the collector never runs author code elsewhere."""
        self._read_only = "an evicted run"
        with self.loop, guard.forbidden():
            for task in list(self.loop.tasks):
                coroutine = task.get_coro()
                try:
                    if coroutine is not None:
                        coroutine.close()
                except (Exception, EngineStop):  # noqa: S112 - a `finally` that awaits or raises; the run lives on in its history
                    continue
        self.loop.tasks.clear()

    # --- applying arrivals -----------------------------------------------------------------------------------------------

    def _start(self, started: RunStarted) -> None:
        self.started = started
        self.random.seed(started.run_id)
        self._main = self.loop.create_task(self._top_level(self._run, "run"), name=f"{started.type} run")

    def _signal(self, signal: SignalReceived) -> None:
        if signal.id:
            if signal.id in self._seen_signals:
                return
            self._seen_signals.add(signal.id)
        handler = self._signals.get(signal.name)
        if handler is not None:
            self._handlers_running += 1
            self.loop.create_task(self._top_level(partial(self._handle, handler, signal), "signal"), name=f"signal {signal.name}")
        elif len(self._buffered) < BUFFERED_SIGNALS_MAX:
            self._buffered.append(signal)

    def _cancel(self, request: CancelRequested) -> None:
        if self.cancel_reason is None:
            self.cancel_reason = request.reason
            if self._main is not None:
                # One iteration later, so that a run that has not begun still enters its code and can catch it.
                self.loop.call_soon(self._main.cancel)

    def _activity_completed(self, arrival: ActivityCompleted) -> None:
        self._resolve(arrival.seq, succeeded=True, value=arrival.result)

    def _activity_failed(self, arrival: ActivityFailed) -> None:
        operation = self._operations.get(arrival.seq)
        if operation is not None:
            cause = to_exception(arrival.failure, self.converter)
            self._resolve(arrival.seq, succeeded=False, value=_activity_error(operation.command, arrival.retry_state, cause))

    def _activity_canceled(self, arrival: ActivityCanceled) -> None:
        operation = self._operations.get(arrival.seq)
        if operation is not None:
            details = (self.converter.decode(item, Any) for item in arrival.details)
            error = _activity_error(operation.command, "cancel_requested", CancelledError("the activity was cancelled", *details))
            self._resolve(arrival.seq, succeeded=False, value=error)

    def _timer_fired(self, arrival: TimerFired) -> None:
        fire = self._timers.pop(arrival.seq, None)
        if fire is not None:  # else it was cancelled while the firing was on its way
            fire()

    def _resolve(self, seq: int, *, succeeded: bool, value: Any) -> None:  # noqa: ANN401 - a payload or an exception
        operation = self._operations.pop(seq, None)
        if operation is not None and operation.outcome is None:
            operation.outcome = (succeeded, value)
            if operation.waiter is not None and not operation.waiter.done():
                operation.waiter.set_result(None)

    def _settle(self) -> None:
        """Run author code until nothing moves: callbacks first, then conditions in the order they were set up."""
        moved = True
        while moved:
            self.loop.drain()
            moved = False
            for predicate, future in list(self._conditions):
                if future.done():
                    moved = True
                else:
                    moved = self._evaluate(predicate, future) or moved
            if moved:
                self._conditions = [(predicate, future) for predicate, future in self._conditions if not future.done()]

    def _evaluate(self, predicate: Callable[[], bool], future: asyncio.Future[None]) -> bool:
        try:
            if predicate():
                future.set_result(None)
        except Exception as error:  # noqa: BLE001 - author code: it belongs to whoever awaits the condition
            future.set_exception(error)
        return future.done()

    # --- the top of author code --------------------------------------------------------------------------------------------

    async def _top_level(self, body: Callable[[], Awaitable[None]], role: str) -> None:
        """Turn what escapes from the run or a handler into the run's outcome, or into the failure of the turn."""
        try:
            await body()
        except ContinueAsNew as request:
            self._finish(request.command)
        except (EngineStop, GeneratorExit):
            raise
        except asyncio.CancelledError as error:
            self._finish_cancelled(error)
        except Exception as error:  # noqa: BLE001 - author code: anything may come out of it
            self._finish_failed(error)
        finally:
            if role == "signal":
                self._handlers_running -= 1

    async def _run(self) -> None:
        assert self.started is not None, "a run starts with RunStarted"
        values = self.converter.decode_args(self.started.args, self.definition.signature, what=f"workflow {self.definition.name!r}")
        target = self.definition.run if self.definition.cls is None else partial(self.definition.run, self._instance())
        result = await target(*values)
        self._finish(RunCompleted(result=self.converter.encode(result, what=f"the result of workflow {self.definition.name!r}")))

    async def _handle(self, handler: Handler, signal: SignalReceived) -> None:
        try:
            values = self.converter.decode_args(signal.args, handler.signature, what=f"signal {signal.name!r}")
        except PayloadError as error:
            # A malformed signal is the sender's mistake; failing the run for it would let any caller kill it.
            self.complain(f"signal {signal.name!r} dropped: {error.message}")
            return
        outcome = handler.fn(self._instance(), *values)
        if handler.is_async:
            await outcome

    def _instance(self) -> Any:  # noqa: ANN401 - an object of the author's class
        if self._object is None and self.definition.cls is not None:
            args: Sequence[Any] = ()
            if self.definition.init_takes_args and self.started is not None:
                args = self.converter.decode_args(self.started.args, self.definition.signature, what=f"workflow {self.definition.name!r}")
            self._object = self.definition.cls(*args)
        return self._object

    def _finish(self, terminal: Terminal) -> None:
        if self.terminal is None:  # the first one counts
            self.terminal = terminal

    def _finish_cancelled(self, error: BaseException) -> None:
        failure = to_failure(error, self.converter)
        self._finish(RunCanceled(failure) if self.cancel_reason is not None else RunFailed(failure))

    def _finish_failed(self, error: Exception) -> None:
        if is_cancellation(error) and self.cancel_reason is not None:
            self._finish_cancelled(error)
        elif isinstance(error, OrchestratorError) and not isinstance(error, FailureError | PayloadError):
            self._turn_error = self._turn_error or error
        elif isinstance(error, FailureError | TimeoutError | PayloadError) or self.definition.on_exception == "fail":
            self._finish(RunFailed(to_failure(error, self.converter)))
        else:
            self._turn_error = self._turn_error or error

    # --- what author code may ask for ------------------------------------------------------------------------------------

    @property
    def run_started(self) -> RunStarted:
        """The event this run began with."""
        assert self.started is not None, "author code runs only after RunStarted"
        return self.started

    @property
    def handlers_running(self) -> int:
        """Signal handlers that have not returned."""
        return self._handlers_running

    def check_writable(self, call: str) -> None:
        """Raise unless author code may change the run right now."""
        if self._read_only is not None:
            message = f"{call} is not possible inside {self._read_only}: it would change the run. Send a signal to change something."
            raise ReadOnlyContext(message)

    def schedule_activity(self, scheduled: ActivityScheduled, *, returns: Any, cancellation: CancellationType) -> Operation:  # noqa: ANN401 - a type annotation
        """Ask for an activity. `scheduled.seq` and an empty `activity_id` are filled in here, in code order."""
        self.check_writable("start_activity")
        self._check_room()
        self._seq += 1
        command = replace(scheduled, seq=self._seq, activity_id=scheduled.activity_id or str(self._seq))
        operation = Operation(command, returns, cancellation)
        self._operations[command.seq] = operation
        self._commands["activity", command.seq] = command
        return operation

    async def outcome(self, operation: Operation) -> Any:  # noqa: ANN401 - whatever the activity returns
        """Wait for an activity. Cancelling the wait asks the activity to cancel; the wait ends when the activity's end is known."""
        while operation.outcome is None:
            operation.waiter = self.loop.create_future()
            try:
                await operation.waiter
            except asyncio.CancelledError:
                if operation.outcome is not None:  # ended in this very moment: the cancellation is for the code around it
                    raise
                self.cancel_operation(operation)
                task = asyncio.current_task()
                if task is not None:
                    task.uncancel()
        succeeded, value = operation.outcome
        if succeeded:
            return self.converter.decode(value, operation.returns)
        raise value

    def cancel_operation(self, operation: Operation) -> None:
        """First phase of a cancellation: tell the activity, and move on at once unless the author wants to wait for its end."""
        if operation.outcome is not None or operation.cancel_sent:
            return
        operation.cancel_sent = True
        seq = operation.command.seq
        error = _activity_error(operation.command, "cancel_requested", CancelledError("the activity was cancelled"))
        if self._commands.pop(("activity", seq), None) is not None:  # never left this turn: nobody has heard of it
            self._resolve(seq, succeeded=False, value=error)
            return
        wait = operation.cancellation == "wait_cancellation_completed"
        if operation.cancellation != "abandon":
            self._commands["cancel", seq] = ActivityCancelRequested(seq=seq, wait=wait)
        if not wait:
            self._resolve(seq, succeeded=False, value=error)

    def start_timer(self, fire_at: float, fire: Callable[[], None], summary: str = "") -> int:
        """Ask for a durable timer that calls `fire`; returns its sequence number."""
        self.check_writable("a timer")
        self._check_room()
        self._seq += 1
        self._timers[self._seq] = fire
        self._commands["timer", self._seq] = TimerStarted(seq=self._seq, fire_at=round(fire_at, 3), summary=summary)
        return self._seq

    def cancel_timer(self, seq: int) -> None:
        """The timer is no longer wanted."""
        if self._timers.pop(seq, None) is None or self._read_only is not None:
            return
        if self._commands.pop(("timer", seq), None) is None:
            self._commands["timer_cancel", seq] = TimerCanceled(seq=seq)

    def wait_condition(self, predicate: Callable[[], bool]) -> asyncio.Future[None]:
        """A future that is done as soon as `predicate` holds at the end of a round of callbacks."""
        self.check_writable("wait_condition")
        future: asyncio.Future[None] = self.loop.create_future()
        self._conditions.append((predicate, future))
        return future

    def set_signal_handler(self, name: str, handler: Handler | None) -> None:
        """Put a handler in place, or take it away; buffered signals of that name are delivered in order."""
        self.check_writable("set_signal_handler")
        if handler is None:
            self._signals.pop(name, None)
            return
        self._signals[name] = handler
        waiting = [signal for signal in self._buffered if signal.name == name]
        self._buffered = [signal for signal in self._buffered if signal.name != name]
        for signal in waiting:
            self._handlers_running += 1
            self.loop.create_task(self._top_level(partial(self._handle, handler, signal), "signal"), name=f"signal {name}")

    def set_query_handler(self, name: str, handler: Handler | None) -> None:
        """Put a handler in place, or take it away."""
        self.check_writable("set_query_handler")
        if handler is None:
            self._queries.pop(name, None)
        else:
            self._queries[name] = handler

    def complain(self, message: str) -> None:
        """Keep a remark for the worker's log; the worker takes them away after the turn."""
        if not self.replaying:
            self.remarks.append(message)

    def _check_room(self) -> None:
        if len(self._operations) + len(self._timers) >= PENDING_MAX:
            message = (
                f"this run already waits for {PENDING_MAX:,} activities and timers; bound the fan-out (asyncio.Semaphore), "
                f"or split the work into several workflows"
            )
            raise TooManyPending(message)


def _activity_error(command: ActivityScheduled, retry_state: str, cause: BaseException) -> ActivityError:
    return ActivityError(
        f"activity {command.type!r} ({command.activity_id}) did not complete: {cause}",
        activity_type=command.type,
        activity_id=command.activity_id,
        retry_state=retry_state,
        cause=cause,
    )


APPLY: dict[type, Callable[[Instance, Any], None]] = {
    RunStarted: Instance._start,  # noqa: SLF001 - the table belongs to the class
    SignalReceived: lambda _instance, _arrival: None,  # applied in the first pass
    CancelRequested: Instance._cancel,  # noqa: SLF001 - as above
    ActivityCompleted: Instance._activity_completed,  # noqa: SLF001 - as above
    ActivityFailed: Instance._activity_failed,  # noqa: SLF001 - as above
    ActivityCanceled: Instance._activity_canceled,  # noqa: SLF001 - as above
    TimerFired: Instance._timer_fired,  # noqa: SLF001 - as above
}
