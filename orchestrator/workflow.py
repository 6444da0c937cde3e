"""What authors of workflows import: decorators, and the calls that are possible inside a workflow; law: no database, no broker, no clock.

    from orchestrator import workflow

    @workflow.defn
    class Greeting:
        @workflow.run
        async def run(self, name: str) -> str:
            return await workflow.execute_activity(compose, name)

Durations are seconds or `timedelta`. Everything here works only inside a running workflow, except the decorators.
"""

from __future__ import annotations

import asyncio
import logging
import random as _random
import uuid as _uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NoReturn, ParamSpec, TypeVar, overload

from orchestrator.core import declare, guard
from orchestrator.core.calls import (
    UNSET,
    ActivityHandle,
    ActivityOptions,
    CeleryTask,
    Duration,
    arguments,
    check_summary,
    execute_activity,
    running,
    seconds_of,
    start_activity,
)
from orchestrator.core.children import (
    ChildWorkflowHandle,
    ChildWorkflowOptions,
    ExternalWorkflowHandle,
    execute_child_workflow,
    get_external_workflow_handle,
    start_child_workflow,
)
from orchestrator.core.definitions import OnException, WorkflowFunction, definition_of, register_workflow, valid_name
from orchestrator.core.failures import is_cancellation
from orchestrator.core.instance import ContinueAsNew, Instance
from orchestrator.core.loop import WorkflowLoop
from orchestrator.core.operations import CancellationType, ChildCancellationType
from orchestrator.errors import InvalidDefinition
from schemas.history import ParentClosePolicy, RetryPolicy, RunContinued
from schemas.runs import IdReusePolicy

R = TypeVar("R")
T = TypeVar("T")
P = ParamSpec("P")
Cls = TypeVar("Cls", bound=type)
Method = TypeVar("Method", bound=Callable[..., Any])

HISTORY_EVENTS_SUGGESTED = 4_096  # from here on `info().is_continue_as_new_suggested` is true

__all__ = [
    "ActivityHandle",
    "ActivityOptions",
    "CancellationType",
    "CeleryTask",
    "ChildCancellationType",
    "ChildWorkflowHandle",
    "ChildWorkflowOptions",
    "Duration",
    "ExternalWorkflowHandle",
    "IdReusePolicy",
    "Info",
    "ParentClosePolicy",
    "RetryPolicy",
    "WorkflowFunction",
    "all_handlers_finished",
    "as_completed",
    "cancellation_reason",
    "continue_as_new",
    "definition_of",
    "defn",
    "deprecate_patch",
    "execute_activity",
    "execute_child_workflow",
    "get_external_workflow_handle",
    "in_workflow",
    "info",
    "init",
    "is_cancellation",
    "logger",
    "now",
    "patched",
    "query",
    "random",
    "run",
    "seconds_of",
    "set_query_handler",
    "set_signal_handler",
    "signal",
    "sleep",
    "start_activity",
    "start_child_workflow",
    "time",
    "unsafe",
    "uuid4",
    "wait",
    "wait_condition",
]


# --- decorators ----------------------------------------------------------------------------------------------------------


@overload
def defn(target: Cls) -> Cls: ...
@overload
def defn(target: Callable[P, Awaitable[R]]) -> WorkflowFunction[P, R]: ...
@overload
def defn(target: None = None, *, name: str | None = None, on_exception: OnException = "fail") -> Callable[[Any], Any]: ...
def defn(target: Any = None, *, name: str | None = None, on_exception: OnException = "fail") -> Any:
    """Declare a workflow: a class with one `@workflow.run` method, or an `async def` function.

    `on_exception` says what an exception that is no `FailureError` does when it leaves the code: "fail" fails the run; "retry_turn" keeps the
    run waiting and tries the turn again, for code that is to be mended. Raises InvalidDefinition with all that is wrong.
    """

    def declare_it(real: Any) -> Any:  # noqa: ANN401 - a class or a function
        given = str(getattr(real, "__name__", type(real).__name__)) if name is None else name
        if isinstance(real, type):
            definition = declare.class_definition(real, given, on_exception)
            register_workflow(definition)
            real.__workflow_definition__ = definition  # type: ignore[attr-defined] # the mark that `definition_of` looks for
            return real
        definition = declare.function_definition(real, given, on_exception)
        register_workflow(definition)
        return WorkflowFunction(real, definition)

    if on_exception not in {"fail", "retry_turn"}:
        message = f'on_exception must be "fail" or "retry_turn", not {on_exception!r}'
        raise InvalidDefinition(message)
    return declare_it if target is None else declare_it(target)


def run(fn: Method) -> Method:
    """Mark the method of a workflow class that is the workflow."""
    declare.mark(fn, "run")
    return fn


def init(fn: Method) -> Method:
    """Mark an `__init__` that takes the arguments of the run, because signals may come before `run` begins."""
    declare.mark(fn, "init")
    return fn


@overload
def signal(fn: Method) -> Method: ...
@overload
def signal(fn: None = None, *, name: str | None = None, description: str = "") -> Callable[[Method], Method]: ...
def signal(fn: Any = None, *, name: str | None = None, description: str = "") -> Any:
    """Mark a method that receives a signal; sync or async."""
    return _handler("signal", fn, name, description)


@overload
def query(fn: Method) -> Method: ...
@overload
def query(fn: None = None, *, name: str | None = None, description: str = "") -> Callable[[Method], Method]: ...
def query(fn: Any = None, *, name: str | None = None, description: str = "") -> Any:
    """Mark a method that answers a question and changes nothing; not async."""
    return _handler("query", fn, name, description)


# --- time, chance, conditions ----------------------------------------------------------------------------------------------


async def sleep(duration: Duration, *, summary: str = "") -> None:
    """Wait; survives anything. A duration of 0 is a timer all the same."""
    instance = running("sleep")
    seconds = seconds_of(duration, "sleep")
    future: asyncio.Future[None] = instance.loop.create_future()

    def fire() -> None:
        if not future.done():
            future.set_result(None)

    seq = instance.start_timer(instance.loop.now + seconds, fire, check_summary(summary))
    try:
        await future
    finally:
        instance.cancel_timer(seq)


async def wait_condition(predicate: Callable[[], bool], *, timeout: Duration | None = None) -> None:  # noqa: ASYNC109 - the field's name
    """Wait until `predicate()` holds; it is asked after every change of the run. Raises TimeoutError after `timeout`."""
    future = running("wait_condition").wait_condition(predicate)
    if timeout is None:
        await future
        return
    async with asyncio.timeout(seconds_of(timeout, "timeout")):
        await future


async def wait(
    futures: Iterable[asyncio.Future[T]],
    *,
    timeout: Duration | None = None,  # noqa: ASYNC109 - the field's name
    return_when: str = asyncio.ALL_COMPLETED,
) -> tuple[list[asyncio.Future[T]], list[asyncio.Future[T]]]:
    """As `asyncio.wait`, but (done, pending) are lists in the order of `futures`."""
    ordered = list(futures)
    done, _ = await asyncio.wait(ordered, timeout=None if timeout is None else seconds_of(timeout, "timeout"), return_when=return_when)
    return [future for future in ordered if future in done], [future for future in ordered if future not in done]


def as_completed(awaitables: Iterable[Awaitable[T]], *, timeout: Duration | None = None) -> Iterator[Awaitable[T]]:
    """As `asyncio.as_completed`, which starts coroutines in an order that no replay can repeat: here they start in theirs."""
    ordered = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    return iter(asyncio.as_completed(ordered, timeout=None if timeout is None else seconds_of(timeout, "timeout")))


def now() -> datetime:
    """The time of this turn, aware UTC; the same again in a replay."""
    return datetime.fromtimestamp(running("now").loop.now, tz=UTC)


def time() -> float:
    """The time of this turn, seconds since the epoch."""
    return running("time").loop.now


def random() -> _random.Random:
    """The run's own random generator; the same numbers again in a replay."""
    instance = running("random")
    instance.check_writable("random")
    return instance.random


def uuid4() -> _uuid.UUID:
    """A random UUID; the same again in a replay."""
    return _uuid.UUID(int=random().getrandbits(128), version=4)


# --- the run itself ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Info:
    """Facts about the running run."""

    workflow_id: str
    run_id: str
    workflow_type: str
    queue: str
    attempt: int
    started_at: datetime
    first_run_id: str
    continued_from: str | None
    parent_id: str | None
    parent_run_id: str | None
    run_timeout_s: float | None
    history_length: int
    turn: int
    memo: Mapping[str, Any]
    is_continue_as_new_suggested: bool


def info() -> Info:
    """Facts about the running run."""
    instance = running("info")
    started = instance.run_started
    return Info(
        workflow_id=started.workflow_id,
        run_id=started.run_id,
        workflow_type=started.type,
        queue=started.queue,
        attempt=started.attempt,
        started_at=datetime.fromtimestamp(started.started_at, tz=UTC),
        first_run_id=started.first_run_id or started.run_id,
        continued_from=started.continued_from,
        parent_id=started.parent_id,
        parent_run_id=started.parent_run_id,
        run_timeout_s=started.run_timeout_s,
        history_length=instance.history_events,
        turn=instance.turn + 1,
        memo={key: instance.converter.decode(value, Any) for key, value in (started.memo or {}).items()},
        is_continue_as_new_suggested=instance.history_events >= HISTORY_EVENTS_SUGGESTED,
    )


def continue_as_new(
    arg: Any = UNSET,  # noqa: ANN401 - any value that a payload can carry
    *,
    args: Sequence[Any] | None = None,
    workflow: Any = None,  # noqa: ANN401 - a workflow class, function or name
    queue: str | None = None,
    run_timeout: Duration | None = None,
    memo: Mapping[str, Any] | None = None,
) -> NoReturn:
    """End this run and start the next one of the same id with a fresh history; what is None stays as it is."""
    instance = running("continue_as_new")
    instance.check_writable("continue_as_new")
    values = arguments(arg, args, "continue_as_new")
    name = None if workflow is None else (workflow if isinstance(workflow, str) else definition_of(workflow).name)
    raise ContinueAsNew(
        RunContinued(
            args=tuple(instance.converter.encode_args(values, what="continue_as_new")),
            type=name,
            queue=queue,
            run_timeout_s=None if run_timeout is None else seconds_of(run_timeout, "run_timeout"),
            memo=None if memo is None else {key: instance.converter.encode(value, what=f"memo[{key!r}]") for key, value in memo.items()},
        ),
    )


def patched(id: str) -> bool:  # noqa: A002 - the field's name
    """Whether this run takes the new side of a change of its code: `if workflow.patched("ship-first"): …`, and the old code under `else`.

    True in every run that comes here for the first time after the change was deployed, False in one that was here before. Raises
    InvalidArgument for an id that is none.
    """
    instance = running("patched")
    instance.check_writable("patched")
    return instance.patches.ask(valid_name("patch id", id))


def deprecate_patch(id: str) -> None:  # noqa: A002 - the field's name
    """Say that no open run is older than a change: the old side is deleted, and this call takes the place of `patched`.

    Delete it too when no open run is left that asked `patched`.
    """
    instance = running("deprecate_patch")
    instance.check_writable("deprecate_patch")
    instance.patches.ask(valid_name("patch id", id), deprecated=True)


def cancellation_reason() -> str | None:
    """Why the run is to cancel itself ("" if no reason was given); None if nobody asked for it."""
    return running("cancellation_reason").cancel_reason


def all_handlers_finished() -> bool:
    """Whether every signal handler has returned; `await wait_condition(all_handlers_finished)` before you return."""
    return running("all_handlers_finished").handlers_running == 0


def set_signal_handler(name: str, fn: Callable[..., Any] | None) -> None:
    """Receive signal `name` with `fn` from now on; signals that came earlier are delivered in order. None takes the handler away."""
    handler = None if fn is None else declare.loose_handler("signal", name, fn)
    running("set_signal_handler").set_signal_handler(valid_name("signal name", name), handler)


def set_query_handler(name: str, fn: Callable[..., Any] | None) -> None:
    """Answer query `name` with `fn` from now on. None takes the handler away."""
    handler = None if fn is None else declare.loose_handler("query", name, fn)
    running("set_query_handler").set_query_handler(valid_name("query name", name), handler)


def in_workflow() -> bool:
    """Whether the caller runs inside a workflow."""
    return isinstance(asyncio._get_running_loop(), WorkflowLoop)  # noqa: SLF001 - documented for exactly this, and never raises


class _ReplaySilentLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the run's ids and keeps quiet in a replay: what was logged once is not logged again."""

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802 - logging's name
        """False in a replay."""
        loop = asyncio._get_running_loop()  # noqa: SLF001 - as in `in_workflow`
        if isinstance(loop, WorkflowLoop) and isinstance(loop.owner, Instance) and loop.owner.replaying:
            return False
        return super().isEnabledFor(level)

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:  # noqa: ANN401 - logging's signature
        """As `Logger.log`; a handler of the application may do what the workflow itself must not."""
        with guard.allowed():
            super().log(level, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:  # noqa: ANN401 - logging's signature
        """Put the run's ids into the record."""
        if in_workflow():
            started = running("logger").run_started
            ids = {"workflow_id": started.workflow_id, "run_id": started.run_id, "workflow_type": started.type}
            kwargs["extra"] = {**ids, **(kwargs.get("extra") or {})}
            msg = f"{msg} ({started.workflow_id})"
        return msg, kwargs


logger = _ReplaySilentLogger(logging.getLogger("orchestrator.workflow"), {})


class unsafe:  # noqa: N801 - a namespace, written as the field writes it
    """What can break a replay; for people who know why they need it."""

    @staticmethod
    def is_replaying() -> bool:
        """Whether the code runs again over its past. Never branch on it to ask for something."""
        return running("unsafe.is_replaying").replaying

    @staticmethod
    def allowed() -> Any:  # noqa: ANN401 - a context manager
        """Suspend the refusal of non-deterministic calls, for a debugger or a profiler."""
        return guard.allowed()


# --- how it is done ----------------------------------------------------------------------------------------------------------


def _handler(role: declare.Role, fn: Any, name: str | None, description: str) -> Any:  # noqa: ANN401 - decorator with and without arguments
    def mark(method: Any) -> Any:  # noqa: ANN401 - any method
        return declare.mark(method, role, method.__name__ if name is None else name, description)

    return mark if fn is None else mark(fn)
