"""What turns do to other runs: in the same transaction, once, with locks that never cross, and nothing of it for a turn that was lost."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.store import relations, runs, turns
from schemas.history import (
    CancelRequested,
    ChildCancelRequested,
    ChildCompleted,
    ChildFailed,
    ChildScheduled,
    ChildStarted,
    ChildStartFailed,
    MessageDelivered,
    MessageFailed,
    RunContinued,
    RunStarted,
    RunTerminated,
    SignalReceived,
    SignalSent,
)
from schemas.runs import IdReusePolicy, NewChild, NewRun, ParentLink, Status
from tests.store.conftest import QUEUE, TYPE

pytestmark = pytest.mark.req("DC-29")


def child_of(parent, seq, workflow_id, *, run_id=None, policy="terminate", announced=False, reuse=IdReusePolicy.ALLOW_DUPLICATE):
    run_id = run_id or SYSTEM.fresh_id()
    started = RunStarted(workflow_id, run_id, TYPE, QUEUE, first_run_id=run_id, parent_id="parent", parent_run_id=parent.run_id)
    command = ChildScheduled(seq, workflow_id, TYPE, parent_close=policy, announced=announced, run_id=run_id)
    return command, NewChild(seq, NewRun(started, reuse, priority=None), announced, policy)


def starting(desk, parent, *children, **options):
    commands, new = zip(*children, strict=True)
    return desk.turn(parent, *commands, related=True, children=new, **options)


def closing_child(desk, child, parent, **options):
    return desk.closing(child, related=True, parent=ParentLink(parent.run_id, child.run_id), **options)


def claimed(desk, workflow_id):
    """The claim of a run that is ready; others are let go."""
    found = {desk.rows("SELECT workflow_id FROM runs WHERE run_id = :id", id=run.run_id)[0][0]: run for run in desk.claim()}
    return found[workflow_id]


@pytest.fixture
def parent(desk):
    desk.start("parent", priority=4)
    return claimed(desk, "parent")


def inbox(desk, run_id):
    return [entry.arrival for entry in desk.ask(turns.arrived, [run_id], 100)[run_id]]


def test_a_child_is_started_by_the_turn_that_asks_for_it_and_its_end_reaches_the_parent(desk, parent):
    first, second = child_of(parent, 1, "a", announced=True), child_of(parent, 2, "b")
    assert not desk.commit(starting(desk, parent, first, second))
    assert inbox(desk, parent.run_id) == [ChildStarted(1, first[0].run_id)]
    assert [row[0] for row in desk.rows("SELECT priority FROM runs WHERE parent_run_id IS NOT NULL")] == [4, 4]
    desk_runs = {run.run_id: run for run in desk.claim()}
    assert not desk.commit(
        *(closing_child(desk, desk_runs[command.run_id], parent, result=command.workflow_id) for command, _ in (first, second))
    )
    assert inbox(desk, parent.run_id)[-2:] == [ChildCompleted(1, "a", first[0].run_id), ChildCompleted(2, "b", second[0].run_id)]
    assert desk.count("child_workflows") == 0


def test_a_turn_that_is_lost_starts_nothing_and_tells_nothing(desk, parent):
    stale = replace(starting(desk, parent, child_of(parent, 1, "a")), epoch=parent.epoch - 1)
    assert desk.commit(stale) == {parent.run_id}
    assert (desk.count("runs"), desk.count("child_workflows")) == (1, 0)


def test_an_id_that_is_taken_is_told_to_the_parent_and_harms_no_sibling(desk, parent):
    desk.start("taken")
    desk.start("over")
    assert not desk.commit(desk.closing(claimed(desk, "over")))
    refused, fine = child_of(parent, 1, "taken"), child_of(parent, 2, "free")
    strict = child_of(parent, 3, "over", reuse=IdReusePolicy.REJECT_DUPLICATE)
    twin = child_of(parent, 4, "free")
    assert not desk.commit(starting(desk, parent, refused, fine, strict, twin))
    told = inbox(desk, parent.run_id)
    assert [type(event) for event in told] == [ChildStartFailed] * 3
    assert [event.seq for event in told] == [1, 3, 4]
    assert desk.rows("SELECT seq FROM child_workflows") == [(2,)]


def test_a_child_that_is_ended_from_outside_tells_its_parent_once(desk, parent):
    child = child_of(parent, 1, "a")
    assert not desk.commit(starting(desk, parent, child))
    assert desk.ask(runs.close_from_outside, child[0].run_id, RunTerminated("by hand")) == {QUEUE}
    (told,) = inbox(desk, parent.run_id)
    assert isinstance(told, ChildFailed)
    assert (told.failure.kind, told.failure.message, told.run_id) == ("terminated", "by hand", child[0].run_id)


def test_a_message_reaches_the_open_run_of_an_id_or_its_sender_hears_that_there_is_none(desk, parent):
    other = desk.start("other")
    sent = [SignalSent(1, "other", "hello", (1,)), SignalSent(2, "nobody", "x"), SignalSent(3, "other", "y", run_id="another run")]
    assert not desk.commit(desk.turn(parent, *sent, related=True))
    assert inbox(desk, other)[1:] == [SignalReceived("hello", (1,), f"{parent.run_id}-1")]
    told = inbox(desk, parent.run_id)
    assert told[0] == MessageDelivered(1, other)
    assert [event.seq for event in told if isinstance(event, MessageFailed)] == [2, 3]
    assert "another run" in told[2].failure.message


def test_a_message_finds_a_recipient_that_continues_as_new_before_it_is_locked(desk, rival, parent, monkeypatch):
    desk.start("other")
    old = claimed(rival, "other")
    successor = SYSTEM.fresh_id()
    locked: list[bool] = []
    lock = runs.lock

    def lock_late(tx, run_ids):
        if not locked and tx.dialect != "sqlite":  # there the first transaction keeps everybody else out
            locked.append(True)
            new = NewRun(RunStarted("other", successor, TYPE, QUEUE, first_run_id=old.run_id, continued_from=old.run_id))
            assert not rival.commit(rival.turn(old, RunContinued(), status=Status.CONTINUED_AS_NEW, continued_as=new))
        lock(tx, run_ids)

    monkeypatch.setattr(runs, "lock", lock_late)
    assert not desk.commit(desk.turn(parent, SignalSent(1, "other", "hello"), related=True))
    recipient = successor if locked else old.run_id
    assert inbox(desk, parent.run_id) == [MessageDelivered(1, recipient)]
    assert SignalReceived("hello", (), f"{parent.run_id}-1") in inbox(desk, recipient)


def test_messages_follow_a_recipient_that_continues_as_new_in_the_very_same_commit(desk, parent):
    child = child_of(parent, 1, "a")
    assert not desk.commit(starting(desk, parent, child))
    run = claimed(desk, "a")
    successor = SYSTEM.fresh_id()
    new = NewRun(
        RunStarted(
            "a", successor, TYPE, QUEUE, first_run_id=run.run_id, continued_from=run.run_id, parent_id="parent", parent_run_id=parent.run_id
        )
    )
    sent = [SignalSent(2, "a", "hello"), ChildCancelRequested(1, "enough", wait=True), SignalSent(3, "a", "old", run_id=run.run_id)]
    assert not desk.commit(
        desk.turn(parent, *sent, number=2, arrivals=(), related=True),
        desk.turn(run, RunContinued(), status=Status.CONTINUED_AS_NEW, continued_as=new),
    )
    assert inbox(desk, successor)[1:] == [SignalReceived("hello", (), f"{parent.run_id}-2"), CancelRequested("enough")]
    told = inbox(desk, parent.run_id)
    assert told[0] == MessageDelivered(2, successor)
    assert isinstance(told[1], MessageFailed)


def test_orphans_are_seen_to_batch_by_batch_as_their_policies_say(desk, parent):
    policies = ("terminate", "request_cancel", "abandon", "terminate")
    children = [child_of(parent, n, f"c{n}", policy=policy) for n, policy in enumerate(policies, start=1)]
    assert not desk.commit(starting(desk, parent, *children))
    assert desk.ask(runs.close_from_outside, parent.run_id, RunTerminated()) == set()
    assert desk.count("child_workflows") == 3
    assert [desk.ask(relations.part, 2).count for _ in range(3)] == [2, 1, 0]
    statuses = dict(desk.rows("SELECT workflow_id, status FROM runs WHERE parent_run_id IS NOT NULL"))
    assert statuses == {"c1": "terminated", "c2": "running", "c3": "running", "c4": "terminated"}
    assert inbox(desk, children[1][0].run_id)[1:] == [CancelRequested("its parent parent has closed")]
    assert len(inbox(desk, children[2][0].run_id)) == 1
    assert desk.count("child_workflows") == 0


def test_an_orphan_that_has_ended_by_itself_is_forgotten_without_a_word(desk, parent):
    child = child_of(parent, 1, "a")
    assert not desk.commit(starting(desk, parent, child))
    run = claimed(desk, "a")
    desk.ask(runs.close_from_outside, parent.run_id, RunTerminated())
    assert not desk.commit(closing_child(desk, run, parent))
    assert desk.count("child_workflows") == 0
    assert desk.ask(relations.part, 10).count == 0
    assert desk.count("inbox") == 0


@pytest.mark.timeout(60)
def test_families_that_close_and_talk_from_all_sides_at_once_never_block_each_other(desk, rival, store):
    """Parents write to children while other workers close these, and somebody terminates: a deadlock would be an error of the database."""
    failures: list[BaseException] = []

    def guarded(act):
        def run():
            try:
                act()
            except BaseException as error:  # noqa: BLE001 - told below
                failures.append(error)

        return threading.Thread(target=run)

    for _ in range(8):
        parents = []
        for n in range(3):
            desk.start(f"parent{n}")
            parents.append(claimed(desk, f"parent{n}"))
        families = [[child_of(parent, seq, f"{n}-{seq}") for seq in (1, 2, 3)] for n, parent in enumerate(parents)]
        assert not desk.commit(*(starting(desk, parent, *family) for parent, family in zip(parents, families, strict=True)))
        children = {run.run_id: run for run in desk.claim()}
        talk = [
            desk.turn(parent, *(SignalSent(9 + m, f"{m}-1", "hi") for m in range(3)), number=2, related=True, arrivals=())
            for parent in parents
        ]
        ends = [
            closing_child(rival, children[family[k][0].run_id], parent)
            for k in (1, 0)
            for parent, family in zip(parents, families, strict=True)
        ]

        def terminate(families=families):
            for family in families:
                with store.transaction() as tx:
                    runs.close_from_outside(tx, family[2][0].run_id, RunTerminated())

        threads = [guarded(lambda talk=talk: desk.commit(*talk)), guarded(lambda ends=ends: rival.commit(*ends)), guarded(terminate)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        for n, parent in enumerate(parents):
            told = [event.seq for event in inbox(desk, parent.run_id) if isinstance(event, ChildCompleted | ChildFailed)]
            open_children = desk.rows("SELECT seq FROM child_workflows WHERE run_id = :id", id=parent.run_id)
            assert sorted([*told, *(seq for (seq,) in open_children)]) == [1, 2, 3], n
            desk.ask(runs.close_from_outside, parent.run_id, RunTerminated())
        while desk.ask(relations.part, 100).count:
            pass
