"""Starting runs, sending to them, closing them from outside and looking at one; law: what arrives makes its run ready in the same transaction.

Row locks are always taken in one order, runs by id before anything that belongs to them, so that no two batches wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrator.errors import DatabaseUnavailable
from orchestrator.store import documents, family, hints
from orchestrator.store.documents import RUN_COLUMNS
from orchestrator.store.family import End
from orchestrator.store.hints import Woken
from orchestrator.store.transaction import Row, Sender, Transaction, Unmet
from schemas.history import FLAGS_NOW, Arrival, Close, Failure, Json, RunTerminated, Turn
from schemas.runs import IdConflictPolicy, IdReusePolicy, NewRun, RunDescription, StartOutcome, Status

START_ROUNDS_MAX = 20  # how often the id of a start may change hands between our looking and our inserting
HISTORY_PAGE_MAX = 1000  # turns

_INSERT = """
INSERT INTO runs (run_id, workflow_id, type, queue, status, priority, epoch, turn, ready, ready_at, turn_failures, started_at, attempt,
                  history_events, deadline_at, parent_id, parent_run_id, continued_from, first_run_id)
SELECT v.run_id, v.workflow_id, v.type, v.queue, 'running',
       coalesce(v.priority, (SELECT o.priority FROM runs o WHERE o.run_id = coalesce(v.continued_from, v.parent_run_id)), 0), 0, 0, true, {now} + v.delay_s, 0, {now}, v.attempt, 0,
       nullif({least}(coalesce({now} + v.delay_s + v.run_timeout_s, 1e18), coalesce(v.execution_deadline_at, 1e18)), 1e18),
       v.parent_id, v.parent_run_id, v.continued_from, v.first_run_id
FROM {rows run_id:text, workflow_id:text, type:text, queue:text, priority:int, delay_s:float, attempt:int, run_timeout_s:float,
           execution_deadline_at:float, parent_id:text, parent_run_id:text, continued_from:text, first_run_id:text}
WHERE true
ON CONFLICT DO NOTHING
RETURNING run_id
"""
_INSERT_PAYLOADS = """
INSERT INTO run_payloads (run_id, memo, search_attributes)
SELECT v.run_id, v.memo, v.search_attributes FROM {rows run_id:text, memo:text, search_attributes:text}
"""
_FIRST_ARRIVALS = """
INSERT INTO inbox (run_id, kind, event, dedup)
SELECT v.run_id, v.kind, v.event, v.dedup FROM {rows position:int, run_id:text, kind:text, event:text, dedup:text} WHERE true ORDER BY v.position
ON CONFLICT DO NOTHING
"""
_INSERT_ARRIVALS = """
INSERT INTO inbox (run_id, kind, event, dedup)
SELECT v.run_id, v.kind, v.event, v.dedup FROM {rows position:int, run_id:text, kind:text, event:text, dedup:text}
WHERE EXISTS (SELECT 1 FROM runs r WHERE {at r.run_id v.run_id} AND {unindexed r.status} = 'running')
ORDER BY v.position
ON CONFLICT DO NOTHING
"""
_INSERT_TIMEOUTS = """
INSERT INTO timers (run_id, kind, seq, fire_at)
SELECT run_id, 'run_timeout', 0, deadline_at FROM runs WHERE {in run_id :run_ids} AND deadline_at IS NOT NULL
"""
_RING_WHEN_READY = """
INSERT INTO timers (run_id, kind, seq, fire_at)
SELECT run_id, 'ready', 0, ready_at FROM runs WHERE {in run_id :run_ids} AND {unindexed status} = 'running'
ON CONFLICT (run_id, kind, seq) DO UPDATE SET fire_at = excluded.fire_at
"""
_LATEST_CLOSED = """
SELECT workflow_id, run_id, status FROM runs
WHERE {in workflow_id :workflow_ids} AND status <> 'running'
  AND started_at = (SELECT max(m.started_at) FROM runs m WHERE m.workflow_id = runs.workflow_id AND m.status <> 'running')
ORDER BY run_id
"""
_OPEN_OF = "SELECT workflow_id, run_id FROM runs WHERE {in workflow_id :workflow_ids} AND status = 'running' ORDER BY run_id"
_PARENTS = "SELECT DISTINCT parent_run_id FROM runs WHERE {in run_id :run_ids} AND parent_run_id IS NOT NULL"
_EXISTING = "SELECT run_id, status FROM runs WHERE {in run_id :run_ids}"
_LOCK = "SELECT 1 FROM runs WHERE {in run_id :run_ids} ORDER BY run_id {lock}"
_WAKE = """
UPDATE runs SET ready_at = CASE WHEN ready THEN {least}(ready_at, {now}) ELSE {now} END, ready = true
WHERE {in run_id :run_ids} AND {unindexed status} = 'running' RETURNING run_id, queue
"""
_DELIVER = """
WITH woken AS (
    UPDATE runs SET ready_at = CASE WHEN ready THEN {least}(ready_at, {now}) ELSE {now} END, ready = true
    WHERE workflow_id = :workflow_id AND run_id = coalesce(:run_id, run_id) AND status = 'running' RETURNING run_id, queue
), arrived AS (
    INSERT INTO inbox (run_id, kind, event, dedup)
    SELECT woken.run_id, v.kind, v.event, v.dedup FROM woken, {rows position:int, kind:text, event:text, dedup:text} ORDER BY v.position
    ON CONFLICT DO NOTHING
)
SELECT woken.queue FROM woken
"""
_DELIVER_AND_HINT = _DELIVER.replace(
    "SELECT woken.queue FROM woken",
    ", told AS (" + hints.WAKE.replace("<queue>", "(SELECT to_json(woken.queue)::text FROM woken)") + ") "  # noqa: S608 - ours
    "SELECT woken.queue FROM woken UNION ALL SELECT '' FROM told",
)
_RESOLVE_RUN = "SELECT run_id, status, queue, type FROM runs WHERE run_id = :run_id AND workflow_id = :workflow_id"
_RESOLVE_LATEST = """
SELECT run_id, status, queue, type FROM runs WHERE workflow_id = :workflow_id
ORDER BY CASE WHEN status = 'running' THEN 0 ELSE 1 END, started_at DESC, run_id DESC LIMIT 1
"""
_CLOSE = """
UPDATE runs SET status = :status, closed_at = {now}, epoch = epoch + 1, turn = turn + 1, ready = false, owner = NULL, turn_failures = 0,
                history_events = history_events + 1
WHERE run_id = :run_id AND {unindexed status} = 'running' RETURNING turn, first_run_id
"""
_CLOSING_TURN = """
INSERT INTO turns (run_id, turn, at, flags, worker, build, events) VALUES (:run_id, :turn, {now}, :flags, '', '', :events)
"""
_OUTCOMES = """
INSERT INTO run_payloads (run_id, result, failure, continued_as)
SELECT v.run_id, v.result, v.failure, v.continued_as FROM {rows run_id:text, result:text, failure:text, continued_as:text} WHERE true
ON CONFLICT (run_id) DO UPDATE SET result = excluded.result, failure = excluded.failure, continued_as = excluded.continued_as
"""
_DESCRIBE = f"""
SELECT {RUN_COLUMNS} FROM runs r LEFT JOIN run_payloads p ON p.run_id = r.run_id WHERE r.run_id = :run_id
"""  # noqa: S608 - columns of our own
_OUTCOME = """
SELECT r.run_id, r.status, p.result, p.failure, p.continued_as FROM runs r LEFT JOIN run_payloads p ON p.run_id = r.run_id
WHERE {in r.run_id :run_ids} AND r.status <> 'running'
"""
_HISTORY = """
SELECT turn, at, flags, worker, build, events FROM turns WHERE run_id = :run_id AND turn > :after_turn ORDER BY turn LIMIT :most
"""
_FAILED = {Status.FAILED, Status.CANCELED, Status.TERMINATED, Status.TIMED_OUT}


def start(tx: Transaction, new: Sequence[NewRun]) -> list[StartOutcome]:
    """Create runs, each as the policies of its id allow; outcomes come in the order of `new`.

    Two that start the same id at once, here or in two processes, end as if one had come after the other. Starting the same run id again
    changes nothing and says "created", so that a caller who lost the answer may simply ask again.
    """
    outcomes: dict[int, StartOutcome] = {}
    waiting = sorted(range(len(new)), key=lambda position: new[position].started.workflow_id)
    rounds_left = len(new) + START_ROUNDS_MAX
    while waiting:
        if not rounds_left:
            raise DatabaseUnavailable("the workflow ids of this start change hands faster than it can look. Try again.")
        rounds_left -= 1
        first_of_each_id = {new[position].started.workflow_id: position for position in reversed(waiting)}
        outcomes.update(_start_round(tx, new, sorted(first_of_each_id.values(), key=waiting.index)))
        waiting = [position for position in waiting if position not in outcomes]
    return [outcomes[position] for position in range(len(new))]


def is_plain(new: Sequence[NewRun]) -> bool:
    """Whether nothing about these starts needs a second look as long as nobody uses their ids: what `start_plain` can do."""
    return all(
        run.reuse is IdReusePolicy.ALLOW_DUPLICATE
        and not run.start_delay_s
        and run.started.run_timeout_s is None
        and run.started.execution_deadline_at is None
        for run in new
    )


def start_plain(tx: Transaction, new: Sequence[NewRun], *, hint: bool = False) -> tuple[list[StartOutcome], Woken]:
    """Create plain runs in a single transaction, with a `hint` to workers; raises Unmet, and writes nothing, if one of their ids is in use."""
    with tx.together() as group:
        created = group.send_rows(_INSERT, _run_rows(new))
        group.expect(created, len(new))
        _furnish(group, new, _FIRST_ARRIVALS)
        woken = hints.wake(group, tx.dialect, {run.started.queue for run in new} if hint else ())
    if not tx.single and len(created.rows()) != len(new):
        raise Unmet
    return [StartOutcome(run.started.run_id, created=True) for run in new], woken


def insert(tx: Transaction, new: Sequence[NewRun]) -> set[str]:
    """Create runs whose ids are free, with their first arrivals and timers; return the run ids created."""
    return {run_id for (run_id,) in tx.run_rows(_INSERT, _run_rows(new))}


def _run_rows(new: Sequence[NewRun]) -> list[Row]:
    return [
        (
            s.run_id,
            s.workflow_id,
            s.type,
            s.queue,
            run.priority,
            run.start_delay_s,
            s.attempt,
            s.run_timeout_s,
            s.execution_deadline_at,
            s.parent_id,
            s.parent_run_id,
            s.continued_from,
            s.first_run_id or s.run_id,
        )
        for run in new
        for s in [run.started]
    ]


def furnish(tx: Transaction, new: Sequence[NewRun]) -> None:
    """Give runs that were just inserted what belongs to them: memo, first arrivals, timers."""
    _furnish(tx, new, _INSERT_ARRIVALS)
    limited = [r.started.run_id for r in new if r.started.run_timeout_s is not None or r.started.execution_deadline_at is not None]
    if limited:
        tx.send(_INSERT_TIMEOUTS, run_ids=limited)
    ring_when_ready(tx, [run.started.run_id for run in new if run.start_delay_s])


def _furnish(tx: Sender, new: Sequence[NewRun], sentence: str) -> None:
    payloads = [
        (run.started.run_id, documents.dump_unless_none(run.started.memo), documents.dump_unless_none(run.search_attributes))
        for run in new
        if run.started.memo or run.search_attributes
    ]
    tx.send_rows(_INSERT_PAYLOADS, payloads)
    arrivals: list[tuple[str, Arrival, str | None]] = []
    for run in new:
        arrivals.append((run.started.run_id, run.started, None))
        if run.signal:
            arrivals.append((run.started.run_id, run.signal, run.signal.id or None))
    _insert_arrivals(tx, arrivals, sentence)


def ring_when_ready(tx: Transaction, run_ids: Sequence[str]) -> None:
    """Have the queues of these runs rung when their delay or backoff ends: a row that must be seen at a time is a timer."""
    if run_ids:
        tx.send(_RING_WHEN_READY, run_ids=list(run_ids))


def deliver(tx: Transaction, items: Sequence[tuple[str, Arrival, str | None]]) -> set[str]:
    """Put (run id, arrival, dedup key) into the inboxes of open runs and make those runs ready; return the ids of the open ones.

    An arrival whose dedup key waits in the inbox already is dropped. Arrivals of one run keep their order.
    """
    return set(deliver_to(tx, items))


def deliver_to(tx: Transaction, items: Sequence[tuple[str, Arrival, str | None]]) -> dict[str, str]:
    """As `deliver`; return the queues of the open runs by their ids."""
    if not items:
        return {}
    run_ids = sorted({run_id for run_id, _, _ in items})
    lock(tx, run_ids)
    woken = tx.send(_WAKE, run_ids=run_ids)
    _insert_arrivals(tx, items)
    return dict(woken.rows())


def deliver_plain(
    tx: Transaction, workflow_id: str, run_id: str | None, items: Sequence[tuple[Arrival, str | None]], *, hint: bool
) -> tuple[str, bool]:
    """On PostgreSQL, put arrivals into the inbox of an open run by a single transaction: that of the id, or the open one of the workflow.

    Returns its queue, and whether a worker was told by a `hint`. Raises Unmet, and writes nothing, if the run is not open.
    """
    sentence = _DELIVER_AND_HINT if hint else _DELIVER
    arrivals = [(position, item.kind, documents.dump(item), dedup) for position, (item, dedup) in enumerate(items)]
    rows = tx.run_rows(sentence, arrivals, workflow_id=workflow_id, run_id=run_id)
    if not rows:
        raise Unmet
    return rows[0][0], len(rows) > 1


def resolve(tx: Transaction, workflow_id: str, run_id: str | None = None) -> tuple[str, Status, str, str] | None:
    """The (run id, status, queue, type) of a run; of the open or else latest run of the workflow id when `run_id` is None."""
    if run_id is None:
        rows = tx.run(_RESOLVE_LATEST, workflow_id=workflow_id)
    else:
        rows = tx.run(_RESOLVE_RUN, workflow_id=workflow_id, run_id=run_id)
    return (rows[0][0], Status(rows[0][1]), rows[0][2], rows[0][3]) if rows else None


def close_from_outside(tx: Transaction, run_id: str, close: Close) -> set[str] | None:
    """End an open run without asking its code; return the queues to ring for it, or None if it was not open.

    The event becomes a turn of its own, and the raised epoch makes whatever a worker is doing for the run come to nothing. Its parent is told;
    its children are seen to later (`relations.part`). Whoever closes several locks them and their `parents` before.
    """
    lock(tx, [run_id, *parents(tx, [run_id])])
    status = Status.TERMINATED if isinstance(close, RunTerminated) else Status.TIMED_OUT
    closed = tx.run(_CLOSE, run_id=run_id, status=status.value)
    if not closed:
        return None
    turn, first_run_id = closed[0]
    failure = _failure_of(close)
    tx.send(_CLOSING_TURN, run_id=run_id, turn=turn, flags=int(FLAGS_NOW), events=documents.dump([close]))
    record_outcomes(tx, [(run_id, None, failure, None)])
    hints.give(tx, tx.dialect, [run_id])
    clear(tx, [run_id])
    family.orphan(tx, [run_id])
    return set(deliver_to(tx, family.reports(tx, {first_run_id: End(run_id, failure=failure)})).values())


def record_outcomes(tx: Sender, outcomes: Sequence[tuple[str, Json, Failure | None, str | None]]) -> None:
    """Keep the (run id, result, failure, continued_as) of closed runs; one that left nothing costs no row."""
    rows = [
        (run_id, documents.dump_unless_none(result), documents.dump_unless_none(failure), continued_as)
        for run_id, result, failure, continued_as in outcomes
        if result is not None or failure is not None or continued_as is not None
    ]
    tx.send_rows(_OUTCOMES, rows)


def clear(tx: Transaction, run_ids: Sequence[str]) -> None:
    """Remove what nobody will look at once these runs are closed: inbox, activities, timers."""
    listed = list(run_ids)
    tx.send("DELETE FROM inbox WHERE {in run_id :run_ids}", run_ids=listed)
    tx.send("DELETE FROM activities WHERE {in run_id :run_ids}", run_ids=listed)
    tx.send("DELETE FROM timers WHERE {in run_id :run_ids}", run_ids=listed)


def lock(tx: Transaction, run_ids: Iterable[str]) -> None:
    """Lock runs in the order of their ids; on SQLite the transaction has the whole file."""
    if tx.dialect != "sqlite":
        tx.send(_LOCK, run_ids=list(run_ids))


def parents(tx: Transaction, run_ids: Sequence[str]) -> list[str]:
    """The runs that these were started by; they never change."""
    return [run_id for (run_id,) in tx.run(_PARENTS, run_ids=list(run_ids))] if run_ids else []


def describe(tx: Transaction, run_id: str) -> RunDescription | None:
    """Everything about one run that people ask for."""
    rows = tx.run(_DESCRIBE, run_id=run_id)
    return documents.described(rows[0]) if rows else None


def outcome(tx: Transaction, run_ids: Sequence[str]) -> dict[str, tuple[Status, Json, Failure | None, str | None]]:
    """The (status, result, failure, continued_as) of those runs that are closed."""
    return {
        run_id: (Status(status), documents.load(result), documents.failure(failure), continued_as)
        for run_id, status, result, failure, continued_as in tx.run(_OUTCOME, run_ids=list(run_ids))
    }


def history(tx: Transaction, run_id: str, after_turn: int = 0, limit: int = HISTORY_PAGE_MAX) -> list[Turn]:
    """The turns of a run after `after_turn`, oldest first, at most `limit`."""
    rows = tx.run(_HISTORY, run_id=run_id, after_turn=after_turn, most=min(limit, HISTORY_PAGE_MAX))
    return [documents.turn(row) for row in rows]


def _start_round(tx: Transaction, new: Sequence[NewRun], positions: Sequence[int]) -> dict[int, StartOutcome]:
    """Try each position once, no two of the same id; those without an outcome want another round."""
    created = insert(tx, [new[position] for position in positions])
    mine = [position for position in positions if new[position].started.run_id in created]
    # Looking after inserting: while our run is open nobody else can start and close one in between.
    outcomes = _refused_by_reuse(tx, new, mine)
    kept = [position for position in mine if position not in outcomes]
    furnish(tx, [new[position] for position in kept])
    outcomes.update((position, StartOutcome(new[position].started.run_id, created=True)) for position in kept)
    outcomes.update(_judge_conflicts(tx, new, [position for position in positions if new[position].started.run_id not in created]))
    return outcomes


def _refused_by_reuse(tx: Transaction, new: Sequence[NewRun], positions: Sequence[int]) -> dict[int, StartOutcome]:
    strict = [position for position in positions if new[position].reuse is not IdReusePolicy.ALLOW_DUPLICATE]
    if not strict:
        return {}
    workflow_ids = [new[position].started.workflow_id for position in strict]
    latest = {workflow_id: (run_id, Status(status)) for workflow_id, run_id, status in tx.run(_LATEST_CLOSED, workflow_ids=workflow_ids)}
    refused: dict[int, StartOutcome] = {}
    for position in strict:
        run = new[position]
        closed = latest.get(run.started.workflow_id)
        if closed and not (run.reuse is IdReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY and closed[1] in _FAILED):
            refused[position] = StartOutcome(closed[0], created=False, status=closed[1])
    if refused:
        tx.send("DELETE FROM runs WHERE {in run_id :run_ids}", run_ids=[new[position].started.run_id for position in refused])
    return refused


def _judge_conflicts(tx: Transaction, new: Sequence[NewRun], positions: Sequence[int]) -> dict[int, StartOutcome]:
    """What the policies say to starts that found their id taken; no outcome for one whose way is free now."""
    if not positions:
        return {}
    starts = [new[position].started for position in positions]
    strict = all(new[position].conflict is IdConflictPolicy.FAIL for position in positions)
    opened = _opened(tx, [s.workflow_id for s in starts], locked=not strict)
    existing = {run_id: Status(status) for run_id, status in tx.run(_EXISTING, run_ids=[s.run_id for s in starts])}
    outcomes: dict[int, StartOutcome] = {}
    signals: list[tuple[str, Arrival, str | None]] = []
    for position in positions:
        run = new[position]
        open_run = opened.get(run.started.workflow_id)
        if run.started.run_id in existing:
            outcomes[position] = StartOutcome(run.started.run_id, created=True, status=existing[run.started.run_id])
        elif open_run is None:
            continue
        elif run.conflict is IdConflictPolicy.TERMINATE_EXISTING:
            close_from_outside(tx, open_run, RunTerminated("replaced by a new run of the same id"))
        elif run.conflict is IdConflictPolicy.USE_EXISTING:
            outcomes[position] = StartOutcome(open_run, created=False, used_existing=True)
            if run.signal:
                signals.append((open_run, run.signal, run.signal.id or None))
        else:
            outcomes[position] = StartOutcome(open_run, created=False)
    deliver(tx, signals)
    return outcomes


def _opened(tx: Transaction, workflow_ids: Sequence[str], *, locked: bool) -> dict[str, str]:
    """The open run of each workflow id, with a lock if it is to be touched; without those that opened while we locked."""
    opened: dict[str, str] = dict(tx.run(_OPEN_OF, workflow_ids=list(workflow_ids)))
    if not locked or not opened or tx.dialect == "sqlite":
        return opened
    lock(tx, [*opened.values(), *parents(tx, list(opened.values()))])
    return {id_: run_id for id_, run_id in tx.run(_OPEN_OF, workflow_ids=list(workflow_ids)) if opened.get(id_) == run_id}


def _insert_arrivals(tx: Sender, items: Sequence[tuple[str, Arrival, str | None]], sentence: str = _INSERT_ARRIVALS) -> None:
    rows = [(position, run_id, item.kind, documents.dump(item), dedup) for position, (run_id, item, dedup) in enumerate(items)]
    tx.send_rows(sentence, rows)


def _failure_of(close: Close) -> Failure:
    if isinstance(close, RunTerminated):
        return Failure("terminated", close.reason or "the run was terminated")
    return Failure("timeout", f"the run did not close within {close.timeout_s:g} s", type="run")
