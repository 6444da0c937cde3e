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
import inspect
import logging
import random as _random
import uuid as _uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Literal, NoReturn, ParamSpec, Protocol, TypeVar, cast, overload

from orchestrator.core import guard
from orchestrator.core.definitions import (
    ActivityDefinition,
    Handler,
    OnException,
    WorkflowDefinition,
    is_coroutine_function,
    register_workflow,
    valid_name,
)
from orchestrator.core.failures import is_cancellation
from orchestrator.core.guard import find_forbidden
from orchestrator.core.instance import CancellationType, ContinueAsNew, Instance, Operation
from orchestrator.core.loop import WorkflowLoop
from orchestrator.core.signatures import CallSignature
from orchestrator.errors import InvalidArgument, InvalidDefinition
from schemas.history import ActivityScheduled, RetryPolicy, RunContinued

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Cls = TypeVar("Cls", bound=type)
Method = TypeVar("Method", bound=Callable[..., Any])
Duration = float | timedelta

HISTORY_EVENTS_SUGGESTED = 4_096  # from here on `info().is_continue_as_new_suggested` is true

__all__ = [
    "ActivityHandle",
    "Info",
    "RetryPolicy",
    "WorkflowFunction",
    "all_handlers_finished",
    "cancellation_reason",
    "continue_as_new",
    "defn",
    "execute_activity",
    "in_workflow",
    "info",
    "init",
    "is_cancellation",
    "logger",
    "now",
    "query",
    "random",
    "run",
    "set_query_handler",
    "set_signal_handler",
    "signal",
    "sleep",
    "start_activity",
    "time",
    "unsafe",
    "uuid4",
    "wait_condition",
]


# --- decorators ----------------------------------------------------------------------------------------------------------


class WorkflowFunction(Generic[P, R]):
    """A plain function that is a workflow: `@workflow.defn async def greet(name: str) -> str`."""

    def __init__(self, fn: Callable[P, Awaitable[R]], definition: WorkflowDefinition) -> None:
        self.fn = fn
        self.definition = definition
        self.__name__ = definition.name
        self.__doc__ = fn.__doc__
        self.__wrapped__ = fn

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Run the function itself, as a part of the calling workflow."""
        return self.fn(*args, **kwargs)


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
    if target is None:
        return lambda real: defn_now(real, name=name, on_exception=on_exception)
    return defn_now(target, name=name, on_exception=on_exception)


def defn_now(target: Any, *, name: str | None, on_exception: OnException) -> Any:  # noqa: ANN401 - a class or a function
    """`defn` without the sugar."""
    if isinstance(target, type):
        definition = _class_definition(target, name or target.__name__, on_exception)
        register_workflow(definition)
        target.__workflow_definition__ = definition  # type: ignore[attr-defined] # the mark that `definition_of` looks for
        return target
    definition = _function_definition(target, name or target.__name__, on_exception)
    register_workflow(definition)
    return WorkflowFunction(target, definition)


def run(fn: Method) -> Method:
    """Mark the method of a workflow class that is the workflow."""
    fn.__workflow_role__ = ("run", "", "")  # type: ignore[attr-defined] # read by `defn`
    return fn


def init(fn: Method) -> Method:
    """Mark an `__init__` that takes the arguments of the run, because signals may come before `run` begins."""
    fn.__workflow_role__ = ("init", "", "")  # type: ignore[attr-defined] # read by `defn`
    return fn


@overload
def signal(fn: Method) -> Method: ...
@overload
def signal(fn: None = None, *, name: str | None = None, description: str = "") -> Callable[[Method], Method]: ...
def signal(fn: Any = None, *, name: str | None = None, description: str = "") -> Any:
    """Mark a method that receives a signal; sync or async."""
    return _mark("signal", fn, name, description)


@overload
def query(fn: Method) -> Method: ...
@overload
def query(fn: None = None, *, name: str | None = None, description: str = "") -> Callable[[Method], Method]: ...
def query(fn: Any = None, *, name: str | None = None, description: str = "") -> Any:
    """Mark a method that answers a question and changes nothing; not async."""
    return _mark("query", fn, name, description)


# --- activities ----------------------------------------------------------------------------------------------------------


class CeleryTask(Protocol):
    """What a Celery task looks like from here."""

    name: str

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - Celery's signature
        """Send it."""
        ...


ActivityRef = Callable[..., Any] | str | CeleryTask


class ActivityHandle(asyncio.Task[T]):
    """A running activity: await it, gather it, cancel it. An `asyncio.Task` in every respect."""

    _operation: Operation
    _owner: Instance

    def cancel(self, msg: Any = None) -> bool:  # noqa: ANN401 - asyncio's signature
        """Ask the activity to cancel; what the await then gives depends on `cancellation_type`."""
        self._owner.check_writable("cancelling an activity")
        if not self.done() and not self.get_stack():
            # Never started: asyncio would drop the coroutine, and with it the request.
            self._owner.cancel_operation(self._operation)
            return True
        return super().cancel(msg)


def start_activity(
    activity: ActivityRef,
    arg: Any = None,  # noqa: ANN401 - any value that a payload can carry
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    queue: str | None = None,
    result_type: Any = None,  # noqa: ANN401 - a type annotation
    schedule_to_start_timeout: Duration | None = None,
    start_to_close_timeout: Duration | None = None,
    schedule_to_close_timeout: Duration | None = None,
    heartbeat_timeout: Duration | None = None,
    retry_policy: RetryPolicy | None = None,
    cancellation_type: CancellationType = "try_cancel",
    activity_id: str = "",
    summary: str = "",
    priority: int = 0,
) -> ActivityHandle[Any]:
    """Start an activity and return its handle at once.

    `activity` is an `@activity.defn` function, a Celery task, or the name of either. One argument goes as `arg`, several as `args`; `kwargs`
    only to Celery tasks. Timeouts: `schedule_to_start` waiting in the queue, `start_to_close` one attempt, `schedule_to_close` all attempts,
    `heartbeat` the longest silence of an attempt. Without `retry_policy` an activity is tried again for ever with backoff, a Celery task as
    its own settings say. Raises PayloadError at once if an argument cannot be carried.
    """
    call = _activity_call(activity, arg, args)
    options = _ActivityOptions(
        kwargs=kwargs,
        queue=queue,
        result_type=result_type,
        schedule_to_start_timeout=schedule_to_start_timeout,
        start_to_close_timeout=start_to_close_timeout,
        schedule_to_close_timeout=schedule_to_close_timeout,
        heartbeat_timeout=heartbeat_timeout,
        retry_policy=retry_policy,
        cancellation_type=cancellation_type,
        activity_id=activity_id,
        summary=summary,
        priority=priority,
    )
    instance = _instance("start_activity")
    operation = _schedule(instance, call, options)
    handle: ActivityHandle[Any] = ActivityHandle(instance.outcome(operation), loop=instance.loop, name=f"activity {operation.command.type}")
    handle._operation = operation  # noqa: SLF001 - ours; asyncio.Task takes no further arguments
    handle._owner = instance  # noqa: SLF001 - as above
    instance.loop.adopt(handle)
    return handle


async def execute_activity(activity: ActivityRef, arg: Any = None, **options: Any) -> Any:  # noqa: ANN401 - see `start_activity`
    """Start an activity and wait for its result; options as in `start_activity`. Raises ActivityError, its `.cause` says why."""
    args = options.pop("args", None)
    instance = _instance("execute_activity")
    return await instance.outcome(_schedule(instance, _activity_call(activity, arg, args), _ActivityOptions(**options)))


# --- time, chance, conditions ----------------------------------------------------------------------------------------------


async def sleep(duration: Duration, *, summary: str = "") -> None:
    """Wait; survives anything. A duration of 0 is a timer all the same."""
    instance = _instance("sleep")
    seconds = seconds_of(duration, "sleep")
    future: asyncio.Future[None] = instance.loop.create_future()

    def fire() -> None:
        if not future.done():
            future.set_result(None)

    seq = instance.start_timer(instance.loop.now + seconds, fire, summary)
    try:
        await future
    finally:
        instance.cancel_timer(seq)


async def wait_condition(predicate: Callable[[], bool], *, timeout: Duration | None = None) -> None:  # noqa: ASYNC109 - the field's name
    """Wait until `predicate()` holds; it is asked after every change of the run. Raises TimeoutError after `timeout`."""
    future = _instance("wait_condition").wait_condition(predicate)
    if timeout is None:
        await future
        return
    async with asyncio.timeout(seconds_of(timeout, "timeout")):
        await future


def now() -> datetime:
    """The time of this turn, aware UTC; the same again in a replay."""
    return datetime.fromtimestamp(_instance("now").loop.now, tz=UTC)


def time() -> float:
    """The time of this turn, seconds since the epoch."""
    return _instance("time").loop.now


def random() -> _random.Random:
    """The run's own random generator; the same numbers again in a replay."""
    instance = _instance("random")
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
    run_timeout_s: float | None
    history_length: int
    turn: int
    memo: Mapping[str, Any]
    is_continue_as_new_suggested: bool


def info() -> Info:
    """Facts about the running run."""
    instance = _instance("info")
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
        run_timeout_s=started.run_timeout_s,
        history_length=instance.history_events,
        turn=instance.turn + 1,
        memo={key: instance.converter.decode(value, Any) for key, value in (started.memo or {}).items()},
        is_continue_as_new_suggested=instance.history_events >= HISTORY_EVENTS_SUGGESTED,
    )


def continue_as_new(
    arg: Any = None,  # noqa: ANN401 - any value that a payload can carry
    *,
    args: Sequence[Any] | None = None,
    workflow: Any = None,  # noqa: ANN401 - a workflow class, function or name
    queue: str | None = None,
    run_timeout: Duration | None = None,
    memo: Mapping[str, Any] | None = None,
) -> NoReturn:
    """End this run and start the next one of the same id with a fresh history; what is None stays as it is."""
    instance = _instance("continue_as_new")
    instance.check_writable("continue_as_new")
    values = _arguments(arg, args, "continue_as_new")
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


def cancellation_reason() -> str | None:
    """Why the run is to cancel itself ("" if no reason was given); None if nobody asked for it."""
    return _instance("cancellation_reason").cancel_reason


def all_handlers_finished() -> bool:
    """Whether every signal handler has returned; `await wait_condition(all_handlers_finished)` before you return."""
    return _instance("all_handlers_finished").handlers_running == 0


def set_signal_handler(name: str, fn: Callable[..., Any] | None) -> None:
    """Receive signal `name` with `fn` from now on; signals that came earlier are delivered in order. None takes the handler away."""
    _instance("set_signal_handler").set_signal_handler(valid_name("signal name", name), None if fn is None else _loose_handler(name, fn))


def set_query_handler(name: str, fn: Callable[..., Any] | None) -> None:
    """Answer query `name` with `fn` from now on. None takes the handler away."""
    _instance("set_query_handler").set_query_handler(valid_name("query name", name), None if fn is None else _loose_handler(name, fn))


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
            started = _instance("logger").run_started
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
        return _instance("unsafe.is_replaying").replaying

    @staticmethod
    def allowed() -> Any:  # noqa: ANN401 - a context manager
        """Suspend the refusal of non-deterministic calls, for a debugger or a profiler."""
        return guard.allowed()


# --- how it is done ----------------------------------------------------------------------------------------------------------


def definition_of(target: Any) -> WorkflowDefinition:  # noqa: ANN401 - a workflow class, its run method or a workflow function
    """The definition behind what people pass around as "the workflow"."""
    if isinstance(target, WorkflowFunction):
        return target.definition
    definition = getattr(target, "__workflow_definition__", None)
    if isinstance(definition, WorkflowDefinition):
        return definition
    message = f"{target!r} is not a workflow; pass a class or function with @workflow.defn, its run method, or a workflow's name"
    raise InvalidArgument(message)


def seconds_of(duration: Duration, what: str) -> float:
    """A duration in seconds; must not be negative."""
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else float(duration)
    if seconds < 0 or seconds != seconds:  # noqa: PLR0124 - NaN is the only value that differs from itself
        message = f"{what} must not be negative: {duration!r}"
        raise InvalidArgument(message)
    return seconds


@dataclass(frozen=True, slots=True)
class _Call:
    type: str
    values: Sequence[Any]
    signature: CallSignature | None
    task: bool


@dataclass(frozen=True, slots=True)
class _ActivityOptions:
    kwargs: Mapping[str, Any] | None = None
    queue: str | None = None
    result_type: Any = None
    schedule_to_start_timeout: Duration | None = None
    start_to_close_timeout: Duration | None = None
    schedule_to_close_timeout: Duration | None = None
    heartbeat_timeout: Duration | None = None
    retry_policy: RetryPolicy | None = None
    cancellation_type: CancellationType = "try_cancel"
    activity_id: str = ""
    summary: str = ""
    priority: int = 0


_DEFAULTS = _ActivityOptions()
_ABSENT: Any = inspect.Parameter.empty


def _schedule(instance: Instance, call: _Call, options: _ActivityOptions) -> Operation:
    encode = instance.converter
    what = f"activity {call.type!r}"
    returns = options.result_type
    if returns is None:
        returns = call.signature.returns if call.signature is not None else Any
    if options is _DEFAULTS:
        timeouts: tuple[float | None, ...] = (None, None, None, None)
    else:
        if options.queue is not None:
            valid_name("queue", options.queue)
        timeouts = tuple(
            None if value is None else seconds_of(value, name)
            for name, value in (
                ("schedule_to_start_timeout", options.schedule_to_start_timeout),
                ("start_to_close_timeout", options.start_to_close_timeout),
                ("schedule_to_close_timeout", options.schedule_to_close_timeout),
                ("heartbeat_timeout", options.heartbeat_timeout),
            )
        )
    if options.kwargs and not call.task:
        message = f"{what} takes positional arguments only; kwargs are for Celery tasks"
        raise InvalidArgument(message)
    scheduled = ActivityScheduled(
        seq=0,
        activity_id=options.activity_id,
        type=call.type,
        args=tuple(encode.encode_args(call.values, what=what)),
        kwargs={key: encode.encode(value, what=f"{what}: {key}") for key, value in options.kwargs.items()} if options.kwargs else None,
        queue=options.queue,
        task=call.task,
        schedule_to_start_s=timeouts[0],
        start_to_close_s=timeouts[1],
        schedule_to_close_s=timeouts[2],
        heartbeat_s=timeouts[3],
        retry=options.retry_policy,
        priority=options.priority,
        summary=options.summary,
    )
    return instance.schedule_activity(scheduled, returns=returns, cancellation=options.cancellation_type)


def _activity_call(activity: ActivityRef, arg: Any, args: Sequence[Any] | None) -> _Call:  # noqa: ANN401 - any value that a payload can carry
    if isinstance(activity, str):
        return _Call(valid_name("activity type", activity), _arguments(arg, args, activity), None, task=False)
    definition = getattr(activity, "__activity_definition__", None)
    if isinstance(definition, ActivityDefinition):
        values = _arguments(arg, args, definition.name)
        definition.signature.check_count(len(values), what=f"activity {definition.name!r}")
        return _Call(definition.name, values, definition.signature, task=False)
    name = getattr(activity, "name", None)
    if isinstance(name, str) and hasattr(activity, "apply_async"):
        return _Call(name, _arguments(arg, args, name), None, task=True)
    message = f"{activity!r} is not an activity; decorate it with @activity.defn, or pass a Celery task or a name"
    raise InvalidArgument(message)


def _arguments(arg: Any, args: Sequence[Any] | None, what: str) -> Sequence[Any]:  # noqa: ANN401 - any value that a payload can carry
    if args is None:
        return () if arg is None else (arg,)
    if arg is not None:
        message = f"{what}: give either one argument or args=[...], not both"
        raise InvalidArgument(message)
    return list(args)


def _instance(call: str) -> Instance:
    loop = asyncio._get_running_loop()  # noqa: SLF001 - as in `in_workflow`
    if isinstance(loop, WorkflowLoop):
        return cast("Instance", loop.owner)
    message = f"workflow.{call} can only be used inside a workflow"
    raise InvalidArgument(message)


def _mark(role: Literal["signal", "query"], fn: Any, name: str | None, description: str) -> Any:  # noqa: ANN401 - decorator with and without arguments
    def mark(method: Any) -> Any:  # noqa: ANN401 - any method
        method.__workflow_role__ = (role, name or method.__name__, description)
        return method

    return mark if fn is None else mark(fn)


def _loose_handler(name: str, fn: Callable[..., Any]) -> Handler:
    def handler(_workflow: Any, *args: Any) -> Any:  # noqa: ANN401 - whatever the sender sent
        return fn(*args)

    return Handler(name, handler, CallSignature.of(fn, skip_self=False), is_async=is_coroutine_function(fn))


def _class_definition(cls: type, name: str, on_exception: OnException) -> WorkflowDefinition:
    wrong: list[str] = []
    runs: list[Callable[..., Any]] = []
    handlers: dict[str, dict[str, Handler]] = {"signal": {}, "query": {}}
    for attribute, member in inspect.getmembers(cls, inspect.isfunction):
        role, given, description = getattr(member, "__workflow_role__", ("", "", ""))
        if role == "run":
            runs.append(member)
            if not inspect.iscoroutinefunction(member):
                wrong.append(f"@workflow.run method {attribute} must be async")
        elif role == "query" and inspect.iscoroutinefunction(member):
            wrong.append(f"query {given!r} must not be async: it must not wait")
        elif role in handlers:
            if given in handlers[role]:
                wrong.append(f"two methods handle {role} {given!r}")
            handlers[role][given] = Handler(
                valid_name(f"{role} name", given),
                member,
                CallSignature.of(member, skip_self=True),
                is_async=inspect.iscoroutinefunction(member),
                description=description or inspect.getdoc(member) or "",
            )
    if len(runs) != 1:
        wrong.append(f"exactly one method must carry @workflow.run, there are {len(runs)}")
    wrong.extend(find_forbidden(cls))
    if wrong:
        message = f"invalid workflow class {cls.__qualname__}: " + "; ".join(wrong)
        raise InvalidDefinition(message)
    definition = WorkflowDefinition(
        name=valid_name("workflow name", name),
        run=runs[0],
        signature=CallSignature.of(runs[0], skip_self=True),
        cls=cls,
        init_takes_args=getattr(cls.__init__, "__workflow_role__", ("", "", ""))[0] == "init",
        signals=handlers["signal"],
        queries=handlers["query"],
        on_exception=on_exception,
    )
    runs[0].__workflow_definition__ = definition  # type: ignore[attr-defined] # so that `OrderWorkflow.run` names the workflow
    return definition


def _function_definition(fn: Any, name: str, on_exception: OnException) -> WorkflowDefinition:  # noqa: ANN401 - checked here
    wrong = [] if inspect.iscoroutinefunction(fn) else ["it must be an async function"]
    wrong.extend(find_forbidden(fn))
    if wrong:
        message = f"invalid workflow {name}: " + "; ".join(wrong)
        raise InvalidDefinition(message)
    return WorkflowDefinition(valid_name("workflow name", name), fn, CallSignature.of(fn, skip_self=False), on_exception=on_exception)
