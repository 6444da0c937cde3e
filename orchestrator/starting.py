"""Requests to start or to speak to a run, as records of the store; law: what cannot be carried or called is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypedDict

from orchestrator.clock import Clock
from orchestrator.core.calls import check_priority
from orchestrator.core.definitions import WorkflowDefinition, valid_name, workflow_named
from orchestrator.core.messages import encoded, encoded_fields, message
from orchestrator.core.payloads import PayloadConverter
from orchestrator.errors import InvalidArgument
from orchestrator.workflow import Duration, seconds_of
from schemas.history import RunStarted, SignalReceived
from schemas.runs import IdConflictPolicy, IdReusePolicy, NewRun
from schemas.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class _Unset:
    """No argument was given, which is not the same as None."""

    def __repr__(self) -> str:
        return "<no argument>"


UNSET: Final[Any] = _Unset()


class StartOptions(TypedDict, total=False):
    """Options of a start; see `StartRequest` for what they mean."""

    id: str | None
    queue: str | None
    id_reuse_policy: IdReusePolicy
    id_conflict_policy: IdConflictPolicy | None
    run_timeout: Duration | None
    execution_timeout: Duration | None
    memo: Mapping[str, Any] | None
    search_attributes: Mapping[str, Any] | None
    start_delay: Duration | None
    priority: int
    start_signal: str | Callable[..., Any] | None
    start_signal_args: Sequence[Any]
    session: Session | None


@dataclass(frozen=True, slots=True)
class StartRequest:
    """A run that somebody wants.

    `id`: the workflow id, a fresh one when None. `queue`: settings.default_queue when None. `run_timeout` ends one run, `execution_timeout`
    the chain of runs that continue as new; seconds or a timedelta. `memo` and `search_attributes` are shown in lists. With `start_signal` the
    run begins with that signal, or an open run of the same id receives it. Without `id_conflict_policy` an open run of the same id means
    WorkflowAlreadyStarted, or with `start_signal` that it is used. Higher `priority` goes first.
    """

    workflow: Any
    args: Sequence[Any] = ()
    id: str | None = None
    queue: str | None = None
    id_reuse_policy: IdReusePolicy = IdReusePolicy.ALLOW_DUPLICATE
    id_conflict_policy: IdConflictPolicy | None = None
    run_timeout: Duration | None = None
    execution_timeout: Duration | None = None
    memo: Mapping[str, Any] | None = None
    search_attributes: Mapping[str, Any] | None = None
    start_delay: Duration | None = None
    priority: int = 0
    start_signal: str | Callable[..., Any] | None = None
    start_signal_args: Sequence[Any] = ()


def new_run(
    request: StartRequest, *, settings: Settings, converter: PayloadConverter, clock: Clock
) -> tuple[NewRun, WorkflowDefinition | None]:
    """The run to be created, and its definition if this process knows it. Raises InvalidArgument or PayloadError."""
    name, definition = workflow_named(request.workflow)
    run_id = clock.fresh_id()
    now = clock.now()
    signature = None if definition is None else definition.signature
    execution_s = _positive("execution_timeout", request.execution_timeout)
    signal = None
    if request.start_signal is not None:
        spoken = message("signal", request.start_signal, request.start_signal_args, definition, converter)
        signal = SignalReceived(spoken.name, spoken.args, id=clock.fresh_id())
    elif request.start_signal_args:
        raise InvalidArgument("start_signal_args were given without start_signal")
    conflict = request.id_conflict_policy
    if conflict is None:
        conflict = IdConflictPolicy.FAIL if signal is None else IdConflictPolicy.USE_EXISTING
    started = RunStarted(
        workflow_id=clock.fresh_id() if request.id is None else valid_name("workflow id", request.id),
        run_id=run_id,
        type=name,
        queue=settings.default_queue if request.queue is None else valid_name("queue", request.queue),
        args=encoded(request.args, signature, what=f"workflow {name!r}", converter=converter),
        started_at=now,
        first_run_id=run_id,
        execution_deadline_at=None if execution_s is None else now + execution_s,
        run_timeout_s=_positive("run_timeout", request.run_timeout),
        memo=encoded_fields("memo", request.memo, converter),
    )
    run = NewRun(
        started,
        reuse=_policy("id_reuse_policy", request.id_reuse_policy, IdReusePolicy),
        conflict=_policy("id_conflict_policy", conflict, IdConflictPolicy),
        signal=signal,
        start_delay_s=0.0 if request.start_delay is None else seconds_of(request.start_delay, "start_delay"),
        priority=check_priority(request.priority),
        # People search for these with SQL: no codec.
        search_attributes=encoded_fields(
            "search_attributes", request.search_attributes, PayloadConverter(None, converter.payload_bytes_max)
        ),
    )
    return run, definition


def one_or_many(arg: Any, args: Any, what: str) -> Sequence[Any]:  # noqa: ANN401 - any value that a payload can carry
    """The arguments of a call given as `arg` or as `args`."""
    if args is UNSET or args is None:
        return () if arg is UNSET else (arg,)
    if arg is not UNSET:
        raise InvalidArgument(f"{what}: give either one argument or args=[...], not both")
    found: Sequence[Any] = args
    return found


def _positive(what: str, duration: Duration | None) -> float | None:
    if duration is None:
        return None
    seconds = seconds_of(duration, what)
    if not seconds:
        raise InvalidArgument(f"{what} must be longer than nothing")
    return seconds


def _policy(what: str, value: Any, kind: Any) -> Any:  # noqa: ANN401 - either enum
    try:
        return kind(value)
    except ValueError:
        raise InvalidArgument(f"{what}: {value!r} does not exist; there are {', '.join(kind)}") from None
