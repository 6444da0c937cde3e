"""From what the code asked for to what the store writes and the worker does; law: pure, and effects only after the commit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from schemas.history import (
    ActivityCancelRequested,
    ActivityScheduled,
    ChildCancelRequested,
    ChildScheduled,
    Message,
    RunCanceled,
    RunCompleted,
    RunContinued,
    RunFailed,
    RunStarted,
    Terminal,
    TimerStarted,
)
from schemas.runs import (
    ActivityKey,
    ActivityState,
    IdReusePolicy,
    NewActivity,
    NewChild,
    NewRun,
    ParentLink,
    PendingActivity,
    Status,
    TurnCommit,
)

Route = Callable[[ActivityScheduled, str], tuple[ActivityScheduled, str]]
"""Resolves (activity, the run's queue) to the activity, marked as a Celery task or not, and its queue."""

TakeOn = Callable[[ActivityScheduled, str], bool]
"""Whether this process starts (activity, queue) itself, in the turn's own commit."""

STATUS: dict[type[Terminal], Status] = {
    RunCompleted: Status.COMPLETED,
    RunFailed: Status.FAILED,
    RunCanceled: Status.CANCELED,
    RunContinued: Status.CONTINUED_AS_NEW,
}


@dataclass(slots=True)
class Plan:
    """What to do once the turn is committed."""

    eager: list[PendingActivity] = field(default_factory=list)
    tasks: list[PendingActivity] = field(default_factory=list)
    queues: set[str] = field(default_factory=set)  # that have new work
    timers: list[tuple[float, int]] = field(default_factory=list)  # when, and which
    canceled: list[int] = field(default_factory=list)  # activities to stop, by number
    closed: bool = False


def plan(
    commit: TurnCommit,
    terminal: Terminal | None,
    started: RunStarted,
    *,
    route: Route,
    take_on: TakeOn,
    fresh_id: Callable[[], str],
    has_children: bool = False,
) -> tuple[TurnCommit, Plan]:
    """Complete a commit and say what follows from it."""
    planned = Plan()
    if any(isinstance(command, ChildScheduled | ChildCancelRequested | Message) for command in commit.commands):
        commit = _relate(commit, started, planned, fresh_id)
    if terminal is not None:
        return _closing(commit, terminal, started, planned, fresh_id, has_children=has_children)
    activities: list[NewActivity] = []
    for command in commit.commands:
        if isinstance(command, ActivityScheduled):
            scheduled, queue = route(command, started.queue)
            eager = not scheduled.task and take_on(scheduled, queue)
            activities.append(NewActivity(scheduled, queue, eager))
            _follow(planned, commit, started, scheduled, queue, eager=eager)
        elif isinstance(command, TimerStarted):
            planned.timers.append((command.fire_at, command.seq))
        elif isinstance(command, ActivityCancelRequested):
            planned.canceled.append(command.seq)
    return (replace(commit, activities=tuple(activities)) if activities else commit), planned


def _follow(planned: Plan, commit: TurnCommit, started: RunStarted, scheduled: ActivityScheduled, queue: str, *, eager: bool) -> None:
    if not eager and not scheduled.task:
        planned.queues.add(queue)
        return
    pending = PendingActivity(
        key=ActivityKey(commit.run_id, scheduled.seq, 1),
        scheduled=scheduled,
        queue=queue,
        run_queue=started.queue,
        workflow_id=started.workflow_id,
        workflow_type=started.type,
        state=ActivityState.STARTED if eager else ActivityState.QUEUED,
        scheduled_at=commit.at,
        started_at=commit.at if eager else None,
    )
    (planned.eager if eager else planned.tasks).append(pending)


def _relate(commit: TurnCommit, started: RunStarted, planned: Plan, fresh_id: Callable[[], str]) -> TurnCommit:
    """Give the children of a turn their run ids, in the commands too: history names them."""
    commands = tuple(replace(c, run_id=fresh_id()) if isinstance(c, ChildScheduled) else c for c in commit.commands)
    children = tuple(_child(command, started, commit.at) for command in commands if isinstance(command, ChildScheduled))
    planned.queues |= {child.run.started.queue for child in children}
    return replace(commit, commands=commands, children=children, related=True)


def _child(command: ChildScheduled, parent: RunStarted, at: float) -> NewChild:
    started = RunStarted(
        workflow_id=command.workflow_id,
        run_id=command.run_id,
        type=command.type,
        queue=command.queue or parent.queue,
        args=command.args,
        started_at=at,
        first_run_id=command.run_id,
        parent_id=parent.workflow_id,
        parent_run_id=parent.run_id,
        execution_deadline_at=None if command.execution_timeout_s is None else at + command.execution_timeout_s,
        run_timeout_s=command.run_timeout_s,
        memo=command.memo,
    )
    run = NewRun(started, IdReusePolicy(command.reuse), priority=command.priority, search_attributes=command.search_attributes)
    return NewChild(command.seq, run, command.announced, command.parent_close)


def _closing(
    commit: TurnCommit, terminal: Terminal, started: RunStarted, planned: Plan, fresh_id: Callable[[], str], *, has_children: bool
) -> tuple[TurnCommit, Plan]:
    planned.closed = True
    parent = None
    if started.parent_run_id is not None and not isinstance(terminal, RunContinued):
        parent = ParentLink(started.parent_run_id, started.first_run_id or started.run_id)
    closing = replace(
        commit,
        status=STATUS[type(terminal)],
        result=terminal.result if isinstance(terminal, RunCompleted) else None,
        failure=terminal.failure if isinstance(terminal, RunFailed | RunCanceled) else None,
        related=commit.related or parent is not None or has_children,
        parent=parent,
        orphans=has_children,
    )
    if isinstance(terminal, RunContinued):
        successor = _successor(terminal, started, fresh_id(), commit.at)
        closing = replace(closing, continued_as=NewRun(successor, priority=None))
        planned.queues.add(successor.queue)
    return closing, planned


def _successor(terminal: RunContinued, started: RunStarted, run_id: str, at: float) -> RunStarted:
    return replace(
        started,
        run_id=run_id,
        type=terminal.type or started.type,
        queue=terminal.queue or started.queue,
        args=terminal.args,
        attempt=1,
        started_at=at,
        first_run_id=started.first_run_id or started.run_id,
        continued_from=started.run_id,
        run_timeout_s=started.run_timeout_s if terminal.run_timeout_s is None else terminal.run_timeout_s,
        memo=started.memo if terminal.memo is None else terminal.memo,
        last_failure=None,
    )
