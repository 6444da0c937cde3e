"""What time brings: timers, deadlines of runs, and queues that nobody has looked at; law: time is a row, judged by the database's clock."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.store import runs
from orchestrator.store.transaction import Transaction
from schemas.history import Arrival, RunTimedOut, TimerFired

_DUE = """
SELECT run_id, kind, seq FROM timers WHERE fire_at <= {now} AND (kind <> 'timer' OR fire_at <= {now} - :head_start_s)
ORDER BY fire_at LIMIT :batch_max
"""
# Asked again under the locks of the runs: a turn may have stopped the timer, or another beat may have fired it.
_TAKE = """
DELETE FROM {keyed timers run_id:text, kind:text, seq:int} AND {unindexed fire_at} <= {now}
RETURNING timers.run_id, timers.kind, timers.seq, timers.fire_at
"""
_QUEUES = "SELECT DISTINCT queue FROM runs WHERE {in run_id :run_ids} AND status = 'running'"
_STARTED = "SELECT run_id, started_at FROM runs WHERE {in run_id :run_ids}"
_NEXT_DUE = """
SELECT min(at) FROM (
    SELECT fire_at + CASE WHEN kind = 'timer' THEN :head_start_s ELSE 0.0 END AS at
    FROM (SELECT fire_at, kind FROM timers ORDER BY fire_at LIMIT 1) AS first
    UNION ALL SELECT min(due_at) FROM activities WHERE state = 'queued' AND task
    UNION ALL SELECT min(due_at) FROM activities WHERE state = 'queued' AND NOT task AND due_at > {now}
    UNION ALL SELECT min(deadline_at) FROM activities WHERE deadline_at IS NOT NULL
    UNION ALL SELECT min(orphaned_at) FROM child_workflows WHERE orphaned_at IS NOT NULL
) AS dues
"""
_FORGOTTEN = """
SELECT queue FROM runs WHERE ready AND owner IS NULL AND ready_at <= {now} - :older_than_s
UNION SELECT queue FROM activities WHERE state = 'queued' AND NOT task AND due_at <= {now} - :older_than_s
UNION SELECT queue FROM queries WHERE answered_at IS NULL AND asked_at <= {now} - :older_than_s
"""
_CAME_DUE = "SELECT DISTINCT queue FROM activities WHERE state = 'queued' AND NOT task AND due_at > :since AND due_at <= {now}"


@dataclass(frozen=True, slots=True)
class FiredTimers:
    """How many timers fired, and the queues to ring for it."""

    count: int
    queues: frozenset[str]


def fire_timers(tx: Transaction, batch_max: int, head_start_s: float = 0.0) -> FiredTimers:
    """Fire the timers that are due, the longest overdue first; close the runs whose own time is up.

    A timer of a run's code is left to the process that has the run in memory for `head_start_s`.
    """
    due = tx.run(_DUE, batch_max=batch_max, head_start_s=float(head_start_s))
    if not due:
        return FiredTimers(0, frozenset())
    run_ids = sorted({run_id for run_id, _, _ in due})
    closing = sorted({run_id for run_id, kind, _ in due if kind == "run_timeout"})
    runs.lock(tx, [*run_ids, *runs.parents(tx, closing)])  # runs before what belongs to them, as everywhere
    taken = sorted(tx.run_rows(_TAKE, due), key=lambda row: (row[3], row[0], row[2]))
    items: list[tuple[str, Arrival, str | None]] = [(run_id, TimerFired(seq), None) for run_id, kind, seq, _ in taken if kind == "timer"]
    runs.deliver(tx, items)
    timed_out = {run_id: fire_at for run_id, kind, _, fire_at in taken if kind == "run_timeout"}
    told: set[str] = set()
    for run_id, started_at in tx.run(_STARTED, run_ids=list(timed_out)) if timed_out else []:
        told |= runs.close_from_outside(tx, run_id, RunTimedOut(round(timed_out[run_id] - started_at, 3))) or set()
    # A `ready` timer has nothing to deliver: the run is claimable from now on, and somebody must say so.
    queues = tx.run(_QUEUES, run_ids=[run_id for run_id, kind, _, _ in taken if kind != "run_timeout"])
    return FiredTimers(len(taken), frozenset(queue for (queue,) in queues) | told)


def next_due_at(tx: Transaction, head_start_s: float = 0.0) -> float | None:
    """When `fire_timers`, `activities.expired`, `activities.to_publish`, `relations.part` or `came_due` will next have something; perhaps already."""
    at: float | None = tx.run(_NEXT_DUE, head_start_s=float(head_start_s))[0][0]
    return at


def came_due(tx: Transaction, *, since: float) -> set[str]:
    """Queues of activities whose backoff has ended after `since`."""
    return {queue for (queue,) in tx.run(_CAME_DUE, since=since)}


def forgotten_queues(tx: Transaction, *, older_than_s: float) -> set[str]:
    """Queues where a run, an activity or a query has been waiting longer than that: their doorbell was lost, or all workers are busy."""
    return {queue for (queue,) in tx.run(_FORGOTTEN, older_than_s=older_than_s)}
