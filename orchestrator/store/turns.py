"""Claiming ready runs and committing their turns; law: a turn is written whole, once, and only by the claim whose epoch still stands.

A run is claimable when it is ready and nobody owns it. The owner lets go with its commit; from then on its eager activities go on under
the same epoch until somebody else claims the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from orchestrator.store import documents, hints, relations, runs
from orchestrator.store.relations import Delivered
from orchestrator.store.transaction import Reply, Row, Sender, Transaction
from schemas.history import ActivityCanceled, ActivityCancelRequested, Arrival, TimerCanceled, TimerStarted, Turn
from schemas.runs import ClaimedRun, Committed, InboxEntry, NewRun, Status, TurnCommit, TurnFailure

_CLAIM = """
WITH picked AS (
    SELECT run_id AS picked_run FROM runs
    WHERE ready AND queue = :queue AND ready_at <= {now} AND owner IS NULL AND {in type :types}
    ORDER BY priority DESC, ready_at LIMIT :batch_max {skip_locked}
)
UPDATE runs SET epoch = epoch + 1, ready = false, owner = :worker FROM picked WHERE {at runs.run_id picked.picked_run}
RETURNING runs.run_id, runs.epoch, runs.turn, runs.queue, runs.type, runs.turn_failures, runs.priority, runs.ready_at
"""
_INBOX = """
SELECT id, run_id, event FROM (
    SELECT id, run_id, event, row_number() OVER (PARTITION BY run_id ORDER BY id) AS place FROM inbox WHERE {in run_id :run_ids}
) AS arrived
WHERE place <= :most ORDER BY run_id, id
"""
_LOAD = """
SELECT t.run_id, t.turn, t.at, t.flags, t.worker, t.build, t.events FROM {rows run_id:text, after_turn:int}
JOIN turns t ON {at t.run_id v.run_id} AND t.turn > v.after_turn ORDER BY v.run_id, t.turn
"""
_ADVANCE = """
UPDATE runs SET turn = v.turn, status = v.status, owner = NULL, turn_failures = 0, history_events = history_events + v.events,
    ready_at = CASE WHEN v.more AND NOT ready THEN {now} ELSE ready_at END,
    ready = CASE WHEN v.status = 'running' THEN ready OR v.more ELSE false END,
    closed_at = CASE WHEN v.status = 'running' THEN NULL ELSE {now} END
FROM {rows run_id:text, epoch:int, turn:int, status:text, more:bool, events:int}
WHERE {at runs.run_id v.run_id} AND runs.epoch = v.epoch AND runs.turn = v.turn - 1 AND {unindexed runs.status} = 'running'
  AND (v.status = 'running' OR NOT runs.ready)
RETURNING runs.run_id
"""
_SETTLE_EAGER = """
DELETE FROM {keyed activities run_id:text, seq:int, attempt:int} AND state = 'started' AND {unindexed worker} = :worker
RETURNING activities.run_id, activities.seq
"""
_FIRE = """
DELETE FROM {keyed timers run_id:text, kind:text, seq:int} AND {unindexed fire_at} <= {now} RETURNING timers.run_id, timers.seq
"""
_APPEND = """
INSERT INTO turns (run_id, turn, at, flags, worker, build, events)
SELECT v.run_id, v.turn, v.at, v.flags, :worker, :build, v.events FROM {rows run_id:text, turn:int, at:float, flags:int, events:text}
WHERE true ON CONFLICT DO NOTHING
"""
_SCHEDULE = """
INSERT INTO activities (run_id, seq, attempt, state, task, type, queue, priority, run_queue, workflow_id, workflow_type, scheduled, scheduled_at,
                        started_at, due_at, deadline_at, schedule_to_start_s, start_to_close_s, close_by, heartbeat_s, worker, losses,
                        publishes, cancel_requested, detached)
SELECT v.run_id, v.seq, 1, CASE WHEN v.eager THEN 'started' ELSE 'queued' END, v.task, v.type, v.queue, v.priority, r.queue, r.workflow_id,
       r.type, v.scheduled, {now}, CASE WHEN v.eager THEN {now} END, CASE WHEN v.task THEN {now} + :republish_s ELSE {now} END,
       nullif({least}(coalesce({now} + v.schedule_to_close_s, 1e18),
                      CASE WHEN v.eager THEN 1e18 ELSE coalesce({now} + v.schedule_to_start_s, 1e18) END,
                      CASE WHEN v.eager THEN coalesce({now} + v.start_to_close_s, 1e18) ELSE 1e18 END,
                      CASE WHEN v.eager THEN coalesce({now} + v.heartbeat_s, 1e18) ELSE 1e18 END), 1e18),
       v.schedule_to_start_s, v.start_to_close_s, {now} + v.schedule_to_close_s, v.heartbeat_s, CASE WHEN v.eager THEN :worker END, 0,
       0, false, false
FROM {rows run_id:text, seq:int, eager:bool, task:bool, type:text, queue:text, priority:int, scheduled:text, schedule_to_start_s:float,
           start_to_close_s:float, schedule_to_close_s:float, heartbeat_s:float}
JOIN runs r ON {at r.run_id v.run_id}
WHERE true ON CONFLICT DO NOTHING
"""
_START_TIMERS = """
INSERT INTO timers (run_id, kind, seq, fire_at) SELECT v.run_id, 'timer', v.seq, v.fire_at FROM {rows run_id:text, seq:int, fire_at:float}
WHERE true ON CONFLICT DO NOTHING
"""
_STOP_TIMERS = """
DELETE FROM {keyed timers run_id:text, kind:text, seq:int}
"""
_CLEAR_TIMERS = """
DELETE FROM timers WHERE {in run_id :run_ids} AND NOT (kind = 'timer' AND {in run_id || ' ' || cast(seq AS text) :fired})
"""
_CLEAR_ACTIVITIES = """
DELETE FROM activities WHERE {in run_id :run_ids} AND NOT {in run_id || ' ' || cast(seq AS text) :settled}
"""
_CANCEL_QUEUED = """
DELETE FROM {keyed activities run_id:text, seq:int} AND {unindexed state} = 'queued'
RETURNING activities.run_id, activities.seq, activities.attempt
"""
_CANCEL_STARTED = """
UPDATE activities SET cancel_requested = true, detached = NOT v.wait FROM {rows run_id:text, seq:int, wait:bool}
WHERE {at activities.run_id v.run_id} AND activities.seq = v.seq
"""
_GIVE_BACK = """
UPDATE runs SET owner = NULL, ready_at = CASE WHEN ready THEN ready_at ELSE {now} END, ready = true FROM {rows run_id:text, epoch:int}
WHERE {at runs.run_id v.run_id} AND runs.epoch = v.epoch AND {unindexed runs.status} = 'running' AND runs.owner = :worker
"""
_FAIL = """
UPDATE runs SET turn_failures = turn_failures + 1, ready = true, ready_at = {now} + v.retry_in_s, owner = NULL
FROM {rows run_id:text, epoch:int, retry_in_s:float}
WHERE {at runs.run_id v.run_id} AND runs.epoch = v.epoch AND {unindexed runs.status} = 'running'
RETURNING runs.run_id
"""
_STUCK = """
INSERT INTO run_payloads (run_id, stuck) SELECT v.run_id, v.stuck FROM {rows run_id:text, stuck:text} WHERE true
ON CONFLICT (run_id) DO UPDATE SET stuck = excluded.stuck
"""
_INHERIT = """
INSERT INTO run_payloads (run_id, search_attributes)
SELECT cast(:new AS text), search_attributes FROM run_payloads WHERE run_id = :old AND search_attributes IS NOT NULL
ON CONFLICT (run_id) DO UPDATE SET search_attributes = excluded.search_attributes
"""
_RELEASE = """
UPDATE runs SET owner = NULL FROM {rows run_id:text, epoch:int}
WHERE {at runs.run_id v.run_id} AND runs.epoch = v.epoch AND {unindexed runs.status} = 'running'
"""


def claim(tx: Transaction, *, worker: str, queues: Sequence[str], types: Sequence[str], batch_max: int, inbox_max: int) -> list[ClaimedRun]:
    """Take up to `batch_max` ready runs of these queues and types, the most urgent first, each with at most `inbox_max` arrivals.

    Queues are asked in the order given. Arrivals that come after this claim make the run ready again, so none is overlooked.
    """
    claimed: list[ClaimedRun] = []
    for queue in queues:
        if len(claimed) >= batch_max:
            break
        claimed += claimed_runs(send_claim(tx, worker=worker, queue=queue, types=types, batch_max=batch_max - len(claimed)).rows())
    # Read after `ready` was cleared and under the runs' locks: what is not here yet will set `ready` again.
    return with_inboxes(tx, claimed, inbox_max)


def send_claim(tx: Sender, *, worker: str, queue: str, types: Sequence[str], batch_max: int) -> Reply:
    """Take ready runs of one queue; `claimed_runs` reads the answer."""
    return tx.send(_CLAIM, worker=worker, queue=queue, types=list(types), batch_max=batch_max)


def claimed_runs(rows: Sequence[Row]) -> list[ClaimedRun]:
    """The runs that were taken, the most urgent first, without their inboxes."""
    return [
        ClaimedRun(run_id=run_id, epoch=epoch, turn=turn, queue=queue, type=type_, inbox=(), more=False, turn_failures=turn_failures)
        for run_id, epoch, turn, queue, type_, turn_failures, _, _ in sorted(rows, key=lambda row: (-row[6], row[7]))
    ]


def with_inboxes(tx: Transaction, claimed: Sequence[ClaimedRun], inbox_max: int) -> list[ClaimedRun]:
    """The claimed runs with at most `inbox_max` arrivals each. Must come after the claim, in its transaction or a later one."""
    if not claimed:
        return []
    inbox = arrived(tx, [run.run_id for run in claimed], inbox_max + 1)
    return [replace(run, inbox=tuple(inbox[run.run_id][:inbox_max]), more=len(inbox[run.run_id]) > inbox_max) for run in claimed]


def arrived(tx: Transaction, run_ids: Sequence[str], most: int) -> dict[str, list[InboxEntry]]:
    """The inbox of each run in the order of arrival, at most `most` entries each."""
    inbox: dict[str, list[InboxEntry]] = {run_id: [] for run_id in run_ids}
    for entry_id, run_id, event in tx.run(_INBOX, run_ids=list(inbox), most=most):
        inbox[run_id].append(InboxEntry(entry_id, documents.arrival(event)))
    return inbox


def load(tx: Transaction, after_turns: Mapping[str, int]) -> dict[str, list[Turn]]:
    """The turns of each run after the given one, oldest first."""
    histories: dict[str, list[Turn]] = {run_id: [] for run_id in after_turns}
    for run_id, *row in tx.run_rows(_LOAD, list(after_turns.items())):
        histories[run_id].append(documents.turn(row))
    return histories


def is_single(turns: Sequence[TurnCommit]) -> bool:
    """Whether these turns can be committed by a single transaction."""
    return not any(
        turn.continued_as is not None or turn.related or any(isinstance(command, ActivityCancelRequested) for command in turn.commands)
        for turn in turns
    )


def commit(
    tx: Transaction, turns: Sequence[TurnCommit], *, worker: str, build: str, beside: Sequence[str] = (), republish_s: float = 5.0
) -> Committed:
    """Write turns of different runs with a handful of statements; return the runs whose turn was lost, of which nothing is written.

    A turn is lost when its epoch is not the run's any more, when an activity it settles is not this worker's any more, when a timer it fires is gone or not due, and, if it
    closes the run, when something new has arrived meanwhile: then the run is claimable at once. Must be the first thing that the
    transaction writes, because a loser makes it start over; `beside` are other runs that it will write to, locked with these. A single
    transaction (see `is_single`) raises Unmet instead of naming losers.
    The messages of Celery tasks are left to the caller; beat sends them after republish_s seconds if nobody has started them by then.
    """
    assert len({turn.run_id for turn in turns}) == len(turns), "one commit holds at most one turn of a run"
    standing = sorted(turns, key=lambda turn: turn.run_id)
    lost: set[str] = set()
    related = any(turn.related for turn in turns)
    targets = relations.lock(tx, beside, turns) if related else {}
    while standing:
        losers = _write(tx, standing, worker=worker, build=build, republish_s=republish_s)
        if not losers:
            break
        tx.start_over()  # everything was written in the hope that all fences hold; that is nearly always so
        lost |= losers
        standing = [turn for turn in standing if turn.run_id not in losers]
        targets = relations.lock(tx, beside, turns)
    if tx.single:
        return Committed()
    _cancel_activities(tx, standing)
    for turn in standing:
        if turn.continued_as is not None:
            _continue(tx, turn.continued_as)
    delivered = relations.deliver(tx, standing, targets) if related else Delivered()
    tx.send_rows(_GIVE_BACK, sorted((turn.run_id, turn.epoch) for turn in turns if turn.run_id in lost), worker=worker)
    return Committed(frozenset(lost), delivered.queues, delivered.orphans)


def fail_turns(tx: Transaction, failures: Sequence[TurnFailure]) -> set[str]:
    """Note why these turns could not be taken and have them tried again later; return the runs that were still ours."""
    ordered = sorted(failures, key=lambda failure: failure.run_id)
    runs.lock(tx, [failure.run_id for failure in ordered])
    failed = {run_id for (run_id,) in tx.run_rows(_FAIL, [(f.run_id, f.epoch, f.retry_in_s) for f in ordered])}
    tx.send_rows(_STUCK, [(f.run_id, documents.dump(f.reason)) for f in ordered if f.run_id in failed])
    runs.ring_when_ready(tx, [f.run_id for f in ordered if f.run_id in failed])
    return failed


def release(tx: Transaction, claims: Sequence[tuple[str, int]]) -> None:
    """Let go of (run id, epoch) claims that found nothing to do."""
    ordered = sorted(claims)
    runs.lock(tx, [run_id for run_id, _ in ordered])
    tx.send_rows(_RELEASE, ordered)


def _write(tx: Transaction, turns: Sequence[TurnCommit], *, worker: str, build: str, republish_s: float) -> set[str]:
    """Write all there is in one go; return the runs whose fence did not hold, or nothing if all is well."""
    going_on = [turn for turn in turns if turn.status is Status.RUNNING]
    firing = sorted((turn.run_id, "timer", seq) for turn in turns for seq in turn.fired)
    keys = sorted({(key.run_id, key.seq, key.attempt) for turn in turns for key in turn.settled})
    consumed = [entry_id for turn in going_on for entry_id in turn.consumed]
    closing = [turn for turn in turns if turn.status is not Status.RUNNING]
    with tx.together() as group:
        advanced = group.send_rows(
            _ADVANCE,
            [(t.run_id, t.epoch, t.turn, t.status.value, t.more, len(t.arrivals) + len(t.commands)) for t in turns],
        )
        settled = group.send_rows(_SETTLE_EAGER, keys, worker=worker)
        group.expect(advanced, len(turns))
        group.expect(settled, len(keys))
        fired = group.send_rows(_FIRE, firing)
        group.expect(fired, len(firing))
        group.send_rows(
            _APPEND,
            [(t.run_id, t.turn, t.at, int(t.flags), documents.dump([*t.arrivals, *t.commands])) for t in turns],
            worker=worker,
            build=build,
        )
        if consumed:
            group.send("DELETE FROM inbox WHERE {in id :ids}", ids=consumed)
        _write_going_on(group, going_on, worker=worker, republish_s=republish_s)
        _write_closing(group, closing, keys)
        if closing and len(turns) <= hints.TURNS_MAX:
            hints.give(group, tx.dialect, [turn.run_id for turn in closing])
    if tx.single:
        return set()  # else it would have raised Unmet
    stands = {run_id for (run_id,) in advanced.rows()}
    gone = {(run_id, seq) for run_id, seq, _ in keys} - {(run_id, seq) for run_id, seq in settled.rows()}
    gone |= {(run_id, seq) for run_id, _, seq in firing} - {(run_id, seq) for run_id, seq in fired.rows()}
    return {turn.run_id for turn in turns} - stands | {run_id for run_id, _ in gone}


def _write_going_on(tx: Sender, turns: Sequence[TurnCommit], *, worker: str, republish_s: float) -> None:
    """Activities and timers of runs that stay open."""
    scheduled = [
        (
            turn.run_id,
            s.seq,
            new.eager,
            s.task,
            s.type,
            new.queue,
            s.priority,
            documents.dump(s),
            s.schedule_to_start_s,
            s.start_to_close_s,
            s.schedule_to_close_s,
            s.heartbeat_s,
        )
        for turn in turns
        for new in turn.activities
        for s in [new.scheduled]
    ]
    tx.send_rows(_SCHEDULE, scheduled, worker=worker, republish_s=republish_s)
    started = [(turn.run_id, c.seq, c.fire_at) for turn in turns for c in turn.commands if isinstance(c, TimerStarted)]
    tx.send_rows(_START_TIMERS, started)
    # What fires in this very turn is being removed beside this; one statement must not remove a row twice.
    canceled = [(turn, c.seq) for turn in turns for c in turn.commands if isinstance(c, TimerCanceled)]
    stopped = [(turn.run_id, "timer", seq) for turn, seq in canceled if seq not in turn.fired]
    tx.send_rows(_STOP_TIMERS, stopped)


def _write_closing(tx: Sender, turns: Sequence[TurnCommit], keys: Sequence[tuple[str, int, int]]) -> None:
    """Outcomes of runs that are over, and the removal of all that nobody will look at any more."""
    if not turns:
        return
    outcomes = [(t.run_id, t.result, t.failure, t.continued_as.started.run_id if t.continued_as else None) for t in turns]
    runs.record_outcomes(tx, outcomes)
    run_ids = [turn.run_id for turn in turns]
    tx.send("DELETE FROM inbox WHERE {in run_id :run_ids}", run_ids=run_ids)
    tx.send(_CLEAR_TIMERS, run_ids=run_ids, fired=[f"{turn.run_id} {seq}" for turn in turns for seq in turn.fired])
    # What was settled is being removed beside this; one statement must not remove a row twice.
    tx.send(_CLEAR_ACTIVITIES, run_ids=run_ids, settled=[f"{run_id} {seq}" for run_id, seq, _ in keys])


def _cancel_activities(tx: Transaction, turns: Sequence[TurnCommit]) -> None:
    """Take back what no worker has started, and tell the workers of the rest."""
    cancels = {
        (turn.run_id, command.seq): command.wait
        for turn in turns
        if turn.status is Status.RUNNING
        for command in turn.commands
        if isinstance(command, ActivityCancelRequested)
    }
    if not cancels:
        return
    removed = tx.run_rows(_CANCEL_QUEUED, sorted(cancels))
    tx.send_rows(_CANCEL_STARTED, [(*key, wait) for key, wait in sorted(cancels.items())])
    items: list[tuple[str, Arrival, str | None]] = [
        (run_id, ActivityCanceled(seq, attempt=attempt), None) for run_id, seq, attempt in sorted(removed) if cancels[run_id, seq]
    ]
    runs.deliver(tx, items)


def _continue(tx: Transaction, new: NewRun) -> None:
    created = runs.insert(tx, [new])
    assert created, f"the id of {new.started.workflow_id} was freed by this very transaction"
    runs.furnish(tx, [new])
    tx.send(_INHERIT, old=new.started.continued_from, new=new.started.run_id)
