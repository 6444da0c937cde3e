"""What a turn does to other runs, in the turn's own transaction; law: all locks first, in the order of run ids, then the writes.

Children are started, their ends told to their parents, signals and cancel requests delivered. Only what becomes of children whose parent has
closed comes afterwards, batch by batch (`part`): the rows that say so are written with the close, and there is no end to a family.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.errors import DatabaseUnavailable
from orchestrator.store import family, runs
from orchestrator.store.family import End
from orchestrator.store.transaction import Transaction
from schemas.history import (
    Arrival,
    CancelRequested,
    CancelSent,
    ChildCancelRequested,
    ChildStarted,
    ChildStartFailed,
    Failure,
    Message,
    MessageDelivered,
    MessageFailed,
    RunTerminated,
    SignalReceived,
    SignalSent,
)
from schemas.runs import NewChild, StartOutcome, Status, TurnCommit

LOCK_ROUNDS_MAX = 20  # how often the recipient of a message may continue as new between our looking and our locking

_OPEN = "SELECT workflow_id, run_id, first_run_id FROM runs WHERE {in workflow_id :workflow_ids} AND status = 'running'"
_CHILDREN = """
SELECT c.run_id, c.seq, r.run_id FROM {rows run_id:text, seq:int}
JOIN child_workflows c ON {at c.run_id v.run_id} AND c.seq = v.seq
JOIN runs r ON {at r.workflow_id c.workflow_id} AND r.first_run_id = c.first_run_id AND {unindexed r.status} = 'running'
"""
_ORPHANS = """
SELECT c.run_id, c.seq, c.workflow_id, c.first_run_id, c.parent_close, p.workflow_id
FROM child_workflows c LEFT JOIN runs p ON p.run_id = c.run_id
WHERE c.orphaned_at IS NOT NULL ORDER BY c.orphaned_at, c.run_id, c.seq LIMIT :batch_max
"""
_FORGET = """
DELETE FROM {keyed child_workflows run_id:text, seq:int}
"""

Key = tuple[str, int]  # who asks, and the number of what is asked for
Targets = Mapping[Key, str]  # the open run that it goes to
Delivery = tuple[str, Arrival, str | None]


@dataclass(frozen=True, slots=True)
class Parted:
    """How many orphans were seen to, and the queues to ring for it."""

    count: int
    queues: frozenset[str]


@dataclass(frozen=True, slots=True)
class Delivered:
    """The queues of runs that have something new, and whether some children are without their parent now."""

    queues: frozenset[str] = frozenset()
    orphans: bool = False


def lock(tx: Transaction, run_ids: Iterable[str], turns: Sequence[TurnCommit]) -> Targets:
    """Lock these runs and all that the turns reach, in order; return whom their messages go to. Must come before any write.

    A recipient may close or continue as new before it is locked. Then the transaction starts over and looks again, because a lock
    taken out of order could wait for somebody who waits for us.
    """
    known = {*run_ids, *(turn.run_id for turn in turns), *(turn.parent.run_id for turn in turns if turn.parent is not None)}
    for _ in range(LOCK_ROUNDS_MAX):
        targets = _find(tx, turns)
        held = known | set(targets.values())
        runs.lock(tx, held)
        if tx.dialect == "sqlite" or not targets:
            return targets
        targets = _find(tx, turns)
        if held.issuperset(targets.values()):
            return targets
        tx.start_over()
    raise DatabaseUnavailable("the runs that messages go to continue as new faster than they can be found. Try again.")


def deliver(tx: Transaction, turns: Sequence[TurnCommit], targets: Targets) -> Delivered:
    """Do what these turns, which are written, do to other runs; their locks are held."""
    answers, started = _start(tx, [(turn, child) for turn in turns for child in turn.children])
    sent = list(_messages(turns))
    found = {key: _newborn(command, started) for key, command in sent} | dict(targets)
    heirs = {turn.run_id: turn.continued_as.started.run_id for turn in turns if turn.continued_as is not None}
    for key, command in sent:
        if isinstance(command, ChildCancelRequested) or command.run_id is None:
            found[key] = heirs.get(found[key], found[key])  # it has continued as new in this very transaction
    ends = {turn.parent.first_run_id: _end(turn) for turn in turns if turn.parent is not None}
    deliveries = [(found[key], _arrival(key, command), f"{key[0]}-{key[1]}") for key, command in sent if found[key]]
    woken = runs.deliver_to(tx, [*deliveries, *family.reports(tx, ends)])
    for key, command in sent:
        if isinstance(command, Message):
            answers.append((key[0], _answer(command, found[key] if found[key] in woken else ""), None))
    woken |= runs.deliver_to(tx, answers)
    orphans = family.orphan(tx, [turn.run_id for turn in turns if turn.orphans])
    return Delivered(frozenset(woken.values()), orphans)


def part(tx: Transaction, batch_max: int) -> Parted:
    """Terminate children whose parent has closed, or ask them to cancel, as their policies say; at most `batch_max` of them."""
    orphans = tx.run(_ORPHANS, batch_max=batch_max)
    if not orphans:
        return Parted(0, frozenset())
    workflow_ids = sorted({row[2] for row in orphans})
    before = {first_run_id: run_id for _, run_id, first_run_id in tx.run(_OPEN, workflow_ids=workflow_ids)}
    held = {before[row[3]] for row in orphans if row[3] in before}
    runs.lock(tx, held | {row[0] for row in orphans})
    opened = {first_run_id: run_id for _, run_id, first_run_id in tx.run(_OPEN, workflow_ids=workflow_ids)}
    queues: set[str] = set()
    cancels: list[Delivery] = []
    done: list[Key] = []
    for parent_run_id, seq, _, first_run_id, policy, parent_id in orphans:
        child_run_id = opened.get(first_run_id)
        if child_run_id is not None and child_run_id not in held:
            continue  # it has just continued as new: next time
        done.append((parent_run_id, seq))
        reason = f"its parent {parent_id or parent_run_id} has closed"
        if child_run_id is not None and policy == "terminate":
            queues |= runs.close_from_outside(tx, child_run_id, RunTerminated(reason)) or set()
        elif child_run_id is not None:
            cancels.append((child_run_id, CancelRequested(reason), None))
    queues |= set(runs.deliver_to(tx, cancels).values())
    tx.send_rows(_FORGET, done)
    return Parted(len(done), frozenset(queues))


def _find(tx: Transaction, turns: Sequence[TurnCommit]) -> dict[Key, str]:
    """The open run that each message goes to, as far as there is one."""
    sent = list(_messages(turns))
    found: dict[Key, str] = {}
    workflow_ids = sorted({command.workflow_id for _, command in sent if isinstance(command, Message)})
    opened = {row[0]: row[1:] for row in tx.run(_OPEN, workflow_ids=workflow_ids)} if workflow_ids else {}
    for key, command in sent:
        if isinstance(command, Message) and command.workflow_id in opened:
            run_id, first_run_id = opened[command.workflow_id]
            if command.run_id in {None, run_id} and command.first_run_id in {None, first_run_id}:
                found[key] = run_id
    children = [key for key, command in sent if isinstance(command, ChildCancelRequested)]
    found |= {(run_id, seq): child for run_id, seq, child in tx.run_rows(_CHILDREN, children)}
    return found


def _messages(turns: Sequence[TurnCommit]) -> Iterator[tuple[Key, Message | ChildCancelRequested]]:
    for turn in turns:
        if turn.related:
            for command in turn.commands:
                if isinstance(command, Message | ChildCancelRequested):
                    yield (turn.run_id, command.seq), command


def _start(tx: Transaction, wanted: Sequence[tuple[TurnCommit, NewChild]]) -> tuple[list[Delivery], dict[str, str]]:
    """Start children; what is to be told to their parents, and the (workflow id -> run id) of those that were created."""
    if not wanted:
        return [], {}
    outcomes = runs.start(tx, [child.run for _, child in wanted])
    told: list[Delivery] = []
    created: list[tuple[str, int, str, str, str]] = []
    for (turn, child), outcome in zip(wanted, outcomes, strict=True):
        if outcome.created:
            started = child.run.started
            created.append((turn.run_id, child.seq, started.workflow_id, started.run_id, child.parent_close))
            if child.announced:
                told.append((turn.run_id, ChildStarted(child.seq, started.run_id), None))
        else:
            told.append((turn.run_id, ChildStartFailed(child.seq, _taken(child, outcome)), None))
    family.add(tx, created)
    return told, {workflow_id: run_id for _, _, workflow_id, run_id, _ in created}


def _newborn(command: Message | ChildCancelRequested, started: Mapping[str, str]) -> str:
    """The child that a message goes to which was sent in the turn that started it."""
    if isinstance(command, ChildCancelRequested) or command.run_id or command.first_run_id:
        return ""
    return started.get(command.workflow_id, "")


def _taken(child: NewChild, outcome: StartOutcome) -> Failure:
    workflow_id = child.run.started.workflow_id
    if outcome.status is Status.RUNNING:
        reason = f"workflow {workflow_id!r} is running already (run {outcome.run_id}); give the child another id"
    else:
        words = str(outcome.status).replace("_", " ")
        reason = f"workflow {workflow_id!r} ran before and is {words} (run {outcome.run_id}); {child.run.reuse} does not allow another run"
    return Failure("already_started", reason, type="WorkflowAlreadyStarted", workflow_id=workflow_id, run_id=outcome.run_id)


def _arrival(key: Key, command: Message | ChildCancelRequested) -> Arrival:
    if isinstance(command, SignalSent):
        return SignalReceived(command.name, command.args, id=f"{key[0]}-{key[1]}")
    return CancelRequested(command.reason)


def _answer(command: Message, run_id: str) -> Arrival:
    if run_id:
        return MessageDelivered(command.seq, run_id)
    what = "cancel request" if isinstance(command, CancelSent) else f"signal {command.name!r}"
    run = f" with run id {command.run_id!r}" if command.run_id else ""
    reason = f"the {what} was not delivered: there is no open run of workflow {command.workflow_id!r}{run}"
    return MessageFailed(
        command.seq,
        Failure("not_delivered", reason, type="MessageNotDelivered", workflow_id=command.workflow_id, run_id=command.run_id or ""),
    )


def _end(turn: TurnCommit) -> End:
    failure = turn.failure
    if failure is not None and turn.status is Status.CANCELED and failure.kind != "canceled":
        failure = Failure("canceled", "the child workflow was cancelled", cause=failure)
    return End(turn.run_id, turn.result, failure)
