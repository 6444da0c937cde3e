"""Coroutines on one asyncio loop in its own thread, and Celery tasks that are coroutines; law: what the tracer gives a task, they get.

Celery's tracer calls the body in its middle and would never await it. So an `async def` task is traced in two halves. `Awaited.attend`
does what comes before the body (request, signals, `before_start`) and awaits the body on the loop; then *Celery's own tracer* runs, in a
thread, on a body that only repeats the known outcome: result backend, callbacks, chains, retries, handlers, signals and log lines are
its work, and blocking there blocks no coroutine. The tracer is a second copy of `celery.app.trace` in which two names differ (`TRACER`).

Every coroutine has its own context variables, and Celery's two stacks (current request, current task) are keyed by one of them, so that
`self.request` is right in each coroutine, in what it gathers, and in `asyncio.to_thread`.
"""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import inspect
import threading
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any

from celery import Task, signals
from celery._state import _task_stack  # type: ignore[attr-defined] # the stubs know the public half
from celery.app import trace
from celery.app.task import Context, get_actual_ignore_result  # type: ignore[attr-defined] # the stubs lack it
from celery.exceptions import SoftTimeLimitExceeded
from celery.local import Proxy

from orchestrator.errors import OrchestratorError
from workers.threads import Interruption

STOP_MAX_S = 5.0
"""How long coroutines may take to notice that they were cancelled at the end."""


class CoroutineCancelled(OrchestratorError):
    """The task's coroutine was cancelled by its own code. Catch asyncio.CancelledError where you cancel."""


Begun = Callable[[asyncio.Task[None]], None]


class CoroutineLoop:
    """One asyncio loop on a daemon thread, with a limit to the coroutines that run at once."""

    def __init__(self, limit: int, *, name: str) -> None:
        self.limit = limit
        self._loop = asyncio.new_event_loop()
        self._gate = asyncio.Semaphore(limit)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Let it turn."""
        self._thread.start()

    @property
    def present(self) -> int:
        """Coroutines that run or wait for the gate."""
        return len(self._tasks)

    @property
    def gate(self) -> asyncio.Semaphore:
        """Held by each coroutine that runs."""
        return self._gate

    def call_soon(self, function: Callable[..., object], *args: object) -> None:
        """Call on the loop's thread; from any thread."""
        self._loop.call_soon_threadsafe(function, *args)

    def call_later(self, delay_s: float, function: Callable[..., object], *args: object) -> None:
        """Call on the loop's thread after a delay; from any thread."""
        self._loop.call_soon_threadsafe(self._loop.call_later, delay_s, function, *args)

    def spawn(self, coroutine: Coroutine[Any, Any, None], context: contextvars.Context, begun: Begun, ended: Begun) -> None:
        """Run a coroutine that looks after the gate itself; `begun` and `ended` are called on the loop's thread with its asyncio task."""

        def begin() -> None:
            task = self._loop.create_task(coroutine, context=context)
            self._keep(task)
            begun(task)
            task.add_done_callback(ended)

        self.call_soon(begin)

    def submit(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run a coroutine when the gate lets it in; cancelling the future cancels it."""
        future: Future[Any] = Future()

        def begin() -> None:
            task = self._loop.create_task(self._admit(coroutine))
            self._keep(task)
            task.add_done_callback(end)
            future.add_done_callback(lambda _: self.call_soon(task.cancel) if future.cancelled() else None)

        def end(task: asyncio.Task[object]) -> None:
            coroutine.close()  # if it was cancelled before it began
            if task.cancelled():
                future.cancel()
            error = None if task.cancelled() else task.exception()
            if not future.set_running_or_notify_cancel():
                return
            if error is None:
                future.set_result(task.result())
            else:
                future.set_exception(error)

        self.call_soon(begin)
        return future

    def cancel_all(self) -> None:
        """Cancel whatever runs or waits."""
        self.call_soon(lambda: [task.cancel() for task in tuple(self._tasks)])

    def stop(self) -> None:
        """Cancel what is left, wait a bounded time for it, and end the loop."""
        if self._thread.is_alive():
            self.call_soon(self._loop.stop)
            self._thread.join(2 * STOP_MAX_S)

    async def _admit(self, coroutine: Coroutine[Any, Any, Any]) -> object:
        async with self._gate:
            return await coroutine

    def _keep(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        if left:
            self._loop.run_until_complete(asyncio.wait(left, timeout=STOP_MAX_S))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


def is_coroutine_task(task: Task[Any, Any]) -> bool:
    """Is the body of this task an `async def`, seen through Celery's wrapper for `autoretry_for`?"""
    return inspect.iscoroutinefunction(getattr(task, "_orig_run", task.run))


class Awaited:
    """How one `async def` task is traced; made once for a task."""

    def __init__(self, task: Task[Any, Any], hostname: str) -> None:
        self.task = task
        key_by_context(task.request_stack)
        key_by_context(_task_stack)
        self._original: Callable[..., Awaitable[Any]] = getattr(task, "_orig_run", task.run)
        if hasattr(task, "_orig_run"):
            # Celery's autoretry wrapper calls this: the awaited outcome passes through it in the second half, and is retried there.
            task._orig_run = self._repeat  # noqa: SLF001 - the seam that Celery offers
        self._body = task if trace.task_has_custom(task, "__call__") else self._original
        self._before_start = task.before_start if trace.task_has_custom(task, "before_start") else None
        self.conclude = TRACER.build_tracer(
            task.name,
            Concluding(task, self._repeat),
            types.SimpleNamespace(on_task_init=lambda *_: None, on_process_cleanup=task.app.loader.on_process_cleanup),
            hostname,
            app=task.app,
        )
        """Celery's tracer on the outcome: `(uuid, args, kwargs, context) -> trace_ok_t`."""

    async def attend(
        self, context: Context, interruption: Callable[[], BaseException | None], started: Callable[[], Awaitable[None]]
    ) -> None:
        """Do the first half, await the body, and keep its outcome in the context variables of this coroutine for `conclude`.

        `interruption` is asked what a cancellation means; `started` stores the state STARTED, off the loop.
        """
        KEY.set(context)
        task, uuid = self.task, str(context.id)
        args, kwargs = tuple(context.args or ()), dict(context.kwargs or {})
        task.request_stack.push(context)
        _task_stack.push(task)
        try:
            signals.task_prerun.send(sender=task, task_id=uuid, task=task, args=args, kwargs=kwargs)
            task.app.loader.on_task_init(uuid, task)
            if task.track_started and not get_actual_ignore_result(task, context):
                await started()
            if self._before_start is not None:
                self._before_start(uuid, args, kwargs)
            body = self._body(*args, **kwargs)
            outcome = Outcome(await steps(body, interruption) if inspect.iscoroutine(body) else await body)
        except asyncio.CancelledError as cancelled:
            outcome = Outcome(error=interruption() or CoroutineCancelled().with_traceback(cancelled.__traceback__))
        except BaseException as error:  # noqa: BLE001 - Celery's tracer judges it in the second half
            outcome = Outcome(error=error)
        finally:
            _task_stack.pop()
            task.request_stack.pop()
        meaning = interruption()
        OUTCOME.set(Outcome(error=meaning) if isinstance(meaning, Interruption) else outcome)

    def _repeat(self, *args: object, **kwargs: object) -> object:
        outcome = OUTCOME.get()
        if outcome is None:
            return self._original(*args, **kwargs)
        OUTCOME.set(None)  # so that a handler that calls the task itself runs it
        return outcome.repeat()


class Outcome:
    """What a body returned or raised."""

    def __init__(self, value: object = None, error: BaseException | None = None) -> None:
        self._value, self._error = value, error

    def repeat(self) -> object:
        """Return it or raise it again."""
        if self._error is not None:
            raise self._error
        return self._value


class Concluding(Proxy):  # type: ignore[type-arg] # generic in the stubs only
    """A task as the second half sees it: it has been started, and its body repeats the outcome."""

    run: Callable[..., object]

    def __init__(self, task: Task[Any, Any], repeat: Callable[..., Any]) -> None:
        super().__init__(lambda: task)
        # Past Proxy's own __setattr__, which would change the task itself.
        object.__setattr__(self, "run", task.run if hasattr(task, "_orig_run") else repeat)
        object.__setattr__(self, "track_started", False)

    def __call__(self, *args: object, **kwargs: object) -> object:
        """What a task with its own `__call__` is traced through."""
        return self.run(*args, **kwargs)

    def before_start(self, *_: object) -> None:
        """Was called in the first half."""


@types.coroutine
def steps(body: Coroutine[Any, Any, Any], interruption: Callable[[], BaseException | None]) -> Generator[Any, Any, Any]:
    """Drive a coroutine, and throw into it what its cancellation means: a soft time limit is an exception that it may catch."""
    send: Callable[[Any], Any] = body.send
    value: Any = None
    while True:
        try:
            awaited = send(value)
        except StopIteration as end:
            return end.value
        try:
            value = yield awaited
            send = body.send
        except asyncio.CancelledError as cancelled:
            meaning = interruption()
            if isinstance(meaning, SoftTimeLimitExceeded):
                task = asyncio.current_task()
                assert task is not None, "a coroutine runs in a task"
                task.uncancel()
                value = meaning
            else:
                value = cancelled
            send = body.throw
        except BaseException as error:  # noqa: BLE001 - it belongs to the body
            value, send = error, body.throw


def key_by_context(stack: Any) -> None:  # noqa: ANN401 - a stack of Celery, which has no types
    """Let a stack of Celery tell coroutines apart, which share a thread."""
    present = stack.__ident_func__
    if not hasattr(present, "by_thread"):

        def ident() -> object:
            key = KEY.get()
            return present() if key is None else id(key)

        ident.by_thread = present  # type: ignore[attr-defined]
        stack.__ident_func__ = ident


def second_tracer() -> types.ModuleType:
    """A copy of Celery's tracer that takes the context it is given, and does not announce again what the first half announced."""
    spec = importlib.util.find_spec("celery.app.trace")
    assert spec is not None, "Celery is installed"
    assert spec.loader is not None, "Celery is installed as source or byte code"
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    copy.Context = lambda context, **_: context  # type: ignore[attr-defined]
    copy.send_prerun = lambda **_: None  # type: ignore[attr-defined]
    return copy


KEY: contextvars.ContextVar[Context | None] = contextvars.ContextVar("coroutine_task", default=None)
OUTCOME: contextvars.ContextVar[Outcome | None] = contextvars.ContextVar("coroutine_outcome", default=None)
TRACER = second_tracer()
