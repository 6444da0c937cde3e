"""Letters that go back to where they came from; law: a letter is either set aside or on its way, never both and never twice.

An activity that was set aside has left a failure in its run's inbox. As long as no turn has consumed that failure, the activity can take its
place again: then the failure goes, a fresh attempt comes, and the epoch is raised, so that a worker that has the failure in hand loses its turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.store import documents, runs
from orchestrator.store.documents import DEAD_LETTER_COLUMNS
from orchestrator.store.transaction import Transaction
from schemas.history import ActivityFailed
from schemas.runs import DeadLetter, Replayed, Status

_GET = f"SELECT {DEAD_LETTER_COLUMNS} FROM dead_letters d WHERE d.id = :id"  # noqa: S608 - columns of our own
_RUN = "SELECT status, workflow_id, type, queue FROM runs WHERE run_id = :run_id"
_ATTEMPT = "SELECT attempt FROM activities WHERE run_id = :run_id AND seq = :seq"
_FAILURES = "SELECT id, event FROM inbox WHERE run_id = :run_id AND kind = 'activity_failed' ORDER BY id"
_TAKE_PLACE = """
INSERT INTO activities (run_id, seq, attempt, state, task, type, queue, priority, run_queue, workflow_id, workflow_type, scheduled, scheduled_at,
                        started_at, due_at, deadline_at, schedule_to_start_s, start_to_close_s, close_by, heartbeat_s, worker, losses,
                        publishes, cancel_requested, detached)
SELECT v.run_id, v.seq, v.attempt, 'queued', v.task, v.type, v.queue, v.priority, r.queue, r.workflow_id, r.type, v.scheduled, {now}, NULL, {now},
       nullif({least}(coalesce({now} + v.schedule_to_close_s, 1e18), coalesce({now} + v.schedule_to_start_s, 1e18)), 1e18),
       v.schedule_to_start_s, v.start_to_close_s, {now} + v.schedule_to_close_s, v.heartbeat_s, NULL, 0, 0, false, false
FROM {rows run_id:text, seq:int, attempt:int, task:bool, type:text, queue:text, priority:int, scheduled:text, schedule_to_start_s:float,
           start_to_close_s:float, schedule_to_close_s:float, heartbeat_s:float}
JOIN runs r ON {at r.run_id v.run_id}
WHERE true ON CONFLICT DO NOTHING
"""
_DISOWN = """
UPDATE runs SET owner = NULL, epoch = epoch + 1, ready_at = CASE WHEN ready THEN {least}(ready_at, {now}) ELSE {now} END, ready = true
WHERE run_id = :run_id
"""


def get(tx: Transaction, letter_id: str) -> DeadLetter | None:
    """This letter, if it is there."""
    rows = tx.run(_GET, id=letter_id)
    return documents.dead_letter(rows[0]) if rows else None


def replay_activity(tx: Transaction, letter: DeadLetter) -> Replayed:
    """Put an activity back into its run for a fresh attempt, its losses forgotten; a run that has gone on without it is left alone."""
    assert letter.run_id is not None, "a letter of an activity names its run"
    assert letter.seq is not None, "a letter of an activity names its number"
    runs.lock(tx, [letter.run_id])
    attempt = _attempt(letter)
    if started_again(tx, letter.run_id, letter.seq, attempt):
        tx.send("DELETE FROM dead_letters WHERE id = :id", id=letter.id)
        return Replayed(letter.id, done=True, told="it is on its way already")
    found = tx.run(_RUN, run_id=letter.run_id)
    if not found:
        return Replayed(letter.id, done=False, told="its run is not known any more")
    status, workflow_id, workflow_type, run_queue = found[0]
    waiting = [entry for entry in tx.run(_FAILURES, run_id=letter.run_id) if _is_of(entry[1], letter.seq, attempt)]
    if status != Status.RUNNING or not waiting:
        told = f"workflow {workflow_id} has gone on without it, as its history shows"
        if status != Status.RUNNING:
            told = (
                f"workflow {workflow_id} is {status.replace('_', ' ')}. Start it anew: orchestrator workflow start {workflow_type} --id …"
            )
        return Replayed(letter.id, done=False, told=told)
    scheduled: Mapping[str, Any] = letter.document["scheduled"]
    queue = str(letter.document.get("queue") or scheduled.get("queue") or run_queue)
    row = (
        letter.run_id,
        letter.seq,
        attempt + 1,
        bool(scheduled.get("task")),
        scheduled["type"],
        queue,
        scheduled.get("priority") or 0,
        documents.dump(scheduled),
        *(scheduled.get(name) for name in ("schedule_to_start_s", "start_to_close_s", "schedule_to_close_s", "heartbeat_s")),
    )
    tx.send("DELETE FROM inbox WHERE {in id :ids}", ids=[entry_id for entry_id, _ in waiting])
    tx.send_rows(_TAKE_PLACE, [row])
    tx.send(_DISOWN, run_id=letter.run_id)
    tx.send("DELETE FROM dead_letters WHERE id = :id", id=letter.id)
    queues = {run_queue} | (set() if scheduled.get("task") else {queue})  # beat publishes a task's message
    return Replayed(letter.id, done=True, told=f"attempt {attempt + 1} waits in queue {queue}", queues=frozenset(queues))


def started_again(tx: Transaction, run_id: str, seq: int, attempt: int) -> bool:
    """Whether a later attempt of this activity is unresolved."""
    rows = tx.run(_ATTEMPT, run_id=run_id, seq=seq)
    return bool(rows and rows[0][0] > attempt)


def _attempt(letter: DeadLetter) -> int:
    arrival: Mapping[str, Any] = letter.document["arrival"]
    return int(arrival["attempt"])


def _is_of(event: str, seq: int, attempt: int) -> bool:
    arrival = documents.arrival(event)
    return isinstance(arrival, ActivityFailed) and (arrival.seq, arrival.attempt) == (seq, attempt)
