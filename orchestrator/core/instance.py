"""One run's code in memory: arrivals in, commands out; law: a function of its history, with no other input and no effect.

`activate` takes one turn. What author code may ask for inside it (`wait_condition`, `start_timer`, ...) are the methods below it, and
`operations` what it waits for elsewhere; `orchestrator.workflow` gives them their public names. Ordering, conditions and two-phase cancellation follow the field-tested rules of
Temporal's Python runtime (docs/ARCHITECTURE.md, "Semantics").
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from orchestrator.core import guard, operations, outcomes
from orchestrator.core.definitions import Handler, WorkflowDefinition
from orchestrator.core.loop import WorkflowLoop
from orchestrator.core.operations import Operations
from orchestrator.core.outcomes import ContinueAsNew
from orchestrator.core.patches import Patches
from orchestrator.core.payloads import PayloadConverter
from orchestrator.errors import (
    EngineStop,
    InvalidArgument,
    PayloadError,
    QueryFailed,
    ReadOnlyContext,
    TooManyPending,
    TurnTooLong,
)
from schemas.history import (
    Arrival,
    CancelRequested,
    Command,
    Json,
    RunCompleted,
    RunStarted,
    SignalReceived,
    Terminal,
    TimerCanceled,
    TimerFired,
    TimerStarted,
)

__all__ = ["ContinueAsNew", "Instance"]

BUFFERED_SIGNALS_MAX = 10_000  # signals without a handler that one run keeps
PENDING_MAX = 10_000  # activities, child workflows, messages and timers that one run may wait for at the same time
CONDITION_ROUNDS_MAX = 100_000  # of conditions that come true, in one turn; two that undo each other would go on for ever
FIRE_AT_MAX = 253_402_300_799.0  # the end of the year 9999, which is as good as never


class Instance:
    """A run's workflow object, its loop and what it waits for. Not thread-safe; belongs to the thread that made it.

    `spoiled` is true after a query woke waiting code up: such an instance must be closed, and the run read again from its history.
    """

    def __init__(self, definition: WorkflowDefinition, converter: PayloadConverter) -> None:
        self.definition = definition
        self.converter = converter
        self.loop = WorkflowLoop(self)  # type: ignore[abstract] # the module of the loop fills in what asyncio leaves open
        self.started: RunStarted | None = None
        self.turn = 0
        self.history_events = 0
        self.replaying = False
        self.spoiled = False
        self.cancel_reason: str | None = None
        self.terminal: Terminal | None = None
        self.remarks: list[str] = []
        self._object: Any = None
        self._random: random.Random | None = None
        self._main: asyncio.Task[None] | None = None
        self._seq = 0
        self.commands: dict[tuple[str, int | str], Command] = {}  # of this turn, each under what it is and its number
        self.operations = Operations(self)
        self.patches = Patches(self)
        self._timers: dict[int, tuple[float, Callable[[], None]]] = {}  # when, and what then
        self._conditions: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []
        self._signals: dict[str, Handler] = dict(definition.signals)
        self._queries: dict[str, Handler] = dict(definition.queries)
        self._buffered: list[SignalReceived] = []
        self._seen_signals: set[str] = set()
        self._handlers_running = 0
        self._read_only: str | None = None
        self._closed = False
        self._turn_error: BaseException | None = None

    # --- a turn ----------------------------------------------------------------------------------------------------------

    def activate(self, at: float, arrivals: Sequence[Arrival], *, replaying: bool = False) -> tuple[Command, ...]:
        """Take a turn: apply what arrived, run author code until it waits, return what it asks for.

        Time in a run never goes back: `loop.now` becomes `at`, or what it was, or when a timer that has fired was due, whichever is later.
        Raises what makes the turn (not the run) fail: a non-deterministic call, a wrong definition, or, where the author chose
        `on_exception="retry_turn"`, the author's own exception. The instance is closed then.
        """
        assert not self._closed, "a closed instance takes no turn"
        assert self.terminal is None, "a closed run takes no turn"
        self.replaying = replaying
        if not replaying:  # a replay gets the very time that was recorded
            due = (self._timers[arrival.seq][0] for arrival in arrivals if type(arrival) is TimerFired and arrival.seq in self._timers)
            at = max(at, self.loop.now, *due)
        self.loop.now, self.commands = at, {}
        try:
            self._take(arrivals)
        except BaseException:
            self.close()
            raise
        self.turn += 1
        commands = tuple(self.commands.values())
        if self.terminal is not None:
            commands = (*commands, self.terminal)
            if self._handlers_running:
                remedy = "if they matter, end with `await workflow.wait_condition(workflow.all_handlers_finished)`"
                self.complain(f"the run ended while {self._handlers_running} signal handler(s) had not; {remedy}")
        self.history_events += len(arrivals) + len(commands)
        return commands

    def query(self, name: str, args: Sequence[Json]) -> Json:
        """Ask the workflow object something; changes nothing. Raises QueryFailed."""
        if name == "__stack_trace":
            return self.loop.stack_trace()
        if self.started is None:
            message = f"query {name!r} came before the first turn of the run; ask again later"
            raise QueryFailed(message)
        handler = self._queries.get(name)
        if handler is None:
            known = ", ".join(sorted(self._queries)) or "none"
            message = f"workflow {self.definition.name!r} has no query {name!r}; it has: {known}"
            raise QueryFailed(message)
        self._read_only = f"query {name!r}"
        self.replaying = self.loop.accepting = False
        try:
            with self.loop, guard.forbidden():
                values = self.converter.decode_args(args, handler.signature, what=f"query {name!r}")
                return self.converter.encode(handler.fn(self._instance(), *values), what=f"the answer of query {name!r}")
        except Exception as error:
            message = f"query {name!r} failed: {type(error).__name__}: {error}"
            raise QueryFailed(message) from error
        finally:
            self._read_only = None
            self.loop.accepting = not self._closed

    def close(self) -> None:
        """Leave memory: close every coroutine here and now, on this thread, so that the collector never runs author code elsewhere."""
        if self._closed:
            return
        self._closed = self.replaying = True  # a `finally` block that logs has nothing new to tell
        self.loop.accepting = False
        with self.loop, guard.forbidden():
            self.loop.close_tasks()
        self.operations.pending.clear()
        self._timers.clear()
        self._conditions.clear()

    def _take(self, arrivals: Sequence[Arrival]) -> None:
        if self.spoiled:
            message = "a query woke up code that waits, so this run must be read again from its history; queries only look"
            raise ReadOnlyContext(message)
        with self.loop, guard.forbidden():
            # Signals first: their handlers run before the run itself looks at the world, also in the first turn.
            for arrival in arrivals:
                if type(arrival) is SignalReceived:
                    self._signal(arrival)
                elif type(arrival) is RunStarted:
                    self.loop.seed(arrival.run_id)
            for arrival in arrivals:
                APPLY[type(arrival)](self, arrival)
            self._settle()
        error = self._turn_error or self.loop.unhandled
        if error is not None:
            raise error

    # --- applying arrivals -----------------------------------------------------------------------------------------------

    def _start(self, started: RunStarted) -> None:
        self.started = started
        self._main = self.loop.create_task(self._top_level(self._run), name=f"{started.type} run")
        if self.cancel_reason is not None:
            self.loop.call_soon(self._main.cancel)

    def _signal(self, signal: SignalReceived) -> None:
        if signal.id:
            if signal.id in self._seen_signals:
                return
            self._seen_signals.add(signal.id)
        handler = self._signals.get(signal.name)
        if handler is not None:
            self._deliver(handler, signal)
        elif len(self._buffered) < BUFFERED_SIGNALS_MAX:
            self._buffered.append(signal)
        else:
            self.complain(f"signal {signal.name!r} dropped: {BUFFERED_SIGNALS_MAX:,} signals wait already for a handler")

    def _deliver(self, handler: Handler, signal: SignalReceived) -> None:
        self._handlers_running += 1
        self.loop.create_task(self._top_level(partial(self._handle, handler, signal)), name=f"signal {signal.name}")

    def _cancel(self, request: CancelRequested) -> None:
        if self.cancel_reason is None:
            self.cancel_reason = request.reason
            if self._main is not None:
                # One iteration later, so that a run that has not begun still enters its code and can catch it.
                self.loop.call_soon(self._main.cancel)

    def _timer_fired(self, arrival: TimerFired) -> None:
        timer = self._timers.pop(arrival.seq, None)
        if timer is not None:  # else it was cancelled while the firing was on its way
            timer[1]()

    def _settle(self) -> None:
        """Run author code until nothing moves: callbacks first, then conditions in the order they were set up."""
        for _ in range(CONDITION_ROUNDS_MAX):
            self.loop.drain()
            if not self._conditions or self._turn_error is not None or self.loop.unhandled is not None:
                return
            moved = False
            for predicate, future in tuple(self._conditions):
                moved = (not future.done() and self._evaluate(predicate, future)) or moved
            self._conditions = [waiting for waiting in self._conditions if not waiting[1].done()]
            if not moved:
                return
        message = f"conditions came true {CONDITION_ROUNDS_MAX:,} times in one turn; two `wait_condition` loops undo each other"
        raise TurnTooLong(message)

    def _evaluate(self, predicate: Callable[[], bool], future: asyncio.Future[None]) -> bool:
        try:
            if predicate():
                future.set_result(None)
        except StopIteration as error:  # asyncio keeps it out of futures
            future.set_exception(RuntimeError(f"the condition raised {error!r}"))
        except Exception as error:  # noqa: BLE001 - author code: it belongs to whoever awaits the condition
            future.set_exception(error)
        return future.done()

    # --- the top of author code --------------------------------------------------------------------------------------------

    async def _top_level(self, body: Callable[[], Awaitable[None]]) -> None:
        """Turn what escapes from the run or a handler into the run's outcome, or into the failure of the turn."""
        try:
            await body()
        except (GeneratorExit, KeyboardInterrupt):
            raise
        except BaseException as error:
            if self._closed:
                raise
            verdict = outcomes.judge(
                error,
                cancel_requested=self.cancel_reason is not None,
                on_exception=self.definition.on_exception,
                converter=self.converter,
            )
            if isinstance(verdict, BaseException):
                self._turn_error = self._turn_error or verdict
            else:
                self._finish(verdict)

    async def _run(self) -> None:
        assert self.started is not None, "a run starts with RunStarted"
        values = self.converter.decode_args(self.started.args, self.definition.signature, what=f"workflow {self.definition.name!r}")
        target = self.definition.run if self.definition.cls is None else partial(self.definition.run, self._instance())
        result = await target(*values)
        self._finish(RunCompleted(result=self.converter.encode(result, what=f"the result of workflow {self.definition.name!r}")))

    async def _handle(self, handler: Handler, signal: SignalReceived) -> None:
        try:
            workflow = self._instance()
            try:
                values = self.converter.decode_args(signal.args, handler.signature, what=f"signal {signal.name!r}")
            except PayloadError as error:
                # A malformed signal is the sender's mistake; failing the run for it would let any caller kill it.
                self.complain(f"signal {signal.name!r} dropped: {error.message}")
                return
            outcome = handler.fn(workflow, *values)
            if handler.is_async:
                await outcome
        finally:
            self._handlers_running -= 1

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

    @property
    def random(self) -> random.Random:
        """The run's own random generator, seeded with the run's id."""
        if self._random is None:
            self._random = random.Random(self.run_started.run_id)  # noqa: S311 - reproducible on purpose
        return self._random

    def check_writable(self, call: str) -> None:
        """Raise unless author code may change the run right now."""
        if self._read_only is not None:
            message = f"{call} is not possible inside {self._read_only}: it would change the run. Send a signal to change something."
            raise ReadOnlyContext(message)
        if self._closed:  # a `finally` block of a run that leaves memory; a BaseException, so that no `except Exception` goes on
            message = "the run leaves memory"
            raise EngineStop(message)

    def refuse_callback(self) -> None:
        """Waiting code was woken up by a query: refuse, and give this instance up, since the waiter cannot be put to sleep again."""
        if not self._closed:
            self.spoiled = True
            self.check_writable("waking up code that waits")

    def take_seq(self, call: str) -> int:
        """The next number for something to wait for, in code order; refuses where nothing may change or too much is pending."""
        self.check_writable(call)
        if len(self.operations.pending) + len(self._timers) >= PENDING_MAX:
            message = (
                f"this run already waits for {PENDING_MAX:,} activities, child workflows and timers; bound the fan-out (asyncio.Semaphore), "
                f"or split the work into several workflows"
            )
            raise TooManyPending(message)
        self._seq += 1
        return self._seq

    def start_timer(self, fire_at: float, fire: Callable[[], None], summary: str = "") -> int:
        """Ask for a durable timer that calls `fire`; returns its sequence number."""
        if fire_at != fire_at:  # noqa: PLR0124 - NaN is the only value that differs from itself
            raise InvalidArgument("a timer needs a number of seconds, not NaN")
        seq = self.take_seq("a timer")
        self.commands["timer", seq] = started = TimerStarted(seq, round(min(fire_at, FIRE_AT_MAX), 3), summary)
        self._timers[seq] = started.fire_at, fire
        return seq

    def waits_for_timer(self, seq: int) -> bool:
        """Whether this timer was asked for and has neither fired nor been cancelled."""
        return seq in self._timers

    def cancel_timer(self, seq: int) -> None:
        """The timer is no longer wanted."""
        if self._closed or seq not in self._timers:  # it has fired, or nobody is there to care
            return
        self.check_writable("cancelling a timer")
        del self._timers[seq]
        if self.commands.pop(("timer", seq), None) is None:
            self.commands["timer_cancel", seq] = TimerCanceled(seq=seq)

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
            self._deliver(handler, signal)

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


def _answer(answer: Callable[[Operations, Any], None], instance: Instance, arrival: Arrival) -> None:
    answer(instance.operations, arrival)


APPLY: dict[type, Callable[[Instance, Any], None]] = {
    RunStarted: Instance._start,  # noqa: SLF001 - the table belongs to the class
    SignalReceived: lambda _instance, _arrival: None,  # applied in the first pass
    CancelRequested: Instance._cancel,  # noqa: SLF001 - as above
    TimerFired: Instance._timer_fired,  # noqa: SLF001 - as above
    **{kind: partial(_answer, answer) for kind, answer in operations.APPLY.items()},
}
