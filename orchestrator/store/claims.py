"""What an engine takes on: ready runs, queued activities, open questions; law: a claim is a fence, and a lost one is as if it had never been made.

A claim by itself, as an idle engine makes it, is one statement a queue on PostgreSQL, and its commit does not wait for the disk. Should
the server die before the disk has it, somebody may claim the same again under the same epoch. The turn that the first one writes afterwards
is on the disk only if its claim is, for the log is written in order; and of two turns of the same number one is written, whatever the epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.store import activities, control, turns
from orchestrator.store.transaction import Transaction
from schemas.runs import ClaimedRun, PendingActivity, Question

_NO_DISK = "SELECT set_config('synchronous_commit', 'off', true)"


Room = tuple[list[str], int]  # types of activities, and how many of them


@dataclass(frozen=True, slots=True)
class Wanted:
    """Who looks for what, and how much of it."""

    worker: str
    queues: Sequence[str]
    run_types: Sequence[str]
    runs_max: int
    rooms: Sequence[Room]  # no type is in two of them
    inbox_max: int  # arrivals of a run that are claimed with it


@dataclass(slots=True)
class Claimed:
    """What is the claimant's now."""

    runs: list[ClaimedRun] = field(default_factory=list)
    activities: list[PendingActivity] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    filled: bool = False  # a room: there may be more activities than fit


def claim(tx: Transaction, wanted: Wanted) -> Claimed:
    """Take what is wanted in a transaction that does other things as well."""
    claimed = Claimed()
    claimed.runs = turns.claim(
        tx,
        worker=wanted.worker,
        queues=wanted.queues,
        types=wanted.run_types,
        batch_max=wanted.runs_max,
        inbox_max=wanted.inbox_max,
    )
    for types, room in wanted.rooms:
        started = activities.claim(tx, worker=wanted.worker, queues=wanted.queues, types=types, batch_max=room) if room and types else []
        claimed.activities += started
        claimed.filled |= bool(types) and len(started) >= room
    claimed.questions = control.questions(tx, queues=wanted.queues, types=wanted.run_types, batch_max=wanted.runs_max)
    return claimed


def claim_quickly(tx: Transaction, wanted: Wanted, queue: str) -> Claimed:
    """Take what one queue has, in a single transaction. Runs come without their inboxes: see `turns.with_inboxes`."""
    with tx.together() as group:
        taken = turns.send_claim(group, worker=wanted.worker, queue=queue, types=wanted.run_types, batch_max=wanted.runs_max)
        started = [
            activities.send_claim(group, worker=wanted.worker, queue=queue, types=types, batch_max=room) for types, room in wanted.rooms
        ]
        asked = control.send_questions(group, queues=[queue], types=wanted.run_types, batch_max=wanted.runs_max)
        if tx.dialect == "postgresql":
            group.send(_NO_DISK)
    claimed = Claimed(turns.claimed_runs(taken.rows()), questions=control.asked(asked.rows()))
    for (types, room), reply in zip(wanted.rooms, started, strict=True):
        found = activities.started(reply.rows())
        claimed.activities += found
        claimed.filled |= bool(types) and len(found) >= room
    return claimed


def must_be_kept(claimed: Claimed) -> bool:
    """Whether a quick claim must be on the disk before anything of it runs: an attempt that may be the last one must not be made twice.

    Any later commit that waits for the disk brings the claim there as well, for the log is written in order.
    """
    return any(
        retry is not None and 0 < retry.maximum_attempts <= activity.key.attempt
        for activity in claimed.activities
        for retry in [activity.scheduled.retry]
    )
