"""Records as JSON text and back; law: the store keeps documents as people would read them, and only whole records leave it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import TypeAdapter

from schemas.history import ARRIVALS, EVENT, EVENTS, ActivityScheduled, Arrival, Close, Command, Failure, Json, Turn
from schemas.runs import ActivityKey, ActivityState, DeadLetter, PendingActivity, Question, RunDescription, Status

_SCHEDULED: TypeAdapter[ActivityScheduled] = TypeAdapter(ActivityScheduled)
_FAILURE: TypeAdapter[Failure] = TypeAdapter(Failure)


def dump(value: object) -> str:
    """The JSON text of a record, a list of records or a JSON value."""
    return orjson.dumps(value).decode()


def dump_unless_none(value: object) -> str | None:
    """The JSON text; SQL NULL for None."""
    return None if value is None else dump(value)


def load(text: str | None) -> Json:
    """The JSON value; None for SQL NULL."""
    return None if text is None else orjson.loads(text)


def arrival(text: str) -> Arrival:
    """The arrival of an inbox row."""
    event: Any = EVENT.validate_json(text)
    assert isinstance(event, ARRIVALS), "an inbox row was written from an Arrival"
    return event


def failure(text: str | None) -> Failure | None:
    """The failure, if there is one."""
    return None if text is None else _FAILURE.validate_json(text)


def turn(row: Sequence[Any]) -> Turn:
    """A turn from (turn, at, flags, worker, build, events): arrivals come first in the document."""
    number, at, flags, worker, build, text = row
    arrivals: list[Arrival] = []
    commands: list[Command | Close] = []
    for event in EVENTS.validate_json(text):
        if isinstance(event, ARRIVALS):
            arrivals.append(event)
        else:
            commands.append(event)
    return Turn(number, at, tuple(arrivals), tuple(commands), flags, worker, build)


# The columns of an activity in the order that `pending` reads them.
ACTIVITY_COLUMNS = (
    "run_id, seq, attempt, scheduled, queue, run_queue, workflow_id, workflow_type, state, scheduled_at, started_at, due_at, deadline_at,"
    " worker, heartbeat_at, heartbeat_details, last_failure, losses, cancel_requested"
)


def pending(row: Sequence[Any]) -> PendingActivity:
    """An unresolved activity from its ACTIVITY_COLUMNS."""
    run_id, seq, attempt, scheduled, queue, run_queue, workflow_id, workflow_type, state, scheduled_at, started_at, *rest = row
    due_at, deadline_at, worker, heartbeat_at, details, last_failure, losses, cancel_requested = rest
    return PendingActivity(
        key=ActivityKey(run_id, seq, attempt),
        scheduled=_SCHEDULED.validate_json(scheduled),
        queue=queue,
        run_queue=run_queue,
        workflow_id=workflow_id,
        workflow_type=workflow_type,
        state=ActivityState(state),
        scheduled_at=scheduled_at,
        started_at=started_at,
        due_at=due_at,
        deadline_at=deadline_at,
        worker=worker,
        heartbeat_at=heartbeat_at,
        heartbeat_details=tuple(load(details) or ()),
        last_failure=failure(last_failure),
        losses=losses,
        cancel_requested=bool(cancel_requested),
    )


# The columns of a query in the order that `question` reads them.
QUESTION_COLUMNS = "id, run_id, queue, type, name, args, answer, failure, answered_at"


def question(row: Sequence[Any]) -> Question:
    """A query from its QUESTION_COLUMNS."""
    id_, run_id, queue, type_, name, args, answered_with, failed, answered_at = row
    return Question(
        id=id_,
        run_id=run_id,
        queue=queue,
        type=type_,
        name=name,
        args=tuple(load(args)),
        answer=load(answered_with),
        failure=failure(failed),
        answered=answered_at is not None,
    )


# The columns of a dead letter (`dead_letters d`) in the order that `dead_letter` reads them.
DEAD_LETTER_COLUMNS = "d.id, d.kind, d.reason, d.at, d.run_id, d.seq, d.document"


def dead_letter(row: Sequence[Any]) -> DeadLetter:
    """What was set aside, from its DEAD_LETTER_COLUMNS."""
    id_, kind, reason, at, run_id, seq, document = row
    return DeadLetter(id_, kind, reason, at, run_id, seq, load(document))


# The columns of a run and its payloads (`runs r LEFT JOIN run_payloads p`) in the order that `described` reads them.
RUN_COLUMNS = (
    "r.workflow_id, r.run_id, r.type, r.queue, r.status, r.started_at, r.closed_at, r.turn, r.history_events, r.attempt, r.priority, r.ready,"
    " r.parent_id, r.continued_from, r.turn_failures, r.deadline_at, p.continued_as, p.memo, p.search_attributes, p.result, p.failure, p.stuck"
)


def described(row: Sequence[Any]) -> RunDescription:
    """A run for people, from its RUN_COLUMNS."""
    workflow_id, run_id, type_, queue, status, started_at, closed_at, turns, events, attempt, priority, ready, *rest = row
    parent_id, continued_from, turn_failures, deadline_at, continued_as, memo, search_attributes, result, failed, stuck = rest
    return RunDescription(
        workflow_id=workflow_id,
        run_id=run_id,
        type=type_,
        queue=queue,
        status=Status(status),
        started_at=started_at,
        closed_at=closed_at,
        turn=turns,
        history_events=events,
        attempt=attempt,
        priority=priority,
        ready=bool(ready),
        parent_id=parent_id,
        continued_from=continued_from,
        continued_as=continued_as,
        memo=load(memo) or {},
        search_attributes=load(search_attributes) or {},
        result=load(result),
        failure=failure(failed),
        stuck=failure(stuck) if turn_failures else None,
        turn_failures=turn_failures,
        deadline_at=deadline_at,
    )
