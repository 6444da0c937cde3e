"""How workflow code calls activities; law: whatever is wrong with a call is told at the call, before anything is asked for.

`orchestrator.workflow` gives these names to authors.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from math import isfinite
from types import FunctionType
from typing import Any, NoReturn, Protocol, Self, TypedDict, TypeVar, Unpack, cast, get_args, overload

from orchestrator.core import guard
from orchestrator.core.definitions import ACTIVITIES, ActivityDefinition, valid_name
from orchestrator.core.instance import Instance
from orchestrator.core.loop import WorkflowLoop, WorkflowTask
from orchestrator.core.operations import CancellationType, Operation
from orchestrator.core.signatures import CallSignature
from orchestrator.errors import InvalidArgument, PayloadMismatch
from schemas.history import ActivityScheduled, RetryPolicy

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")
Duration = float | timedelta

PRIORITY_MAX = 1_000_000  # of a run, either way
SUMMARY_CHARACTERS_MAX = 400  # of the line that people see beside an activity or a timer

UNSET: Any = object()
"""No argument was given; None is an argument like any other."""


class CeleryTask(Protocol):
    """What a Celery task looks like from here."""

    @property
    def name(self) -> str | None:
        """What the worker knows it by."""

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - Celery's signature
        """Send it."""


class ActivityOptions(TypedDict, total=False):
    """How an activity is to be run.

    Timeouts: `schedule_to_start` waiting in the queue, `start_to_close` one attempt, `schedule_to_close` all attempts, `heartbeat` the
    longest silence of an attempt. Without `retry_policy` an activity is tried again for ever with backoff, a Celery task as its own
    settings say. `kwargs` are for Celery tasks only.
    """

    kwargs: Mapping[str, Any] | None
    queue: str | None
    schedule_to_start_timeout: Duration | None
    start_to_close_timeout: Duration | None
    schedule_to_close_timeout: Duration | None
    heartbeat_timeout: Duration | None
    retry_policy: RetryPolicy | None
    cancellation_type: CancellationType
    activity_id: str
    summary: str
    priority: int


class OperationHandle(WorkflowTask[T]):
    """Something that runs elsewhere: await it, gather it, cancel it. An `asyncio.Task` in every respect."""

    operation: Operation
    instance: Instance

    @classmethod
    def of(cls, instance: Instance, operation: Operation, name: str) -> Self:
        """The handle of an operation that was asked for."""
        handle = cls(instance.operations.outcome(operation), loop=instance.loop, name=name)
        handle.operation = operation
        handle.instance = instance
        return handle

    def cancel(self, msg: Any = None) -> bool:  # noqa: ANN401 - asyncio's signature
        """Ask it to cancel; what the await then gives depends on `cancellation_type`."""
        if not self.done():
            self.instance.check_writable("cancelling what runs elsewhere")
            if not self.operation.awaited:
                # Not begun: asyncio would drop the coroutine, and the request with it.
                self.instance.operations.cancel(self.operation, msg if isinstance(msg, str) else "")
                return True
        return super().cancel(msg)


class ActivityHandle(OperationHandle[T]):
    """A running activity."""


@overload
def start_activity(
    activity: Callable[..., Any] | CeleryTask | str,
    arg: Any = ...,  # noqa: ANN401 - any value that a payload can carry
    *,
    args: Sequence[Any] | None = None,
    result_type: type[T],
    **options: Unpack[ActivityOptions],
) -> ActivityHandle[T]: ...
@overload
def start_activity(
    activity: CeleryTask | str,
    arg: Any = ...,  # noqa: ANN401 - any value that a payload can carry
    *,
    args: Sequence[Any] | None = None,
    result_type: Any = None,  # noqa: ANN401 - a type annotation
    **options: Unpack[ActivityOptions],
) -> ActivityHandle[Any]: ...
@overload
def start_activity(activity: Callable[[], Awaitable[R]], **options: Unpack[ActivityOptions]) -> ActivityHandle[R]: ...
@overload
def start_activity(activity: Callable[[A], Awaitable[R]], arg: A, **options: Unpack[ActivityOptions]) -> ActivityHandle[R]: ...
@overload
def start_activity(
    activity: Callable[..., Awaitable[R]], *, args: Sequence[Any], **options: Unpack[ActivityOptions]
) -> ActivityHandle[R]: ...
@overload
def start_activity(activity: Callable[[], R], **options: Unpack[ActivityOptions]) -> ActivityHandle[R]: ...
@overload
def start_activity(activity: Callable[[A], R], arg: A, **options: Unpack[ActivityOptions]) -> ActivityHandle[R]: ...
@overload
def start_activity(activity: Callable[..., R], *, args: Sequence[Any], **options: Unpack[ActivityOptions]) -> ActivityHandle[R]: ...
def start_activity(
    activity: Any,
    arg: Any = UNSET,
    *,
    args: Sequence[Any] | None = None,
    result_type: Any = None,
    **options: Unpack[ActivityOptions],
) -> ActivityHandle[Any]:
    """Start an activity and return its handle at once.

    `activity` is an `@activity.defn` function, a Celery task, or the name of either. One argument goes as `arg`, several as `args`. The
    result is typed by the function's annotation or by `result_type`; that of a Celery task or a name is plain JSON without one. Raises
    PayloadError at once if an argument cannot be carried, InvalidArgument for an option that makes no sense.
    """
    instance = running("start_activity")
    operation = _schedule(instance, activity, arg, args, result_type, options)
    assert isinstance(operation.command, ActivityScheduled), "an activity was scheduled"
    return ActivityHandle.of(instance, operation, f"activity {operation.command.type}")


@overload
async def execute_activity(
    activity: Callable[..., Any] | CeleryTask | str,
    arg: Any = ...,  # noqa: ANN401 - any value that a payload can carry
    *,
    args: Sequence[Any] | None = None,
    result_type: type[T],
    **options: Unpack[ActivityOptions],
) -> T: ...
@overload
async def execute_activity(
    activity: CeleryTask | str,
    arg: Any = ...,  # noqa: ANN401 - any value that a payload can carry
    *,
    args: Sequence[Any] | None = None,
    result_type: Any = None,  # noqa: ANN401 - a type annotation
    **options: Unpack[ActivityOptions],
) -> Any: ...  # noqa: ANN401 - whatever the task returns
@overload
async def execute_activity(activity: Callable[[], Awaitable[R]], **options: Unpack[ActivityOptions]) -> R: ...
@overload
async def execute_activity(activity: Callable[[A], Awaitable[R]], arg: A, **options: Unpack[ActivityOptions]) -> R: ...
@overload
async def execute_activity(activity: Callable[..., Awaitable[R]], *, args: Sequence[Any], **options: Unpack[ActivityOptions]) -> R: ...
@overload
async def execute_activity(activity: Callable[[], R], **options: Unpack[ActivityOptions]) -> R: ...
@overload
async def execute_activity(activity: Callable[[A], R], arg: A, **options: Unpack[ActivityOptions]) -> R: ...
@overload
async def execute_activity(activity: Callable[..., R], *, args: Sequence[Any], **options: Unpack[ActivityOptions]) -> R: ...
async def execute_activity(
    activity: Any,
    arg: Any = UNSET,
    *,
    args: Sequence[Any] | None = None,
    result_type: Any = None,
    **options: Unpack[ActivityOptions],
) -> Any:
    """Start an activity and wait for its result; see `start_activity`.

    Raises ActivityError, its `.cause` says why. A cancelled wait (also by `asyncio.timeout` or `wait_for`) asks the activity to cancel and
    ends with ActivityError caused by CancelledError, or with the activity's true outcome, as `cancellation_type` says.
    """
    instance = running("execute_activity")
    return await instance.operations.outcome(_schedule(instance, activity, arg, args, result_type, options))


def running(call: str) -> Instance:
    """The instance of the workflow that calls. Raises InvalidArgument outside of workflows."""
    loop = asyncio._get_running_loop()  # noqa: SLF001 - documented for exactly this, and never raises
    if isinstance(loop, WorkflowLoop):
        return cast("Instance", loop.owner)
    message = f"workflow.{call} can only be used inside a workflow"
    raise InvalidArgument(message)


def arguments(arg: Any, args: Sequence[Any] | None, what: str) -> Sequence[Any]:  # noqa: ANN401 - any value that a payload can carry
    """What was given as one argument or as several."""
    if args is None:
        return () if arg is UNSET else (arg,)
    if arg is not UNSET:
        message = f"{what}: give either one argument or args=[...], not both"
        raise InvalidArgument(message)
    if isinstance(args, str | bytes) or not isinstance(args, Sequence):
        message = f"{what}: args must be a list of arguments, not {type(args).__name__}; a single argument goes without args="
        raise InvalidArgument(message)
    return args


def seconds_of(duration: Duration, what: str) -> float:
    """A duration in seconds; must be finite and not negative."""
    if isinstance(duration, timedelta):
        seconds = duration.total_seconds()
    elif isinstance(duration, int | float):
        seconds = float(duration)
    else:
        message = f"{what} must be seconds or a timedelta, not {type(duration).__name__}"
        raise InvalidArgument(message)
    if seconds < 0 or not isfinite(seconds):
        message = f"{what} must be finite and not negative: {duration!r}"
        raise InvalidArgument(message)
    return seconds


def check_summary(summary: str) -> str:
    """The summary, if it is a line that people can be shown."""
    if type(summary) is not str or len(summary) > SUMMARY_CHARACTERS_MAX:
        message = f"a summary must be text of at most {SUMMARY_CHARACTERS_MAX} characters"
        raise InvalidArgument(message)
    return summary


def check_known(options: Mapping[str, Any], known: Any, what: str) -> None:  # noqa: ANN401 - a TypedDict
    """Raise TypeError, as Python does, for options that do not exist."""
    unknown = options.keys() - known.__annotations__.keys()
    if unknown:
        message = f"{what}: there is no option {', '.join(sorted(unknown))}; there are {', '.join(known.__annotations__)}"
        raise TypeError(message)


def check_choice(value: object, choices: Any, what: str) -> None:  # noqa: ANN401 - a Literal
    """Raise InvalidArgument unless the value is one of a Literal's."""
    if value not in get_args(choices):
        message = f"{what} must be one of {', '.join(get_args(choices))}, not {value!r}"
        raise InvalidArgument(message)


def check_count(signature: CallSignature, count: int, what: str) -> None:
    """Raise PayloadMismatch unless a function takes that many arguments."""
    if count < signature.required or (count > len(signature.parameters) and signature.rest is None):
        names = ", ".join(parameter.name for parameter in signature.parameters)
        message = f"{what}: {count} argument(s) given, {signature.name}({names}) needs {signature.required} to {len(signature.parameters)}"
        raise PayloadMismatch(message)


def check_priority(value: int) -> int:
    """The priority of a run; raises InvalidArgument."""
    given: object = value
    if not isinstance(given, int) or not -PRIORITY_MAX <= given <= PRIORITY_MAX:
        raise InvalidArgument(f"priority must be a whole number from {-PRIORITY_MAX:,} to {PRIORITY_MAX:,}, not {value!r}")
    return int(given)


def refuse(what: str, reason: str) -> NoReturn:
    """Raise InvalidArgument."""
    message = f"{what}: {reason}"
    raise InvalidArgument(message)


@dataclass(frozen=True, slots=True)
class _Target:
    """What an activity argument stands for."""

    type: str
    signature: CallSignature | None
    task: bool


def _schedule(
    instance: Instance,
    activity: Any,  # noqa: ANN401 - judged by `_target`
    arg: Any,  # noqa: ANN401 - any value that a payload can carry
    args: Sequence[Any] | None,
    result_type: Any,  # noqa: ANN401 - a type annotation
    options: ActivityOptions,
) -> Operation:
    instance.check_writable("an activity")
    target = _target(activity)
    what = f"activity {target.type!r}"
    values = arguments(arg, args, what)
    returns = Any if result_type is None else result_type
    if target.signature is not None:
        check_count(target.signature, len(values), what)
        returns = target.signature.result if result_type is None else result_type
    payloads = tuple(instance.converter.encode_args(values, what=what))
    if options:
        scheduled = _with_options(instance, target, payloads, options, what)
    else:
        seq = instance.take_seq("an activity")
        scheduled = ActivityScheduled(seq, str(seq), target.type, payloads, task=target.task)
    return instance.operations.ask(Operation(scheduled, returns, options.get("cancellation_type", "try_cancel")))


def _with_options(instance: Instance, target: _Target, payloads: tuple[Any, ...], options: ActivityOptions, what: str) -> ActivityScheduled:
    check_known(options, ActivityOptions, what)
    kwargs = options.get("kwargs")
    if kwargs and not target.task and (target.signature is not None or target.type in ACTIVITIES):
        refuse(what, "takes positional arguments only; kwargs are for Celery tasks")
    queue = options.get("queue")
    if queue is not None:
        valid_name(f"{what}: queue", queue)
    activity_id = options.get("activity_id", "")
    if activity_id and instance.operations.is_pending(valid_name(f"{what}: activity_id", activity_id)):
        refuse(what, f"the run waits for an activity with the id {activity_id!r} already")
    retry, priority = options.get("retry_policy"), options.get("priority", 0)
    if retry is not None and not isinstance(retry, RetryPolicy):
        refuse(what, f"retry_policy must be a RetryPolicy, not {type(retry).__name__}")
    if type(priority) is not int:
        refuse(what, f"priority must be a whole number, not {priority!r}")
    check_choice(options.get("cancellation_type", "try_cancel"), CancellationType, f"{what}: cancellation_type")
    encode = instance.converter.encode
    written = {key: encode(value, what=f"{what}: {key}") for key, value in kwargs.items()} if kwargs else None
    summary = check_summary(options.get("summary", ""))
    timeouts = {
        "schedule_to_start_s": options.get("schedule_to_start_timeout"),
        "start_to_close_s": options.get("start_to_close_timeout"),
        "schedule_to_close_s": options.get("schedule_to_close_timeout"),
        "heartbeat_s": options.get("heartbeat_timeout"),
    }
    seconds: dict[str, Any] = {
        name: seconds_of(value, f"{what}: {name.removesuffix('_s')}_timeout") for name, value in timeouts.items() if value is not None
    }
    seq = instance.take_seq("an activity")
    return ActivityScheduled(
        seq,
        activity_id or str(seq),
        target.type,
        payloads,
        written,
        queue,
        target.task,
        retry=retry,
        priority=priority,
        summary=summary,
        **seconds,
    )


def _target(activity: Any) -> _Target:  # noqa: ANN401 - judged here
    if type(activity) is str:
        return _Target(valid_name("activity type", activity), None, task=False)
    if type(activity) is FunctionType:
        definition = getattr(activity, "__activity_definition__", None)
        name = None
    else:
        with guard.allowed():  # a shared task looks for its application when it is first touched
            definition = getattr(activity, "__activity_definition__", None)
            name = getattr(activity, "name", None) if hasattr(activity, "apply_async") else None
    if isinstance(definition, ActivityDefinition):
        return _Target(definition.name, definition.signature, task=False)
    if isinstance(name, str):
        return _Target(name, None, task=True)
    message = f"{activity!r} is not an activity; decorate it with @activity.defn, or pass a Celery task or a name"
    raise InvalidArgument(message)
