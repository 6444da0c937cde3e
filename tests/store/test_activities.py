"""Activities: each attempt is started once and resolved once, and deadlines are rows."""

from __future__ import annotations

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.store import activities, control, due, listing, runs, turns
from schemas.history import (
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    Failure,
    RunTerminated,
    SignalReceived,
)
from schemas.runs import ActivityKey, ActivityState, Beat, Resolved, TryAgain

STEP = ActivityScheduled(1, "1", "charge", start_to_close_s=60.0)
TASK = ActivityScheduled(1, "1", "shop.mail", ("a@b",), task=True)
OOPS = Failure("application", "oops", details=(1, {"a": None}))


def claim(desk, *, queues=("orders",), types=("charge",), batch_max=10):
    return desk.ask(activities.claim, worker=desk.worker, queues=queues, types=types, batch_max=batch_max)


def queued(desk, scheduled=STEP, **options):
    return ActivityKey(desk.running(scheduled, eager=False, **options).run_id, 1, 1)


def test_a_queued_activity_is_claimed_once(desk, rival):
    key = queued(desk, workflow_id="order-1")
    (pending,) = claim(rival)
    assert (pending.key, pending.worker, pending.workflow_id, pending.workflow_type) == (key, "rival", "order-1", "Order")
    assert pending.deadline_at == pytest.approx(pending.started_at + 60)
    assert claim(desk) == []
    assert desk.ask(activities.get, key) == pending


def test_only_known_types_of_own_queues_are_claimed_the_most_urgent_first(desk):
    low = queued(desk)
    high = queued(desk, ActivityScheduled(1, "1", "charge", priority=4))
    queued(desk, ActivityScheduled(1, "1", "unknown"))
    queued(desk, TASK)
    assert [pending.key for pending in claim(desk)] == [high, low]
    assert claim(desk, queues=["elsewhere"]) == []


def test_a_celery_task_is_started_once(desk, rival):
    key = queued(desk, TASK)
    assert claim(desk, types=["shop.mail"]) == []
    started = desk.ask(activities.start, key, "me")
    assert (started.scheduled, started.state, started.worker) == (TASK, ActivityState.STARTED, "me")
    assert rival.ask(activities.start, key, "rival") is None
    assert rival.ask(activities.start, ActivityKey(key.run_id, 1, 2), "rival") is None


def test_a_result_enters_the_inbox_once_and_wakes_its_run(desk, rival):
    key = queued(desk)
    claim(desk)
    done = Resolved(key, ActivityCompleted(1, "ok"))
    assert desk.settle(done, done) == ({"orders"}, {key})
    assert rival.settle(done) == (set(), set())
    assert [entry.arrival for entry in desk.claim()[0].inbox] == [ActivityCompleted(1, "ok")]
    assert desk.ask(activities.get, key) is None


def test_a_failed_attempt_waits_in_its_queue_for_the_next(desk):
    key = queued(desk)
    claim(desk)
    assert desk.settle(TryAgain(key, SYSTEM.now() + 300, OOPS, losses=1)) == ({"orders"}, {key})
    assert desk.settle(TryAgain(key, 0.0, OOPS)) == (set(), set())
    assert claim(desk) == []

    (waiting,) = desk.ask(listing.pending_activities, key.run_id)
    assert (waiting.key.attempt, waiting.state, waiting.worker, waiting.last_failure, waiting.losses) == (
        2,
        ActivityState.QUEUED,
        None,
        OOPS,
        1,
    )
    assert desk.ask(due.next_due_at) == waiting.due_at
    desk.settle(TryAgain(waiting.key, 0.0, OOPS))
    (pending,) = claim(desk)
    assert (pending.key.attempt, pending.losses) == (3, 1)


def test_settling_a_mixed_batch_touches_each_activity_once(desk):
    keys = [queued(desk) for _ in range(4)]
    claim(desk)
    stale = ActivityKey(keys[3].run_id, 1, 7)
    queues, applied = desk.settle(
        Resolved(keys[0], ActivityCompleted(1, "a")),
        TryAgain(keys[1], 0.0, OOPS),
        Resolved(keys[2], ActivityFailed(1, OOPS, "maximum_attempts_reached")),
        Resolved(stale, ActivityCompleted(1, "ghost")),
    )
    assert applied == set(keys[:3])
    assert queues == {"orders"}
    assert {run.run_id: run.inbox[0].arrival.kind for run in desk.claim()} == {
        keys[0].run_id: "activity_completed",
        keys[2].run_id: "activity_failed",
    }


def test_an_activity_its_run_has_left_behind_ends_without_a_word(desk):
    for settlement in (Resolved, TryAgain):
        run = desk.running(STEP)
        desk.send(run.run_id, SignalReceived("stop"))
        desk.commit(desk.turn(desk.claim()[0], ActivityCancelRequested(1)))
        key = ActivityKey(run.run_id, 1, 1)
        item = Resolved(key, ActivityCompleted(1)) if settlement is Resolved else TryAgain(key, 0.0, OOPS)
        assert desk.settle(item) == (set(), {key})
    assert desk.count("activities") == desk.count("inbox") == 0
    assert desk.claim() == []


def test_an_activity_that_was_asked_to_cancel_is_not_tried_again(desk):
    run = desk.running(STEP)
    desk.send(run.run_id, SignalReceived("stop"))
    desk.commit(desk.turn(desk.claim()[0], ActivityCancelRequested(1, wait=True)))
    key = ActivityKey(run.run_id, 1, 1)
    assert desk.settle(TryAgain(key, 0.0, OOPS)) == ({"orders"}, {key})
    (claimed,) = desk.claim()
    assert [entry.arrival for entry in claimed.inbox] == [ActivityFailed(1, OOPS, "cancel_requested", 1)]


def test_poison_is_set_aside_and_the_run_told(desk):
    key = queued(desk)
    claim(desk)
    desk.settle(Resolved(key, ActivityFailed(1, OOPS, "non_retryable_failure"), dead_letter=True))
    (letter,) = desk.ask(control.dead_letters)
    assert (letter.kind, letter.run_id, letter.seq) == ("activity", key.run_id, 1)
    assert letter.document["scheduled"]["type"] == "charge"
    assert letter.document["arrival"]["failure"]["message"] == "oops"
    assert desk.claim()[0].inbox[0].arrival.failure == OOPS


def test_a_beat_brings_details_in_and_cancellation_back(desk):
    run = desk.running(ActivityScheduled(1, "1", "charge", heartbeat_s=10.0), ActivityScheduled(2, "2", "charge"))
    one, two = (ActivityKey(run.run_id, seq, 1) for seq in (1, 2))
    before = desk.ask(activities.get, one).deadline_at
    desk.send(run.run_id, SignalReceived("stop"))
    desk.commit(desk.turn(desk.claim()[0], ActivityCancelRequested(2, wait=True)))

    answers = desk.ask(activities.beat, [Beat(two), Beat(one, ("half",)), Beat(ActivityKey(run.run_id, 1, 2))])

    assert [(answer.cancel_requested, answer.gone) for answer in answers] == [(True, False), (False, False), (False, True)]
    alive = desk.ask(activities.get, one)
    assert alive.heartbeat_details == ("half",)
    assert alive.deadline_at == pytest.approx(alive.heartbeat_at + 10)
    assert alive.deadline_at >= before


def test_a_beat_of_a_closed_run_is_told_to_stop(desk):
    run = desk.running(STEP)
    desk.ask(runs.close_from_outside, run.run_id, RunTerminated())
    (answer,) = desk.ask(activities.beat, [Beat(ActivityKey(run.run_id, 1, 1))])
    assert answer.gone


@pytest.mark.parametrize(
    "timeouts, eager, late",
    [
        ({"schedule_to_start_s": -1.0}, False, True),
        ({"schedule_to_start_s": -1.0}, True, False),
        ({"start_to_close_s": -1.0}, True, True),
        ({"start_to_close_s": -1.0}, False, False),
        ({"schedule_to_close_s": -1.0, "start_to_close_s": 60.0}, True, True),
        ({"schedule_to_close_s": -1.0}, False, True),
        ({"heartbeat_s": -1.0}, True, True),
        ({"heartbeat_s": -1.0}, False, False),
        ({}, True, False),
    ],
)
def test_the_earliest_deadline_of_the_state_counts(desk, timeouts, eager, late):
    desk.running(ActivityScheduled(1, "1", "charge", **timeouts), eager=eager)
    assert len(desk.ask(activities.expired, 10)) == late


def test_the_next_attempt_may_wait_as_long_as_the_first(desk):
    key = queued(desk, ActivityScheduled(1, "1", "charge", schedule_to_start_s=10.0, schedule_to_close_s=1000.0))
    claim(desk)
    due_at = SYSTEM.now() + 300
    desk.settle(TryAgain(key, due_at, OOPS))
    (waiting,) = desk.ask(listing.pending_activities, key.run_id)
    assert waiting.deadline_at == pytest.approx(due_at + 10)


def test_how_soon_a_task_is_published_again_is_for_the_settings_to_say(store, desk):
    run_id = desk.start()
    (claimed,) = desk.claim()
    with store.transaction(purpose="turns.commit") as tx:
        turns.commit(tx, [desk.turn(claimed, TASK)], worker="me", build="", republish_s=100.0)
    pauses = []
    for _ in range(5):
        (row,) = desk.rows("SELECT due_at - {now} FROM activities WHERE run_id = :run_id", run_id=run_id)
        pauses.append(row[0])
        with store.transaction() as tx:
            tx.run("UPDATE activities SET due_at = 0")
            activities.to_publish(tx, 10, again_s=20.0, again_max_s=50.0)
    assert pauses == pytest.approx([100, 20, 40, 50, 50], abs=2)


def test_a_task_without_an_answer_is_published_again_ever_more_rarely(desk):
    key = queued(desk, TASK)
    assert desk.ask(activities.to_publish, 10) == []  # the committing process has just published it

    desk.settle(TryAgain(key, 0.0, OOPS))
    (waiting,) = desk.ask(activities.to_publish, 10)
    assert waiting.key.attempt == 2
    first_pause = waiting.due_at - desk.rows("SELECT {now}")[0][0]
    assert 4 < first_pause <= 5
    assert desk.ask(activities.to_publish, 10) == []
    assert desk.ask(due.next_due_at) == waiting.due_at
