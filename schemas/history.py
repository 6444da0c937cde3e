"""The history of a run: what arrived and what its code asked for, turn by turn; law: append-only, and enough to replay the run alone.

A turn consumes *arrivals* and yields *commands*; both are events and are written in that order into one document. The records are frozen
dataclasses with slots rather than pydantic models, because a busy worker makes tens of thousands a second; pydantic and orjson
(de)serialise them all the same.

Times are seconds since the epoch (UTC), durations are seconds. A payload is a JSON value as `core.payloads` encodes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import IntFlag
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

ParentClosePolicy = Literal["terminate", "abandon", "request_cancel"]
"""What becomes of an open child workflow when its parent's run closes, in whatever way."""

Json = Any  # a JSON value: None, bool, int, float, str, list or dict. Python's type system has no finite name for it.


class Flag(IntFlag):
    """Behaviours of the engine that a history depends on; each turn records those it was taken with, replay obeys the record."""

    NONE = 0
    #: All arrivals of a turn are applied before author code runs once (temporal-semantics: "single batch").
    SINGLE_BATCH = 1


FLAGS_NOW = Flag.SINGLE_BATCH


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception as history carries it; `kind` names the class in `orchestrator.errors` that it becomes again."""

    kind: Literal[
        "application", "canceled", "terminated", "timeout", "worker_lost", "activity", "child", "already_started", "not_delivered"
    ]
    message: str
    type: str = ""  # application: the exception's type name; timeout: which deadline
    stack: str = ""
    non_retryable: bool = False
    next_retry_delay_s: float | None = None
    details: tuple[Json, ...] = ()
    activity_type: str = ""
    activity_id: str = ""
    retry_state: str = ""
    workflow_type: str = ""  # this and the next two: of the other run, where the failure is about one
    workflow_id: str = ""
    run_id: str = ""
    cause: Failure | None = None


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how fast a failed activity is tried again: delay n = initial_interval * backoff_coefficient ** (n - 1), capped.

    Intervals are seconds or a `timedelta`; they are kept as seconds.
    """

    initial_interval: float | timedelta = 1.0
    backoff_coefficient: float = 2.0
    maximum_interval: float | timedelta | None = None  # None: a hundred times the initial interval
    maximum_attempts: int = 0  # 0: no limit
    non_retryable_error_types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Normalise to seconds and refuse what makes no sense."""
        for name in ("initial_interval", "maximum_interval"):
            value = getattr(self, name)
            if isinstance(value, timedelta):
                object.__setattr__(self, name, value.total_seconds())
        object.__setattr__(self, "non_retryable_error_types", tuple(self.non_retryable_error_types))
        if self.initial_interval_s < 0 or self.maximum_interval_s < self.initial_interval_s:
            message = "RetryPolicy: the intervals must not be negative, and maximum_interval not below initial_interval"
            raise ValueError(message)
        if self.backoff_coefficient < 1 or self.maximum_attempts < 0:
            message = "RetryPolicy: backoff_coefficient must be at least 1 and maximum_attempts at least 0 (0 means no limit)"
            raise ValueError(message)

    @property
    def initial_interval_s(self) -> float:
        """The first delay in seconds."""
        return float(self.initial_interval)  # type: ignore[arg-type] # __post_init__ made it a number

    @property
    def maximum_interval_s(self) -> float:
        """The longest delay in seconds."""
        return self.initial_interval_s * 100 if self.maximum_interval is None else float(self.maximum_interval)  # type: ignore[arg-type] # as above


# --- arrivals: what the inbox brought ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunStarted:
    """The first arrival of every run; holds all that `workflow.info()` tells, so that a history replays without its row."""

    workflow_id: str
    run_id: str
    type: str
    queue: str
    args: tuple[Json, ...] = ()
    attempt: int = 1
    started_at: float = 0.0
    first_run_id: str = ""
    continued_from: str | None = None
    parent_id: str | None = None
    parent_run_id: str | None = None
    execution_deadline_at: float | None = None
    run_timeout_s: float | None = None
    retry: RetryPolicy | None = None
    memo: dict[str, Json] | None = None
    last_failure: Failure | None = None
    kind: Literal["run_started"] = "run_started"


@dataclass(frozen=True, slots=True)
class SignalReceived:
    """Somebody sent a signal."""

    name: str
    args: tuple[Json, ...] = ()
    id: str = ""  # the sender's request id; a repeated send with the same id arrives once
    kind: Literal["signal_received"] = "signal_received"


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody asked the run to cancel itself; the code decides what that means."""

    reason: str = ""
    kind: Literal["cancel_requested"] = "cancel_requested"


@dataclass(frozen=True, slots=True)
class ActivityCompleted:
    """An activity has a result."""

    seq: int
    result: Json = None
    attempt: int = 1
    kind: Literal["activity_completed"] = "activity_completed"


@dataclass(frozen=True, slots=True)
class ActivityFailed:
    """An activity failed for good; `retry_state` says why it is not tried again (see `core.retries.RetryState`)."""

    seq: int
    failure: Failure
    retry_state: str
    attempt: int = 1
    kind: Literal["activity_failed"] = "activity_failed"


@dataclass(frozen=True, slots=True)
class ActivityCanceled:
    """An activity confirmed that it was cancelled."""

    seq: int
    details: tuple[Json, ...] = ()
    attempt: int = 1
    kind: Literal["activity_canceled"] = "activity_canceled"


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer's time has come."""

    seq: int
    kind: Literal["timer_fired"] = "timer_fired"


@dataclass(frozen=True, slots=True)
class ChildStarted:
    """A child workflow exists; told only to code that waits for it (`ChildScheduled.announced`)."""

    seq: int
    run_id: str
    kind: Literal["child_started"] = "child_started"


@dataclass(frozen=True, slots=True)
class ChildStartFailed:
    """A child workflow was not started: a run of that id stands in the way, and `failure` says which."""

    seq: int
    failure: Failure
    kind: Literal["child_start_failed"] = "child_start_failed"


@dataclass(frozen=True, slots=True)
class ChildCompleted:
    """A child workflow has a result; `run_id` is the last run of its chain."""

    seq: int
    result: Json = None
    run_id: str = ""
    kind: Literal["child_completed"] = "child_completed"


@dataclass(frozen=True, slots=True)
class ChildFailed:
    """A child workflow closed without a result; the kind of `failure` says whether it failed, was cancelled, terminated or timed out."""

    seq: int
    failure: Failure
    run_id: str = ""
    kind: Literal["child_failed"] = "child_failed"


@dataclass(frozen=True, slots=True)
class MessageDelivered:
    """A signal or cancel request to another run is in its inbox."""

    seq: int
    run_id: str
    kind: Literal["message_delivered"] = "message_delivered"


@dataclass(frozen=True, slots=True)
class MessageFailed:
    """A signal or cancel request to another run found no such open run."""

    seq: int
    failure: Failure
    kind: Literal["message_failed"] = "message_failed"


# --- commands: what author code asked for; each becomes exactly one event --------------------------------------------------


@dataclass(frozen=True, slots=True)
class ActivityScheduled:
    """Run an activity. `task` marks a Celery task, which goes to its own queue as its own message."""

    seq: int
    activity_id: str
    type: str
    args: tuple[Json, ...] = ()
    kwargs: dict[str, Json] | None = None  # Celery tasks only
    queue: str | None = None  # None: the run's own queue, or what Celery's routing says for a task
    task: bool = False
    schedule_to_start_s: float | None = None
    start_to_close_s: float | None = None
    schedule_to_close_s: float | None = None
    heartbeat_s: float | None = None
    retry: RetryPolicy | None = None  # None: RetryPolicy() for an activity, the task's own settings for a Celery task
    priority: int = 0
    summary: str = ""
    kind: Literal["activity_scheduled"] = "activity_scheduled"


@dataclass(frozen=True, slots=True)
class ActivityCancelRequested:
    """Cancel an activity; `wait` keeps it pending until its real outcome is known, otherwise the code has moved on already."""

    seq: int
    wait: bool = False
    kind: Literal["activity_cancel_requested"] = "activity_cancel_requested"


@dataclass(frozen=True, slots=True)
class TimerStarted:
    """Wake the code at `fire_at`."""

    seq: int
    fire_at: float
    summary: str = ""
    kind: Literal["timer_started"] = "timer_started"


@dataclass(frozen=True, slots=True)
class TimerCanceled:
    """The code no longer waits for this timer."""

    seq: int
    kind: Literal["timer_canceled"] = "timer_canceled"


@dataclass(frozen=True, slots=True)
class ChildScheduled:
    """Start a run of its own that reports back. `run_id` is given to it as the turn is committed, and is no part of its identity."""

    seq: int
    workflow_id: str
    type: str
    args: tuple[Json, ...] = ()
    queue: str | None = None  # None: the parent's own queue
    announced: bool = False  # the code waits for the start itself
    parent_close: ParentClosePolicy = "terminate"
    reuse: str = "allow_duplicate"  # an `IdReusePolicy`
    run_timeout_s: float | None = None
    execution_timeout_s: float | None = None
    memo: dict[str, Json] | None = None
    search_attributes: dict[str, Json] | None = None
    priority: int | None = None  # None: the parent's own
    summary: str = ""
    run_id: str = ""
    kind: Literal["child_scheduled"] = "child_scheduled"


@dataclass(frozen=True, slots=True)
class ChildCancelRequested:
    """Ask a child workflow to cancel itself; `wait` keeps it pending until its real outcome is known."""

    seq: int
    reason: str = ""
    wait: bool = False
    kind: Literal["child_cancel_requested"] = "child_cancel_requested"


@dataclass(frozen=True, slots=True)
class SignalSent:
    """Signal another run: the open one of the workflow id, exactly `run_id`, or the open one of the chain that began with `first_run_id`."""

    seq: int
    workflow_id: str
    name: str
    args: tuple[Json, ...] = ()
    run_id: str | None = None
    first_run_id: str | None = None
    kind: Literal["signal_sent"] = "signal_sent"


@dataclass(frozen=True, slots=True)
class CancelSent:
    """Ask another run to cancel itself; addressed as `SignalSent`."""

    seq: int
    workflow_id: str
    reason: str = ""
    run_id: str | None = None
    first_run_id: str | None = None
    kind: Literal["cancel_sent"] = "cancel_sent"


@dataclass(frozen=True, slots=True)
class PatchMarked:
    """The run takes the new side of a change of its code; a deprecated mark may be passed over."""

    id: str
    deprecated: bool = False
    kind: Literal["patch_marked"] = "patch_marked"


@dataclass(frozen=True, slots=True)
class RunCompleted:
    """The run returned."""

    result: Json = None
    kind: Literal["run_completed"] = "run_completed"


@dataclass(frozen=True, slots=True)
class RunFailed:
    """The run raised."""

    failure: Failure
    kind: Literal["run_failed"] = "run_failed"


@dataclass(frozen=True, slots=True)
class RunCanceled:
    """The run accepted its cancellation."""

    failure: Failure
    kind: Literal["run_canceled"] = "run_canceled"


@dataclass(frozen=True, slots=True)
class RunContinued:
    """The run goes on as a new run with a fresh history; None keeps the value of this run."""

    args: tuple[Json, ...] = ()
    type: str | None = None
    queue: str | None = None
    run_timeout_s: float | None = None
    memo: dict[str, Json] | None = None
    kind: Literal["run_continued"] = "run_continued"


# --- closes that no author code asked for ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunTerminated:
    """Somebody ended the run without asking its code."""

    reason: str = ""
    kind: Literal["run_terminated"] = "run_terminated"


@dataclass(frozen=True, slots=True)
class RunTimedOut:
    """The run's own deadline passed."""

    timeout_s: float
    kind: Literal["run_timed_out"] = "run_timed_out"


Arrival = (
    RunStarted
    | SignalReceived
    | CancelRequested
    | ActivityCompleted
    | ActivityFailed
    | ActivityCanceled
    | TimerFired
    | ChildStarted
    | ChildStartFailed
    | ChildCompleted
    | ChildFailed
    | MessageDelivered
    | MessageFailed
)
Terminal = RunCompleted | RunFailed | RunCanceled | RunContinued
Message = SignalSent | CancelSent
Scheduled = ActivityScheduled | ChildScheduled | Message
Command = Scheduled | ActivityCancelRequested | ChildCancelRequested | TimerStarted | TimerCanceled | PatchMarked | Terminal
Close = RunTerminated | RunTimedOut
Event = Arrival | Command | Close

ARRIVALS = (
    RunStarted,
    SignalReceived,
    CancelRequested,
    ActivityCompleted,
    ActivityFailed,
    ActivityCanceled,
    TimerFired,
    ChildStarted,
    ChildStartFailed,
    ChildCompleted,
    ChildFailed,
    MessageDelivered,
    MessageFailed,
)
TERMINALS = (RunCompleted, RunFailed, RunCanceled, RunContinued)
CLOSES = (RunTerminated, RunTimedOut)

EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])
EVENTS: TypeAdapter[list[Event]] = TypeAdapter(list[Annotated[Event, Field(discriminator="kind")]])


@dataclass(frozen=True, slots=True)
class Turn:
    """One entry of a run's history."""

    turn: int  # dense from 1
    at: float  # when it was taken: `workflow.now()` inside it
    arrivals: tuple[Arrival, ...]
    commands: tuple[Command | Close, ...]
    flags: int = FLAGS_NOW
    worker: str = ""
    build: str = ""
