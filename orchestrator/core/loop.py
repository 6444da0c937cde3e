"""The deterministic event loop that author coroutines run on; law: first in, first out, and time moves only between turns.

It is a real `asyncio` loop as far as author code can see (`sleep`, `wait_for`, `timeout`, `gather`, `TaskGroup`, locks, queues, events),
but it has no clock, no threads and no files: `time()` is the moment of the turn and `call_at` asks its owner for a durable timer.
"""

from __future__ import annotations

import asyncio
import zlib
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from types import FrameType
from typing import Any, NoReturn, Protocol, TypeVar

from orchestrator.errors import EngineStop, NonDeterministicCall

T = TypeVar("T")

CLOSE_TRIES_MAX = 100  # awaits in `finally` blocks that a coroutine may insist on as it is closed
STACK_FRAMES_MAX = 100  # of one coroutine in a stack trace
TASK_NUMBER_BITS = 12  # low bits of a task's hash: up to 4,096 tasks, a set of them keeps their order

_CORE = __file__.rpartition("/")[0]


class Owner(Protocol):
    """What the loop asks of the run it belongs to."""

    def start_timer(self, fire_at: float, fire: Callable[[], None]) -> int:
        """Ask for a durable timer; returns its sequence number."""
        ...

    def cancel_timer(self, seq: int) -> None:
        """The timer is no longer wanted."""
        ...

    def check_writable(self, call: str) -> None:
        """Raise unless author code may change the run right now."""
        ...

    def refuse_callback(self) -> None:
        """Something woke waiting code up while nothing may move."""
        ...

    def complain(self, message: str) -> None:
        """Keep a remark for the log."""
        ...


class WorkflowLoop(asyncio.AbstractEventLoop):
    """One run's event loop. `owner` is the run's instance; `workflow.*` finds it through the running loop."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.now = 0.0
        self.tasks: set[asyncio.Task[Any]] = set()
        self.unhandled: BaseException | None = None
        self.salt = 0  # of the hashes of tasks
        self.accepting = True  # False while a query looks at the run, and once the run has left memory
        self._ready: deque[asyncio.Handle] = deque()
        self._tasks_made = 0
        self._outer: asyncio.AbstractEventLoop | None = None

    # --- running ---------------------------------------------------------------------------------------------------------

    def drain(self) -> None:
        """Run callbacks, oldest first, until none is left."""
        ready = self._ready
        while ready:
            handle = ready.popleft()
            if not handle._cancelled:  # noqa: SLF001 - `cancelled()`, without the call
                try:
                    handle._run()  # noqa: SLF001 - the one way to run a handle; stable since Python 3.4
                except SystemExit:
                    # Its task keeps it for whoever awaits that task; the process is not the workflow's to end.
                    self.owner.complain("SystemExit inside a workflow ends its task, not the process")

    def close_tasks(self) -> None:
        """Close every coroutine here and now, and forget what is queued: the run leaves memory."""
        for task in list(self.tasks):
            _close(task.get_coro())
        self._ready.clear()
        self.tasks.clear()

    def stack_trace(self) -> str:
        """Where each coroutine waits, the innermost frame last."""
        lines = []
        for task in sorted(self.tasks, key=lambda task: task.get_name()):
            lines.append(task.get_name())
            lines += [f"  {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}" for frame in _frames(task.get_coro())]
        return "\n".join(lines)

    def __enter__(self) -> None:
        """Become the running loop of this thread."""
        self._outer = events._get_running_loop()  # noqa: SLF001 - asyncio's documented hook for those who implement loops
        events._set_running_loop(self)  # noqa: SLF001 - as above

    def __exit__(self, *_: object) -> None:
        """Give the thread back."""
        events._set_running_loop(self._outer)  # noqa: SLF001 - as above

    # --- what asyncio needs ----------------------------------------------------------------------------------------------

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override] # noqa: ANN401 - asyncio's signature, without its type variables
        """Run `callback` in this drain, after all that is queued already."""
        handle = asyncio.Handle(callback, args, self, context)
        if self.accepting:
            self._ready.append(handle)
        else:
            self.owner.refuse_callback()
        return handle

    def call_later(self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.TimerHandle:  # type: ignore[override] # noqa: ANN401 - asyncio's signature, without its type variables
        """Run `callback` `delay` seconds from now, by a durable timer."""
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.TimerHandle:  # type: ignore[override] # noqa: ANN401 - asyncio's signature, without its type variables
        """Run `callback` at `when`, by a durable timer."""
        handle = _DurableTimer(when, callback, list(args), self, context)

        def fire() -> None:
            if not handle.cancelled():
                self._ready.append(handle)

        handle.seq = self.owner.start_timer(when, fire)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if isinstance(handle, _DurableTimer):
            self.owner.cancel_timer(handle.seq)

    def create_future(self) -> asyncio.Future[Any]:
        """A future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override] # the stub's keyword-only variants differ between Python versions
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_: object,  # eager_start (Python 3.14): a task of ours always starts through the queue
    ) -> asyncio.Task[T]:
        """A task of this run."""
        try:
            self.owner.check_writable("create_task")
        except BaseException:
            coro.close()  # else Python complains that nobody awaited it
            raise
        return WorkflowTask(coro, loop=self, name=name, context=context)

    def seed(self, run_id: str) -> None:
        """Tell the loop whose it is, before the first task."""
        self.salt = zlib.crc32(run_id.encode()) << TASK_NUMBER_BITS

    def number_task(self) -> int:
        """The next number of a task, from 1."""
        self._tasks_made += 1
        return self._tasks_made

    def time(self) -> float:
        """The moment of this turn."""
        return self.now

    def get_debug(self) -> bool:
        """Never: asyncio's debug mode reads the wall clock."""
        return False

    def set_debug(self, enabled: bool) -> None:
        """Has no effect; see `get_debug`."""

    def is_running(self) -> bool:
        """Author code only ever sees it running."""
        return True

    def is_closed(self) -> bool:
        """It lives as long as its run is in memory."""
        return False

    def get_task_factory(self) -> None:
        """There is none."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """An exception of a bare callback fails the turn; one of a task that nobody awaits is worth a remark, as in any asyncio program."""
        error = context.get("exception")
        if error is None:
            return
        if "never retrieved" in context.get("message", ""):
            self.owner.complain(f"nobody awaited a task that failed with {type(error).__name__}: {error}")
            return
        self.unhandled = self.unhandled or error
        self._ready.clear()  # the turn is lost, so nothing more needs to run

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """As `call_exception_handler`."""
        self.call_exception_handler(context)


class WorkflowTask(asyncio.Task[T]):
    """A task whose name and hash a replay repeats: a `TaskGroup` cancels its tasks in the order of a set, and `asyncio.wait` returns sets."""

    def __init__(
        self, coro: Coroutine[Any, Any, T], *, loop: WorkflowLoop, name: str | None = None, context: Context | None = None
    ) -> None:
        number = loop.number_task()
        self._hash = loop.salt + number
        # asyncio's own default name counts through the whole process.
        super().__init__(coro, loop=loop, name=f"Task-{number}" if name is None else name, context=context)
        self._log_destroy_pending = False  # an evicted run leaves its tasks pending on purpose
        loop.tasks.add(self)  # asyncio itself holds tasks weakly
        self.add_done_callback(loop.tasks.discard)

    def __hash__(self) -> int:
        """Different between runs too, or the set of all tasks of the process would be one long collision."""
        return self._hash


class _DurableTimer(asyncio.TimerHandle):
    __slots__ = ("seq",)
    seq: int


def _close(coroutine: Any) -> None:  # noqa: ANN401 - asyncio knows several kinds
    for _ in range(CLOSE_TRIES_MAX):
        try:
            coroutine.close()
        except (Exception, EngineStop):  # noqa: BLE001, S112 - a `finally` that awaits or raises: once more; the run lives on in its history
            continue
        return


def _frames(coroutine: Any) -> Iterator[FrameType]:  # noqa: ANN401 - a coroutine, a generator or another awaitable
    """The frames through which a coroutine waits, outermost first, without the engine's own."""
    for _ in range(STACK_FRAMES_MAX):
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            return
        if not frame.f_code.co_filename.startswith(_CORE):
            yield frame
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)


def _refusal(call: str) -> Callable[..., NoReturn]:
    def refuse(self: WorkflowLoop, *_: object, **__: object) -> NoReturn:
        message = f"asyncio's {call} is not possible in a workflow, because a replay could not repeat it. Do it in an activity."
        raise NonDeterministicCall(message)

    return refuse


# Threads, executors, sockets, processes, signals, and running the loop: all that asyncio offers and this loop does not.
for _name, _method in vars(asyncio.AbstractEventLoop).items():
    if not _name.startswith("_") and getattr(WorkflowLoop, _name) is _method:
        setattr(WorkflowLoop, _name, _refusal(_name))
