"""What requests and answers look like; law: unknown keys and wrong types are refused, times are RFC 3339 in UTC, payloads are any JSON.

A body says exactly what is accepted: a number that is written as text is refused, as its schema says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from fastapi import Query
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema

from orchestrator.clock import utc
from orchestrator.core.calls import PRIORITY_MAX
from orchestrator.core.definitions import ID_CHARACTERS_MAX
from schemas.history import Failure, Json, Turn
from schemas.runs import DeadLetter, PendingActivity, RunDescription

NAME_PATTERN = r"^[^\x00-\x1f\x7f]*[^\x00-\x20\x7f][^\x00-\x1f\x7f]*$"  # not blank, no control characters; the core is stricter
ARGS_MAX = 100
REASON_CHARACTERS_MAX = 2_000
WAIT_MAX_S = 60.0

_RFC3339 = re.compile(r"^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)$", re.ASCII)


def rfc3339(seconds: float) -> str:
    """A time as JSON carries it."""
    return utc(seconds).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _written(value: object) -> object:
    """A time as text with a date and a zone, and no number that could mean one."""
    if not isinstance(value, str) or _RFC3339.match(value) is None:
        raise ValueError("must be a time like 2026-11-25T10:00:00Z")
    return value


def whole(value: object) -> object:
    """JSON knows no integers: 2.0 is one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Moment = Annotated[
    float, PlainSerializer(rfc3339, return_type=str), WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization")
]
Instant = Annotated[datetime, BeforeValidator(_written)]
Whole = Annotated[int, BeforeValidator(whole)]
Name = Annotated[str, Field(min_length=1, max_length=ID_CHARACTERS_MAX, pattern=NAME_PATTERN)]
KEYS: dict[str, Any] = {"propertyNames": {"minLength": 1, "maxLength": ID_CHARACTERS_MAX, "pattern": NAME_PATTERN}}
Seconds = Annotated[float, Field(gt=0, le=10 * 365 * 86400, allow_inf_nan=False)]
Wait = Annotated[float, Query(ge=0, le=WAIT_MAX_S, description="seconds to wait for it, at most")]


class Asked(BaseModel):
    """The base of what callers send."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Told(BaseModel):
    """The base of what they get."""

    model_config = ConfigDict(frozen=True, from_attributes=True)


# --- workflows -----------------------------------------------------------------------------------------------------------------


class WorkflowStart(Asked):
    """A workflow to be started. An id that names what it is about makes starting it repeatable."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"type": "Greeting", "args": ["Ada"], "id": "greeting-1", "id_conflict_policy": "use_existing"}]}
    )

    type: Name = Field(description="the name of the workflow type")
    args: list[Json] = Field([], max_length=ARGS_MAX, description="its arguments")
    id: Name | None = Field(None, description="the workflow id; a fresh one if not given")
    queue: Name | None = Field(None, description="the default queue if not given")
    run_timeout_s: Seconds | None = Field(None, description="ends one run")
    execution_timeout_s: Seconds | None = Field(None, description="ends the chain of runs that continue as new")
    start_delay_s: Seconds | None = Field(None, description="waits for this long before it begins")
    priority: Whole = Field(0, ge=-PRIORITY_MAX, le=PRIORITY_MAX, description="higher goes first")
    memo: dict[Name, Json] = Field({}, max_length=ARGS_MAX, json_schema_extra=KEYS)
    search_attributes: dict[Name, Json] = Field({}, max_length=ARGS_MAX, json_schema_extra=KEYS)
    id_reuse_policy: Literal["allow_duplicate", "allow_duplicate_failed_only", "reject_duplicate"] = "allow_duplicate"
    id_conflict_policy: Literal["fail", "use_existing", "terminate_existing"] = "fail"


class Arguments(Asked):
    """What a signal brings."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"args": [{"approved": True}]}]})

    args: list[Json] = Field([], max_length=ARGS_MAX)


class Reason(Asked):
    """Why; it is kept in the history."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "the order was withdrawn"}]})

    reason: str = Field("", max_length=REASON_CHARACTERS_MAX)


class WorkflowStarted(Told):
    """The run that a start made, or found."""

    workflow_id: str
    run_id: str
    created: bool = Field(description="false: it was there already")


class WorkflowView(Told):
    """One run of a workflow."""

    workflow_id: str
    run_id: str
    type: str
    queue: str
    status: str
    started_at: Moment
    closed_at: Moment | None
    turn: int
    history_events: int
    attempt: int
    priority: int
    parent_id: str | None
    continued_from: str | None
    continued_as: str | None
    memo: dict[str, Json]
    search_attributes: dict[str, Json]
    result: Json = None
    failure: Json = None
    stuck: Json = Field(None, description="why the last turn could not be taken")
    turn_failures: int
    deadline_at: Moment | None

    @classmethod
    def of(cls, run: RunDescription) -> Self:
        """The view of a run."""
        return cls(**_facts(run, cls))


class WorkflowPage(Told):
    """One page of the list."""

    workflows: list[WorkflowView]
    next_page: str | None = Field(description="to give as `page_after`; null if this page is not full")


class ActivityView(Told):
    """An activity that a run waits for."""

    activity_id: str
    type: str
    queue: str
    state: str
    attempt: int
    scheduled_at: Moment
    started_at: Moment | None
    due_at: Moment
    worker: str | None
    last_failure: Json = None

    @classmethod
    def of(cls, pending: PendingActivity) -> Self:
        """The view of a pending activity."""
        return cls(
            activity_id=pending.scheduled.activity_id,
            type=pending.scheduled.type,
            queue=pending.queue,
            state=str(pending.state),
            attempt=pending.key.attempt,
            scheduled_at=pending.scheduled_at,
            started_at=pending.started_at,
            due_at=pending.due_at,
            worker=pending.worker,
            last_failure=failure(pending.last_failure),
        )


class WorkflowDetails(WorkflowView):
    """One run, and what it waits for."""

    pending_activities: list[ActivityView] = []


class TurnView(Told):
    """One turn: what arrived, and what the code asked for."""

    turn: int
    at: Moment
    worker: str
    build: str
    arrivals: list[dict[str, Json]]
    commands: list[dict[str, Json]]

    @classmethod
    def of(cls, turn: Turn) -> Self:
        """The view of a turn."""
        return cls(
            turn=turn.turn,
            at=turn.at,
            worker=turn.worker,
            build=turn.build,
            arrivals=[asdict(event) for event in turn.arrivals],
            commands=[asdict(event) for event in turn.commands],
        )


class History(Told):
    """A page of the turns of a run, oldest first."""

    workflow_id: str
    run_id: str
    turns: list[TurnView]
    next_turn: int | None = Field(description="to give as `after_turn`; null if this page is not full")


class WorkflowResult(Told):
    """How a run ended, if it has."""

    workflow_id: str
    run_id: str
    status: str
    result: Json = None
    failure: Json = None


class Answer(Told):
    """What a query brought."""

    result: Json = None


class Accepted(Told):
    """What was asked for is stored, and will be done."""

    workflow_id: str
    accepted: str


# --- the rest ------------------------------------------------------------------------------------------------------------------


class Check(Told):
    """How something that we need answers."""

    ok: bool
    problem: str = ""


class HealthView(Told):
    """Whether the service lives, and what it misses."""

    status: Literal["ok", "degraded"]
    name: str
    version: str
    checks: dict[str, Check]


class DeadLetterView(Told):
    """Something that was set aside because it could not be processed."""

    id: str
    kind: str
    reason: str
    at: Moment
    run_id: str | None
    seq: int | None
    document: Json

    @classmethod
    def of(cls, letter: DeadLetter) -> Self:
        """The view of a dead letter."""
        return cls(**_facts(letter, cls))


class DeadLetterPage(Told):
    """One page of dead letters, newest first."""

    dead_letters: list[DeadLetterView]
    next_page: str | None = Field(description="to give as `after`; null if this page is not full")


class ReplayedView(Told):
    """What was sent back."""

    id: str
    told: str


class Dropped(Told):
    """What was dropped for good."""

    id: str
    dropped: Literal[True] = True


class AuditView(Told):
    """Who did what, and whether it was allowed."""

    id: str
    at: Moment
    actor: str
    action: str
    target: str
    outcome: str
    params: dict[str, Json]
    trace_id: str


class AuditPage(Told):
    """One page of the audit, newest first."""

    entries: list[AuditView]
    next_page: int | None = Field(description="to give as `before`; null if this page is not full")


class LogLines(Told):
    """The last lines of logs, oldest first."""

    lines: list[dict[str, Json]]


class ConfigView(Told):
    """The settings of this process, without their secrets."""

    settings: dict[str, Json]


class WebToken(Told):
    """A short-lived key."""

    access_token: str
    token_type: Literal["bearer"] = "bearer"  # noqa: S105 - the word of RFC 6750
    expires_in: float = Field(description="seconds")
    role: str


def failure(found: Failure | None) -> Json:
    """A failure and its causes as JSON."""
    return None if found is None else asdict(found)


def page_of(items: Sequence[Any], limit: int, key: Any) -> Any:  # noqa: ANN401 - any field of any record
    """The key of the last item if there may be more."""
    return getattr(items[-1], key) if len(items) == limit else None


def _facts(record: object, view: type[BaseModel]) -> dict[str, Any]:
    names: Iterable[str] = view.model_fields
    values = {name: getattr(record, name) for name in names if hasattr(record, name)}
    return {name: failure(value) if isinstance(value, Failure) else value for name, value in values.items()}
