"""How workflow code starts child workflows and speaks to other runs; law: as calls of activities, what is wrong is told at the call.

`orchestrator.workflow` gives these names to authors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar, Unpack, overload

from orchestrator.core.calls import (
    UNSET,
    Duration,
    OperationHandle,
    arguments,
    check_choice,
    check_count,
    check_known,
    check_priority,
    check_summary,
    refuse,
    running,
    seconds_of,
)
from orchestrator.core.definitions import WorkflowDefinition, WorkflowFunction, definition_of, valid_name
from orchestrator.core.instance import Instance
from orchestrator.core.messages import encoded_fields, message
from orchestrator.core.operations import ChildCancellationType, Operation
from orchestrator.core.payloads import PayloadConverter
from schemas.history import CancelSent, ChildScheduled, ParentClosePolicy, SignalSent
from schemas.runs import IdReusePolicy

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")


class ChildWorkflowOptions(TypedDict, total=False):
    """How a child workflow is to be run.

    `id`: its workflow id, one of its own if not given. `queue` and `priority`: the parent's if not given. `parent_close_policy` says what
    becomes of it when this run closes while it is open, also by continuing as new: "terminate", "request_cancel" or "abandon" (it goes
    on). `cancellation_type`: what cancelling the call does, "wait_cancellation_completed" if not given. `run_timeout` ends one run,
    `execution_timeout` the chain of runs that continue as new.
    """

    id: str
    queue: str | None
    id_reuse_policy: IdReusePolicy
    run_timeout: Duration | None
    execution_timeout: Duration | None
    cancellation_type: ChildCancellationType
    parent_close_policy: ParentClosePolicy
    memo: Mapping[str, Any] | None
    search_attributes: Mapping[str, Any] | None
    priority: int | None
    summary: str


class ChildWorkflowHandle(OperationHandle[T]):
    """A child workflow that was started: await its result, gather it, cancel it, signal it. An `asyncio.Task` in every respect."""

    _first_run_id = ""

    @property
    def id(self) -> str:
        """Its workflow id."""
        return _command(self.operation).workflow_id

    @property
    def first_execution_run_id(self) -> str:
        """The run id of its first run; it changes when the child continues as new, this does not."""
        return self._first_run_id

    async def signal(self, signal: str | Callable[..., Any], arg: Any = UNSET, *, args: Sequence[Any] | None = None) -> None:  # noqa: ANN401 - any value that a payload can carry
        """Send it a signal, exactly once; when this returns it is in the child's inbox. Raises MessageNotDelivered if the child has closed."""
        await _signal(self.instance, self.id, signal, arguments(arg, args, "signal"), first_run_id=self._first_run_id)


class ExternalWorkflowHandle:
    """Another run, known by its id: the open one of the workflow id, or exactly that of `run_id`."""

    def __init__(self, workflow_id: str, run_id: str | None = None) -> None:
        self._id = valid_name("workflow id", workflow_id)
        self._run_id = None if run_id is None else valid_name("run id", run_id)

    @property
    def id(self) -> str:
        """The workflow id."""
        return self._id

    @property
    def run_id(self) -> str | None:
        """The run id; None when the handle means whatever run of the id is open."""
        return self._run_id

    async def signal(self, signal: str | Callable[..., Any], arg: Any = UNSET, *, args: Sequence[Any] | None = None) -> None:  # noqa: ANN401 - any value that a payload can carry
        """Send it a signal, exactly once; when this returns it is in the run's inbox. Raises MessageNotDelivered if there is no such open run."""
        await _signal(running("signal"), self._id, signal, arguments(arg, args, "signal"), run_id=self._run_id)

    async def cancel(self, reason: str = "") -> None:
        """Ask it to cancel itself; returns when the request is in its inbox. Raises MessageNotDelivered if there is no such open run."""
        instance = running("cancel")
        seq = instance.take_seq("a cancel request")
        await instance.operations.sent(instance.operations.ask(Operation(CancelSent(seq, self._id, str(reason), self._run_id))))


def get_external_workflow_handle(id: str, run_id: str | None = None) -> ExternalWorkflowHandle:  # noqa: A002 - the field's name
    """The handle of another run, for signals and cancel requests. Nothing is looked up; also from outside of its parent."""
    running("get_external_workflow_handle")
    return ExternalWorkflowHandle(id, run_id)


@overload
async def start_child_workflow(workflow: WorkflowFunction[[], R], **options: Unpack[ChildWorkflowOptions]) -> ChildWorkflowHandle[R]: ...
@overload
async def start_child_workflow(
    workflow: WorkflowFunction[[A], R], arg: A, **options: Unpack[ChildWorkflowOptions]
) -> ChildWorkflowHandle[R]: ...
@overload
async def start_child_workflow(
    workflow: Callable[[Any], Awaitable[R]], **options: Unpack[ChildWorkflowOptions]
) -> ChildWorkflowHandle[R]: ...
@overload
async def start_child_workflow(
    workflow: Callable[[Any, A], Awaitable[R]], arg: A, **options: Unpack[ChildWorkflowOptions]
) -> ChildWorkflowHandle[R]: ...
@overload
async def start_child_workflow(
    workflow: Callable[..., Awaitable[R]], *, args: Sequence[Any], **options: Unpack[ChildWorkflowOptions]
) -> ChildWorkflowHandle[R]: ...
@overload
async def start_child_workflow(
    workflow: str | type[Any],
    arg: Any = ...,  # noqa: ANN401 - any value that a payload can carry
    *,
    args: Sequence[Any] | None = None,
    result_type: type[T],
    **options: Unpack[ChildWorkflowOptions],
) -> ChildWorkflowHandle[T]: ...
@overload
async def start_child_workflow(
    workflow: str | type[Any],
    arg: Any = ...,  # noqa: ANN401 - any value that a payload can carry
    *,
    args: Sequence[Any] | None = None,
    result_type: None = None,
    **options: Unpack[ChildWorkflowOptions],
) -> ChildWorkflowHandle[Any]: ...
async def start_child_workflow(
    workflow: Any,
    arg: Any = UNSET,
    *,
    args: Sequence[Any] | None = None,
    result_type: Any = None,
    **options: Unpack[ChildWorkflowOptions],
) -> ChildWorkflowHandle[Any]:
    """Start a child workflow; returns its handle when it exists.

    `workflow` is a workflow class, its run method, a workflow function or the name of one. Raises WorkflowAlreadyStarted if its id is taken,
    InvalidArgument, PayloadError. Await the handle for the result; see `execute_child_workflow`.
    """
    instance = running("start_child_workflow")
    child = _schedule(instance, workflow, arg, args, result_type, options, announced=True)
    first_run_id = await instance.operations.started(child)
    handle: ChildWorkflowHandle[Any] = ChildWorkflowHandle.of(instance, child, f"child workflow {_command(child).type}")
    handle._first_run_id = first_run_id  # noqa: SLF001 - ours; asyncio.Task takes no further arguments
    return handle


@overload
async def execute_child_workflow(workflow: WorkflowFunction[[], R], **options: Unpack[ChildWorkflowOptions]) -> R: ...
@overload
async def execute_child_workflow(workflow: WorkflowFunction[[A], R], arg: A, **options: Unpack[ChildWorkflowOptions]) -> R: ...
@overload
async def execute_child_workflow(workflow: Callable[[Any], Awaitable[R]], **options: Unpack[ChildWorkflowOptions]) -> R: ...
@overload
async def execute_child_workflow(workflow: Callable[[Any, A], Awaitable[R]], arg: A, **options: Unpack[ChildWorkflowOptions]) -> R: ...
@overload
async def execute_child_workflow(
    workflow: Callable[..., Awaitable[R]], *, args: Sequence[Any], **options: Unpack[ChildWorkflowOptions]
) -> R: ...
@overload
async def execute_child_workflow(
    workflow: str | type[Any],
    arg: Any = ...,  # noqa: ANN401 - any value that a payload can carry
    *,
    args: Sequence[Any] | None = None,
    result_type: type[T],
    **options: Unpack[ChildWorkflowOptions],
) -> T: ...
@overload
async def execute_child_workflow(
    workflow: str | type[Any],
    arg: Any = ...,  # noqa: ANN401 - any value that a payload can carry
    *,
    args: Sequence[Any] | None = None,
    result_type: None = None,
    **options: Unpack[ChildWorkflowOptions],
) -> Any: ...  # noqa: ANN401 - only other processes know the type
async def execute_child_workflow(
    workflow: Any,
    arg: Any = UNSET,
    *,
    args: Sequence[Any] | None = None,
    result_type: Any = None,
    **options: Unpack[ChildWorkflowOptions],
) -> Any:
    """Start a child workflow and wait for its result, or that of the last of the runs it continues as.

    Raises ChildWorkflowError, its `.cause` says why: the child's failure, CancelledError, TerminatedError, TimeoutError; and as
    `start_child_workflow`. A cancelled wait asks the child to cancel and ends with ChildWorkflowError caused by CancelledError, or with the
    child's true outcome, as `cancellation_type` says.
    """
    instance = running("execute_child_workflow")
    child = _schedule(instance, workflow, arg, args, result_type, options, announced=False)
    return await instance.operations.outcome(child)


def _schedule(
    instance: Instance,
    workflow: Any,  # noqa: ANN401 - judged by `definition_of`
    arg: Any,  # noqa: ANN401 - any value that a payload can carry
    args: Sequence[Any] | None,
    result_type: Any,  # noqa: ANN401 - a type annotation
    options: ChildWorkflowOptions,
    *,
    announced: bool,
) -> Operation:
    instance.check_writable("a child workflow")
    definition: WorkflowDefinition | None = None
    if type(workflow) is str:
        name = valid_name("workflow type", workflow)
    else:
        definition = definition_of(workflow)
        name = definition.name
    what = f"child workflow {name!r}"
    values = arguments(arg, args, what)
    returns = Any if result_type is None else result_type
    if definition is not None:
        check_count(definition.signature, len(values), what)
        returns = definition.signature.result if result_type is None else result_type
    check_known(options, ChildWorkflowOptions, what)
    chosen = _chosen(instance.converter, options, what)
    payloads = tuple(instance.converter.encode_args(values, what=what))
    seq = instance.take_seq(what)
    # Not a random id: this one says whose child it is, and is as unique.
    workflow_id = options.get("id") or f"{instance.run_started.run_id}-{seq}"
    command = ChildScheduled(seq, workflow_id, name, payloads, announced=announced, **chosen)
    cancellation = options.get("cancellation_type", "wait_cancellation_completed")
    return instance.operations.ask(Operation(command, returns, cancellation, start=Operation(command) if announced else None))


def _chosen(converter: PayloadConverter, options: ChildWorkflowOptions, what: str) -> dict[str, Any]:
    """The fields of a command that options give."""
    if "id" in options:
        valid_name(f"{what}: id", options["id"])
    queue, priority = options.get("queue"), options.get("priority")
    reuse = options.get("id_reuse_policy", IdReusePolicy.ALLOW_DUPLICATE)
    if reuse not in set(IdReusePolicy):
        refuse(what, f"id_reuse_policy must be one of {', '.join(IdReusePolicy)}, not {reuse!r}")
    check_choice(options.get("cancellation_type", "try_cancel"), ChildCancellationType, f"{what}: cancellation_type")
    check_choice(options.get("parent_close_policy", "terminate"), ParentClosePolicy, f"{what}: parent_close_policy")
    return {
        "queue": None if queue is None else valid_name(f"{what}: queue", queue),
        "parent_close": options.get("parent_close_policy", "terminate"),
        "reuse": str(reuse),
        "run_timeout_s": _positive(options.get("run_timeout"), f"{what}: run_timeout"),
        "execution_timeout_s": _positive(options.get("execution_timeout"), f"{what}: execution_timeout"),
        "memo": encoded_fields(f"{what}: memo", options.get("memo"), converter),
        "search_attributes": encoded_fields(
            f"{what}: search_attributes", options.get("search_attributes"), PayloadConverter(None, converter.payload_bytes_max)
        ),
        "priority": None if priority is None else check_priority(priority),
        "summary": check_summary(options.get("summary", "")),
    }


def _positive(duration: Duration | None, what: str) -> float | None:
    if duration is None:
        return None
    seconds = seconds_of(duration, what)
    if not seconds:
        refuse(what, "it must be longer than nothing")
    return seconds


def _command(child: Operation) -> ChildScheduled:
    assert isinstance(child.command, ChildScheduled), "a child was scheduled"
    return child.command


async def _signal(
    instance: Instance,
    workflow_id: str,
    signal: str | Callable[..., Any],
    args: Sequence[Any],
    *,
    run_id: str | None = None,
    first_run_id: str | None = None,
) -> None:
    spoken = message("signal", signal, args, None, instance.converter)
    seq = instance.take_seq("a signal to another run")
    command = SignalSent(seq, workflow_id, spoken.name, spoken.args, run_id, first_run_id)
    await instance.operations.sent(instance.operations.ask(Operation(command)))
