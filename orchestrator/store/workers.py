"""Worker processes, their leases, and what the dead leave behind; law: recovery never executes, it only makes ready again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.store import documents
from orchestrator.store.documents import ACTIVITY_COLUMNS
from orchestrator.store.transaction import Transaction
from schemas.runs import ActivityKey, PendingActivity, WorkerIdentity, WorkerRow

_COLUMNS = "worker_id, node, host, boot_id, pid, pid_started_at, queues, build, expires_at, expires_at <= {now}, stopping"
_REGISTER = """
INSERT INTO workers (worker_id, node, host, boot_id, pid, pid_started_at, queues, build, expires_at, stopping)
VALUES (:worker_id, :node, :host, :boot_id, :pid, :pid_started_at, :queues, :build, {now} + :ttl_s, false)
ON CONFLICT (worker_id) DO UPDATE SET queues = excluded.queues, expires_at = excluded.expires_at, stopping = false
"""
_EXTEND = "UPDATE workers SET expires_at = {now} + :ttl_s, stopping = :stopping WHERE worker_id = :worker_id RETURNING worker_id"
_LIST = f"SELECT {_COLUMNS} FROM workers ORDER BY node, worker_id"  # noqa: S608 - columns of our own
_PREDECESSORS = f"SELECT {_COLUMNS} FROM workers WHERE node = :node AND worker_id <> :worker_id ORDER BY worker_id"  # noqa: S608 - columns of our own
_ON_HOST = f"SELECT {_COLUMNS} FROM workers WHERE host = :host AND boot_id = :boot_id ORDER BY worker_id"  # noqa: S608 - columns of our own
_STRIKE_EXPIRED = f"DELETE FROM workers WHERE expires_at <= {{now}} RETURNING {_COLUMNS}"  # noqa: S608 - columns of our own
_END_FROZEN = """
SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a
WHERE a.datname = current_database() AND a.application_name LIKE 'orchestrator %' AND a.state <> 'idle' AND a.wait_event = 'ClientRead'
  AND greatest(a.query_start, a.state_change) < clock_timestamp() - :idle_s * interval '1 second'
  AND NOT EXISTS (SELECT 1 FROM workers w WHERE w.expires_at > {now} AND a.application_name = left('orchestrator ' || w.pid || ' ' || w.host, 63))
"""
_ORPHANS = """
SELECT owner FROM runs WHERE owner IS NOT NULL AND NOT EXISTS (SELECT 1 FROM workers w WHERE w.worker_id = runs.owner)
UNION SELECT worker FROM activities WHERE worker IS NOT NULL AND NOT EXISTS (SELECT 1 FROM workers w WHERE w.worker_id = activities.worker)
ORDER BY 1
"""
_RUNNING = f"""
SELECT {ACTIVITY_COLUMNS} FROM activities WHERE worker = :worker_id AND (run_id, seq) > (:run_id, :seq) ORDER BY run_id, seq LIMIT :batch_max
"""  # noqa: S608 - columns of our own
_RELEASE_RUNS = """
WITH picked AS (
    SELECT run_id AS picked_run FROM runs WHERE owner = :worker_id AND NOT {in run_id :keep} ORDER BY run_id LIMIT :batch_max {lock}
)
UPDATE runs SET owner = NULL, epoch = epoch + 1, ready_at = CASE WHEN ready THEN {least}(ready_at, {now}) ELSE {now} END, ready = true
FROM picked WHERE {at runs.run_id picked.picked_run} RETURNING runs.queue
"""
_RETRY_STUCK = """
WITH picked AS (
    SELECT run_id AS picked_run FROM runs
    WHERE turn_failures > 0 AND {in queue :queues} AND status = 'running' AND owner IS NULL ORDER BY run_id {lock}
)
UPDATE runs SET ready = true, ready_at = {least}(ready_at, {now}) FROM picked WHERE {at runs.run_id picked.picked_run} RETURNING runs.run_id
"""


def register(tx: Transaction, identity: WorkerIdentity, ttl_s: float) -> None:
    """Enter a worker process, alive for `ttl_s` from now; again with other queues if it has changed them."""
    tx.run(
        _REGISTER,
        worker_id=identity.worker_id,
        node=identity.node,
        host=identity.host,
        boot_id=identity.boot_id,
        pid=identity.pid,
        pid_started_at=float(identity.pid_started_at),
        queues=documents.dump(identity.queues),
        build=identity.build,
        ttl_s=float(ttl_s),
    )


def extend(tx: Transaction, worker_id: str, ttl_s: float, *, stopping: bool = False) -> bool:
    """Prolong the lease of a worker; False if its row is gone: others have taken its work, and it must drop what it holds."""
    return bool(tx.run(_EXTEND, worker_id=worker_id, ttl_s=float(ttl_s), stopping=stopping))


def predecessors(tx: Transaction, node: str, worker_id: str) -> list[WorkerRow]:
    """Other processes that went by the same node name: usually what this one was before its restart."""
    return [_worker(row) for row in tx.run(_PREDECESSORS, node=node, worker_id=worker_id)]


def on_host(tx: Transaction, host: str, boot_id: str) -> list[WorkerRow]:
    """The workers that were started on this machine since it booted: their process ids mean something here."""
    return [_worker(row) for row in tx.run(_ON_HOST, host=host, boot_id=boot_id)]


def strike_expired(tx: Transaction) -> list[WorkerRow]:
    """Strike off the workers whose lease has run out; what they held is an orphan's until it is given back."""
    return sorted((_worker(row) for row in tx.run(_STRIKE_EXPIRED)), key=lambda row: row.identity.worker_id)


def end_frozen(tx: Transaction, idle_s: float) -> int:
    """End the sessions of ours on PostgreSQL whose process is frozen or cut off in the middle of a transaction, so that its locks are freed.

    It has said nothing for `idle_s`, and is no worker whose lease stands: a transaction of those may wait for what its author does in it.
    """
    return 0 if tx.dialect == "sqlite" else len(tx.run(_END_FROZEN, idle_s=float(idle_s)))


def orphans(tx: Transaction) -> list[WorkerRow]:
    """Workers that own something and have no row: each was taken for dead, struck off, and claimed once more before it noticed."""
    nobody = WorkerIdentity("", node="struck off before", host="", boot_id="", pid=0, pid_started_at=0.0, queues=(), build="")
    return [WorkerRow(replace(nobody, worker_id=worker_id), expires_at=0.0, expired=True) for (worker_id,) in tx.run(_ORPHANS)]


def list_workers(tx: Transaction) -> list[WorkerRow]:
    """All workers, by node."""
    return [_worker(row) for row in tx.run(_LIST)]


def running_activities(tx: Transaction, worker_id: str, after_key: ActivityKey | None, batch_max: int) -> list[PendingActivity]:
    """A page of the activities that this worker has started, after the last key of the page before."""
    run_id, seq = (after_key.run_id, after_key.seq) if after_key else ("", -1)
    return [documents.pending(row) for row in tx.run(_RUNNING, worker_id=worker_id, run_id=run_id, seq=seq, batch_max=batch_max)]


def release_runs(tx: Transaction, worker_id: str, batch_max: int, *, keep: Collection[str] = ()) -> set[str]:
    """Make up to `batch_max` runs that this worker owns claimable again; return their queues.

    An empty answer means that there are none left. A living worker that lost the answer to a claim passes the runs it knows to own as `keep`.
    """
    return {queue for (queue,) in tx.run(_RELEASE_RUNS, worker_id=worker_id, batch_max=batch_max, keep=list(keep))}


def remove(tx: Transaction, worker_id: str) -> None:
    """Strike a worker off; what it held must have been given back before."""
    tx.run("DELETE FROM workers WHERE worker_id = :worker_id", worker_id=worker_id)


def retry_stuck(tx: Transaction, queues: Sequence[str]) -> int:
    """Have the stuck runs of these queues tried at once, because a new build has arrived; return how many."""
    return len(tx.run(_RETRY_STUCK, queues=list(queues)))


def _worker(row: Sequence[Any]) -> WorkerRow:
    worker_id, node, host, boot_id, pid, pid_started_at, queues, build, expires_at, is_expired, is_stopping = row
    identity = WorkerIdentity(worker_id, node, host, boot_id, pid, pid_started_at, tuple(documents.load(queues)), build)
    return WorkerRow(identity, expires_at, bool(is_expired), bool(is_stopping))
