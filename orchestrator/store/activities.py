"""Activities between being scheduled and being resolved; law: whatever happens to one carries its attempt, and it is resolved once.

Deadlines: a queued attempt must start within schedule_to_start of being due; a started one must end within start_to_close of its start
and show life every heartbeat interval; all attempts together must end within schedule_to_close of being scheduled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.store import documents, runs
from orchestrator.store.documents import ACTIVITY_COLUMNS
from orchestrator.store.transaction import Reply, Row, Sender, Transaction
from schemas.history import ActivityFailed
from schemas.runs import ActivityKey, Beat, BeatAnswer, PendingActivity, Resolved, Settlement, TryAgain

CANCEL_REQUESTED = "cancel_requested"  # the retry state of core.retries

_QUALIFIED = ", ".join(f"activities.{column.strip()}" for column in ACTIVITY_COLUMNS.split(","))
_STARTED = """
state = 'started', worker = :worker, started_at = {now}, heartbeat_at = NULL,
deadline_at = nullif({least}(coalesce({now} + start_to_close_s, 1e18), coalesce(close_by, 1e18), coalesce({now} + heartbeat_s, 1e18)), 1e18)
"""
_CLAIM = f"""
WITH picked AS (
    SELECT run_id AS picked_run, seq AS picked_seq FROM activities
    WHERE state = 'queued' AND queue = :queue AND NOT task AND due_at <= {{now}} AND {{in type :types}}
    ORDER BY priority DESC, due_at LIMIT :batch_max {{skip_locked}}
)
UPDATE activities SET {_STARTED} FROM picked WHERE {{at activities.run_id picked.picked_run}} AND activities.seq = picked.picked_seq
RETURNING {_QUALIFIED}, activities.priority
"""  # noqa: S608 - columns of our own
_START = f"""
UPDATE activities SET {_STARTED}
WHERE run_id = :run_id AND seq = :seq AND attempt = :attempt AND {{unindexed state}} = 'queued' RETURNING {ACTIVITY_COLUMNS}
"""  # noqa: S608 - columns of our own
_GET = f"SELECT {ACTIVITY_COLUMNS} FROM activities WHERE run_id = :run_id AND seq = :seq AND attempt = :attempt"  # noqa: S608 - columns of our own
_EXPIRED = f"""
SELECT {ACTIVITY_COLUMNS} FROM activities WHERE deadline_at IS NOT NULL AND deadline_at <= {{now}} ORDER BY deadline_at LIMIT :batch_max
"""  # noqa: S608 - columns of our own
_TO_PUBLISH = f"""
WITH picked AS (
    SELECT run_id AS picked_run, seq AS picked_seq FROM activities
    WHERE state = 'queued' AND task AND due_at <= {{now}} ORDER BY due_at LIMIT :batch_max {{skip_locked}}
)
UPDATE activities SET due_at = {{now}} + {{least}}(:backoff_max_s, :backoff_s * (1 << {{least}}(publishes, 10))), publishes = publishes + 1
FROM picked WHERE {{at activities.run_id picked.picked_run}} AND activities.seq = picked.picked_seq
RETURNING {_QUALIFIED}
"""  # noqa: S608 - columns of our own

_SETTLED_ARRIVALS = """
INSERT INTO inbox (run_id, kind, event)
SELECT v.run_id, v.kind, v.event FROM {rows position:int, run_id:text, seq:int, attempt:int, kind:text, event:text}
JOIN activities a ON {at a.run_id v.run_id} AND a.seq = v.seq AND a.attempt = v.attempt AND NOT a.detached
ORDER BY v.position
"""
_SETTLED_WAKE = """
UPDATE runs SET ready_at = CASE WHEN ready THEN {least}(ready_at, {now}) ELSE {now} END, ready = true
FROM {rows run_id:text, seq:int, attempt:int}
JOIN activities a ON {at a.run_id v.run_id} AND a.seq = v.seq AND a.attempt = v.attempt AND NOT a.detached
WHERE {at runs.run_id v.run_id} AND {unindexed runs.status} = 'running'
"""
_SETTLED_GONE = """
DELETE FROM {keyed activities run_id:text, seq:int, attempt:int}
RETURNING activities.run_id, activities.seq, activities.run_queue, activities.queue, activities.scheduled, activities.detached
"""
_DETACHED_GONE = """
DELETE FROM {keyed activities run_id:text, seq:int, attempt:int} AND activities.detached
RETURNING activities.run_id, activities.seq
"""
_CANCEL_REQUESTED = """
SELECT a.run_id, a.seq FROM {rows run_id:text, seq:int, attempt:int}
JOIN activities a ON {at a.run_id v.run_id} AND a.seq = v.seq AND a.attempt = v.attempt WHERE a.cancel_requested AND NOT a.detached
"""
_TRY_AGAIN = """
UPDATE activities SET attempt = activities.attempt + 1, state = 'queued', due_at = v.due_at, worker = NULL, started_at = NULL, publishes = 0,
    last_failure = v.failure, losses = CASE WHEN v.losses > activities.losses THEN v.losses ELSE activities.losses END,
    deadline_at = nullif({least}(coalesce(v.due_at + schedule_to_start_s, 1e18), coalesce(close_by, 1e18)), 1e18)
FROM {rows run_id:text, seq:int, attempt:int, due_at:float, failure:text, losses:int}
WHERE {at activities.run_id v.run_id} AND activities.seq = v.seq AND activities.attempt = v.attempt AND NOT activities.detached
RETURNING activities.run_id, activities.seq, activities.queue, activities.task
"""
_DEAD_LETTERS = """
INSERT INTO dead_letters (id, kind, reason, at, run_id, seq, document)
SELECT v.id, 'activity', v.reason, {now}, v.run_id, v.seq, v.document
FROM {rows id:text, reason:text, run_id:text, seq:int, document:text} WHERE true ON CONFLICT DO NOTHING
"""
_BEAT = """
UPDATE activities SET heartbeat_at = {now}, heartbeat_details = v.details,
    deadline_at = nullif({least}(coalesce(started_at + start_to_close_s, 1e18), coalesce(close_by, 1e18), coalesce({now} + heartbeat_s, 1e18)), 1e18)
FROM {rows run_id:text, seq:int, attempt:int, details:text}
WHERE {at activities.run_id v.run_id} AND activities.seq = v.seq AND activities.attempt = v.attempt AND activities.state = 'started'
"""
# A row that somebody holds is about to change anyway: its beat is skipped, so that beats never wait in an order of their own.
_BEAT_FREE = """
SELECT a.run_id, a.seq FROM {rows run_id:text, seq:int} JOIN activities a ON {at a.run_id v.run_id} AND a.seq = v.seq
"""
_BEAT_ANSWERS = """
SELECT a.run_id, a.seq, a.attempt, a.cancel_requested FROM {rows run_id:text, seq:int, attempt:int}
JOIN activities a ON {at a.run_id v.run_id} AND a.seq = v.seq AND a.attempt = v.attempt AND a.state = 'started'
"""


def claim(tx: Transaction, *, worker: str, queues: Sequence[str], types: Sequence[str], batch_max: int) -> list[PendingActivity]:
    """Start up to `batch_max` due activities of these queues and types in this worker, the most urgent first; Celery tasks excepted."""
    claimed: list[PendingActivity] = []
    for queue in queues:
        if len(claimed) >= batch_max:
            break
        claimed += started(send_claim(tx, worker=worker, queue=queue, types=types, batch_max=batch_max - len(claimed)).rows())
    return claimed


def send_claim(tx: Sender, *, worker: str, queue: str, types: Sequence[str], batch_max: int) -> Reply:
    """Start due activities of one queue; `started` reads the answer."""
    return tx.send(_CLAIM, worker=worker, queue=queue, types=list(types), batch_max=batch_max)


def started(rows: Sequence[Row]) -> list[PendingActivity]:
    """The activities that a claim has started, the most urgent first."""
    found = [(row[-1], documents.pending(row[:-1])) for row in rows]
    return [pending for _, pending in sorted(found, key=lambda item: (-item[0], item[1].due_at))]


def start(tx: Transaction, key: ActivityKey, worker: str) -> PendingActivity | None:
    """Start this attempt in this worker; None if it is not waiting any more: started before, resolved, or tried again since."""
    rows = tx.run(_START, run_id=key.run_id, seq=key.seq, attempt=key.attempt, worker=worker)
    return documents.pending(rows[0]) if rows else None


def get(tx: Transaction, key: ActivityKey) -> PendingActivity | None:
    """This attempt, if it is the current one and unresolved."""
    rows = tx.run(_GET, run_id=key.run_id, seq=key.seq, attempt=key.attempt)
    return documents.pending(rows[0]) if rows else None


def settle(tx: Transaction, settlements: Sequence[Settlement]) -> tuple[set[str], set[ActivityKey]]:
    """Resolve activities or send them back to their queues; return the queues to ring and the keys that still stood.

    A key that does not stand any more changes nothing. An activity that its run has let go of is removed without a word.
    """
    first = {settlement.key: settlement for settlement in reversed(settlements)}
    ordered = sorted(first.values(), key=lambda settlement: _row(settlement.key))
    if not ordered:
        return set(), set()
    runs.lock(tx, sorted({settlement.key.run_id for settlement in ordered}))
    queues, applied = _resolve(tx, [settlement for settlement in ordered if isinstance(settlement, Resolved)])
    again_queues, again_applied = _try_again(tx, [settlement for settlement in ordered if isinstance(settlement, TryAgain)])
    return queues | again_queues, applied | again_applied


def beat(tx: Transaction, beats: Sequence[Beat]) -> list[BeatAnswer]:
    """Note that these attempts are alive and what they have got so far; answers come in the order of `beats`."""
    latest = {beat.key: beat for beat in beats}
    rows = [(*_row(key), documents.dump(latest[key].details)) for key in sorted(latest, key=_row)]
    if tx.dialect != "sqlite":
        free = set(tx.run_rows(_BEAT_FREE + "FOR UPDATE OF a SKIP LOCKED", [row[:2] for row in rows]))
        rows_free = [row for row in rows if row[:2] in free]
    else:
        rows_free = rows
    tx.send_rows(_BEAT, rows_free)
    found = {
        ActivityKey(run_id, seq, attempt): bool(cancel)
        for run_id, seq, attempt, cancel in tx.run_rows(_BEAT_ANSWERS, [row[:3] for row in rows])
    }
    return [BeatAnswer(beat.key, cancel_requested=found.get(beat.key, False), gone=beat.key not in found) for beat in beats]


def expired(tx: Transaction, batch_max: int) -> list[PendingActivity]:
    """Activities past their deadline, the longest overdue first."""
    return [documents.pending(row) for row in tx.run(_EXPIRED, batch_max=batch_max)]


def to_publish(tx: Transaction, batch_max: int, *, again_s: float = 5.0, again_max_s: float = 300.0) -> list[PendingActivity]:
    """Celery tasks that nobody has started though their message should be out: publish them (again).

    Their next turn comes after again_s seconds, then after twice as long and so on, up to again_max_s.
    """
    rows = tx.run(_TO_PUBLISH, batch_max=batch_max, backoff_s=float(again_s), backoff_max_s=float(again_max_s))
    return [documents.pending(row) for row in rows]


def _resolve(tx: Transaction, resolved: Sequence[Resolved]) -> tuple[set[str], set[ActivityKey]]:
    if not resolved:
        return set(), set()
    keys = [_row(r.key) for r in resolved]
    # The rows cannot go in between: whoever removes one holds its run, and we do.
    tx.send_rows(_SETTLED_ARRIVALS, [(n, *_row(r.key), r.arrival.kind, documents.dump(r.arrival)) for n, r in enumerate(resolved)])
    tx.send_rows(_SETTLED_WAKE, keys)
    gone = {(row[0], row[1]): row[2:] for row in tx.run_rows(_SETTLED_GONE, keys)}
    standing = [r for r in resolved if (r.key.run_id, r.key.seq) in gone]
    letters = [
        (f"{r.key.run_id}:{r.key.seq}:{r.key.attempt}", r.arrival.kind, r.key.run_id, r.key.seq, _letter(r, gone[r.key.run_id, r.key.seq]))
        for r in standing
        if r.dead_letter
    ]
    tx.send_rows(_DEAD_LETTERS, letters)
    queues = {row[0] for row in gone.values() if not row[3]}
    return queues, {r.key for r in standing}


def _try_again(tx: Transaction, again: Sequence[TryAgain]) -> tuple[set[str], set[ActivityKey]]:
    if not again:
        return set(), set()
    # A run that has asked an activity to cancel, or has let go of it, does not want another attempt of it.
    unwanted = {(run_id, seq) for run_id, seq in tx.run_rows(_CANCEL_REQUESTED, [_row(t.key) for t in again])}
    if unwanted:
        ends = [t for t in again if (t.key.run_id, t.key.seq) in unwanted]
        over = [Resolved(t.key, ActivityFailed(t.key.seq, t.failure, CANCEL_REQUESTED, t.key.attempt)) for t in ends]
        rest_queues, rest_keys = _try_again(tx, [t for t in again if t not in ends])
        queues, keys = _resolve(tx, over)
        return queues | rest_queues, keys | rest_keys
    dropped = tx.send_rows(_DETACHED_GONE, [_row(t.key) for t in again])
    queued = tx.run_rows(_TRY_AGAIN, [(*_row(t.key), t.due_at, documents.dump(t.failure), t.losses) for t in again])
    standing = {(run_id, seq) for run_id, seq, *_ in queued} | {(run_id, seq) for run_id, seq in dropped.rows()}
    queues = {queue for _, _, queue, task in queued if not task}
    return queues, {t.key for t in again if (t.key.run_id, t.key.seq) in standing}


def _row(key: ActivityKey) -> tuple[str, int, int]:
    return key.run_id, key.seq, key.attempt


def _letter(resolved: Resolved, row: Sequence[Any]) -> str:
    _, queue, scheduled, _ = row
    return documents.dump({"scheduled": documents.load(scheduled), "queue": queue, "arrival": resolved.arrival})
