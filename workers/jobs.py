"""One task on its way through the pool, on a thread or as a coroutine; law: its outcome is told once, by whoever settles it first.

A job is accepted, then ends by itself, by a time limit, or by being terminated. `TaskJob.settle` decides between them under races. A job
that is interrupted because the pool closes tells nothing: its message is not acked and will be delivered again.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, Protocol

from billiard.einfo import ExceptionInfo
from celery import Celery, Task, states
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded, Terminated, WorkerLostError
from kombu.serialization import loads, prepare_accept_content

from orchestrator.clock import Clock
from workers.coroutines import Awaited, CoroutineLoop
from workers.threads import Interruption, Threads

Delivery = Callable[[], object]
Answer = Callable[..., object] | None


class Pool(Protocol):
    """What a job needs of its pool."""

    app: Celery
    clock: Clock
    threads: Threads
    loop: CoroutineLoop
    closing: bool
    lend: Callable[[], Callable[[], None]] | None

    @property
    def concluders(self) -> Executor:
        """Threads for the second halves of coroutine tasks."""
        ...

    @property
    def hostname(self) -> str:
        """The node name that tasks see."""
        ...

    def deliver(self, call: Delivery) -> None:
        """Call into Celery on the hub's thread."""
        ...

    def settled(self, job: TaskJob) -> None:
        """The job has told its outcome, or never will."""
        ...

    def awaited(self, task: Task[Any, Any]) -> Awaited | None:
        """How to trace a coroutine task."""
        ...

    def tracer(self, task: Task[Any, Any]) -> Callable[..., Any]:
        """The second half of the tracing of a coroutine task."""
        ...


class TaskJob(ABC):
    """What both kinds share: Celery's callbacks, time limits, termination. It is also the result object that `Request.terminate` holds."""

    def __init__(
        self, pool: Pool, serial: int, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: dict[str, Any]
    ) -> None:
        self.serial = serial
        self.begun = False
        self.signal: int | None = None
        self.terminated = False
        self._pool, self._target, self._args, self._kwargs = pool, target, args, kwargs
        self._on_accept: Answer = options.get("accept_callback")
        self._on_result: Answer = options.get("callback")
        self._on_error: Answer = options.get("error_callback")
        self._on_timeout: Answer = options.get("timeout_callback")
        self._soft_limit_s: float | None = options.get("soft_timeout")
        self._hard_limit_s: float | None = options.get("timeout")
        self._settled = threading.Lock()
        self._timers: list[asyncio.TimerHandle] = []

    @abstractmethod
    def enqueue(self) -> None:
        """Ask for a place to run."""

    @abstractmethod
    def forget(self) -> None:
        """Do not run, and tell nothing, if not yet accepted."""

    @abstractmethod
    def terminate(self, signal: int | None = None) -> None:
        """End it from outside, running or not; what it answers then is Terminated."""

    @abstractmethod
    def on_soft_limit(self) -> None:
        """Raise SoftTimeLimitExceeded in the task; on the loop's thread."""

    @abstractmethod
    def on_hard_limit(self) -> None:
        """Settle it as timed out and end it; on the loop's thread."""

    def settle(self) -> bool:
        """Claim the right to tell the outcome: True for the first caller only."""
        return self._settled.acquire(blocking=False)

    def accept(self) -> None:
        """The task begins now: tell Celery, and start its time limits."""
        self.begun = True
        self._tell(self._on_accept, self.serial, self._pool.clock.monotonic())
        if self._soft_limit_s or self._hard_limit_s:
            self._pool.loop.call_soon(self._start_limits)

    def answer(self, result: tuple[int, Any, float] | None, error: BaseException | None) -> None:
        """Settle the job with what the tracer returned or raised."""
        if self._timers:
            self._pool.loop.call_soon(self._stop_limits)
        if not self.settle():
            return  # it ran out of time, and was told so
        self._pool.settled(self)
        if self._pool.closing:
            return
        if self.terminated:
            self._tell(self._on_error, error_info(Terminated(self.signal or 0)))
        elif result is not None:
            self._tell(self._on_result, result)
        else:
            self._tell(self._on_error, error_info(as_celery_error(error)))

    def time_out(self) -> bool:
        """Settle the job as over its hard limit; False if it has ended."""
        if not self.settle():
            return False
        self._pool.settled(self)
        self._tell(self._on_timeout, soft=False, timeout=self._hard_limit_s)
        return True

    def _tell(self, answer: Answer, *args: object, **kwargs: object) -> None:
        if answer is not None:
            self._pool.deliver(partial(answer, *args, **kwargs))

    def _start_limits(self) -> None:
        now = asyncio.get_running_loop()
        if self._settled.locked():
            return
        if self._soft_limit_s:
            self._timers.append(now.call_later(self._soft_limit_s, self._soften))
        if self._hard_limit_s:
            self._timers.append(now.call_later(self._hard_limit_s, self.on_hard_limit))

    def _soften(self) -> None:
        if not self._settled.locked():
            self._tell(self._on_timeout, soft=True, timeout=self._soft_limit_s)
            self.on_soft_limit()

    def _stop_limits(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()


class ThreadJob(TaskJob):
    """A plain task on one of the pool's threads."""

    _result: tuple[int, Any, float] | None = None
    _error: BaseException | None = None

    def enqueue(self) -> None:
        """Wait for a thread."""
        self._pool.threads.submit(self)

    def run(self) -> None:
        """Trace the task, in context variables of its own."""
        if self.terminated:
            return
        self.accept()
        try:
            self._result = contextvars.Context().run(self._target, *self._args, **self._kwargs)
        except BaseException as error:  # noqa: BLE001 - what the tracer does not take is told as prefork tells it
            self._error = error

    def conclude(self) -> None:
        """Tell the outcome, once the thread can no longer be interrupted."""
        self.answer(self._result, self._error)

    def forget(self) -> None:
        """Nothing: the pool empties the queue of the threads in one go."""

    def terminate(self, signal: int | None = None) -> None:
        """Interrupt the thread, or leave the queue."""
        self.terminated, self.signal = True, signal
        if not self._pool.threads.strike(self, Interruption) and self._dequeue():
            self.conclude()

    def on_soft_limit(self) -> None:
        """Raise it at the thread's next bytecode."""
        self._pool.threads.strike(self, SoftTimeLimitExceeded)

    def on_hard_limit(self) -> None:
        """Give the thread up."""
        if self.time_out():
            self._pool.threads.give_up(self)

    def _dequeue(self) -> bool:
        return bool(self._pool.threads.drop_queued(lambda job: job is self))


class CoroutineJob(TaskJob):
    """An `async def` task on the pool's loop, in two halves (see `workers.coroutines`)."""

    _task: asyncio.Task[None] | None = None
    _in_gate = False
    _over = False
    _forgotten = False
    _softened = False
    _hardened = False
    _error: BaseException | None = None
    _give_back: Callable[[], None] | None = None
    _context: Context

    def enqueue(self) -> None:
        """Wait at the gate of the loop."""
        self._variables = contextvars.Context()
        self._definition = self._pool.app.tasks[self._args[0]]
        self._pool.loop.spawn(self._first_half(), self._variables, self._keep, self._ended)

    def forget(self) -> None:
        """Leave the gate; decided on the loop's thread, where it might begin at this moment."""
        self._pool.loop.call_soon(self._forget)

    def terminate(self, signal: int | None = None) -> None:
        """Cancel the coroutine at its next await."""
        if not self.terminated:
            self.terminated, self.signal = True, signal
            self._pool.loop.call_soon(self._cancel)

    def on_soft_limit(self) -> None:
        """Raise it at the next await."""
        self._softened = True
        self._cancel()

    def on_hard_limit(self) -> None:
        """Tell it, then cancel."""
        if self.time_out():
            self._hardened = True
            self._cancel()

    def answer(self, result: tuple[int, Any, float] | None, error: BaseException | None) -> None:
        """Also leave the gate, and the loan of a prefetched message."""
        super().answer(result, error)
        if self._in_gate:
            self._in_gate = False
            self._pool.loop.call_soon(self._pool.loop.gate.release)
        self._pool.deliver(self._end_loan)

    def interruption(self) -> BaseException | None:
        """What a cancellation means now."""
        if self.terminated or self._hardened or self._pool.closing:
            return Interruption("the task was ended from outside")
        if self._softened:
            self._softened = False
            return SoftTimeLimitExceeded()
        return None

    async def _first_half(self) -> None:
        await self._pool.loop.gate.acquire()
        self._in_gate = True
        if self._forgotten or self.terminated:
            return
        self.accept()
        if self._definition.acks_late and self._pool.lend is not None:
            self._pool.deliver(self._borrow)
        try:
            self._context = read_request(self._pool, *self._args)
        except Exception as error:  # noqa: BLE001 - a message that cannot be read is a failure of this task alone
            self._error = error
            return
        awaited = self._pool.awaited(self._definition)
        assert awaited is not None, "only coroutine tasks come here"
        await awaited.attend(self._context, self.interruption, self._store_started)

    def _forget(self) -> None:
        if not self.begun:
            self._forgotten = True
            self._pool.settled(self)
            self._cancel()

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def _cancel(self) -> None:
        if self._task is not None and not self._over:
            self._task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """On the loop: the first half is over; go on where blocking harms nobody."""
        self._over = True
        if not task.cancelled() and self._error is None:
            self._error = task.exception()
        if self._forgotten:
            self._leave()
        elif not self.begun or self._error is not None or task.cancelled() or self._pool.closing:
            self.answer(None, self._error or Interruption("it never began"))
        else:
            self._pool.concluders.submit(self._variables.run, self._second_half)

    def _leave(self) -> None:
        if self._in_gate:
            self._in_gate = False
            self._pool.loop.gate.release()

    def _second_half(self) -> None:
        """On a concluding thread, in the coroutine's context variables: let Celery's tracer judge the outcome."""
        context = self._context
        try:
            value, failure, runtime, text = self._pool.tracer(self._definition)(context.id, context.args, context.kwargs, context)
        except BaseException as error:  # noqa: BLE001 - told as prefork tells it
            self.answer(None, error)
        else:
            self.answer((1, value, runtime) if failure else (0, text, runtime), None)

    def _store_started(self) -> Awaitable[None]:
        store = partial(
            self._definition.backend.store_result,
            str(self._context.id),
            {"pid": self.serial, "hostname": self._pool.hostname},
            states.STARTED,
            request=self._context,
        )
        return asyncio.get_running_loop().run_in_executor(self._pool.concluders, store)

    def _borrow(self) -> None:
        if self._pool.lend is not None and not self._settled.locked():
            self._give_back = self._pool.lend()

    def _end_loan(self) -> None:
        give_back, self._give_back = self._give_back, None
        if give_back is not None:
            give_back()


def read_request(
    pool: Pool,
    name: str,
    uuid: str,
    request: dict[str, Any],
    body: Any,  # noqa: ANN401 - bytes to decode, or what was decoded from an old protocol
    content_type: str | None,
    content_encoding: str | None,
) -> Context:
    """Decode the message of a task as Celery's tracer does; errors of the decoder pass through."""
    if content_type:
        args, kwargs, embed = loads(
            body, content_type, content_encoding or "utf-8", accept=prepare_accept_content(pool.app.conf.accept_content)
        )
    else:
        args, kwargs, embed = body
    request.update({"hostname": pool.hostname, "is_eager": False}, **embed or {})
    return Context(request, args=args, kwargs=kwargs, called_directly=False)


def as_celery_error(error: BaseException | None) -> BaseException:
    """What Celery is told of something the tracer did not take: a SystemExit, say, is a lost worker."""
    if isinstance(error, Exception):
        return error
    return WorkerLostError(repr(error))


def error_info(error: BaseException) -> ExceptionInfo:
    """The record of an exception as Celery's callbacks want it."""
    try:
        raise error  # noqa: TRY301 - billiard describes only what was raised
    except BaseException:  # noqa: BLE001 - this very error
        return ExceptionInfo()
