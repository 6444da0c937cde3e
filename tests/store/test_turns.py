"""Claims and commits: one writer per run, by fencing, and a turn is all or nothing."""

from __future__ import annotations

import threading

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.store import Unmet, due, listing, runs, turns, workers
from schemas.history import (
    ActivityCanceled,
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityScheduled,
    Failure,
    RunContinued,
    RunStarted,
    SignalReceived,
    TimerCanceled,
    TimerFired,
    TimerStarted,
)
from schemas.runs import ActivityKey, ActivityState, Resolved, RunFilter, Status, TurnFailure

STEP = ActivityScheduled(1, "1", "charge", ("order-1",), start_to_close_s=60.0)
HELLO = SignalReceived("hello")


def test_a_started_run_is_claimed_once_with_its_first_arrival(desk, rival):
    run_id = desk.start("order-1", args=("a", 1))

    claimed = desk.claim()

    assert [run.run_id for run in claimed] == [run_id]
    assert claimed[0].epoch == 1
    assert claimed[0].turn == 0
    started = claimed[0].inbox[0].arrival
    assert isinstance(started, RunStarted)
    assert started.args == ("a", 1)
    assert rival.claim() == []


def test_an_owned_run_that_gets_something_new_waits_for_its_owner(desk, rival):
    run_id = desk.start()
    claimed = desk.claim()[0]
    desk.send(run_id, HELLO)
    assert rival.claim() == []

    assert not desk.commit(desk.turn(claimed))

    assert [entry.arrival for entry in rival.claim()[0].inbox] == [HELLO]


def test_urgent_runs_come_first_and_then_those_that_have_waited_longest(desk):
    low, first, second, high = desk.start(), desk.start(priority=3), desk.start(priority=3), desk.start(priority=9)
    assert [run.run_id for run in desk.claim()] == [high, first, second, low]


def test_a_claim_takes_only_its_queues_and_types_and_no_more_than_it_asked_for(desk):
    mine = [desk.start() for _ in range(3)]
    desk.start(queue="elsewhere")
    desk.start(type="Unknown")

    assert len(desk.claim(batch_max=2)) == 2
    assert len(desk.claim()) == 1
    assert desk.count("runs") == len(mine) + 2
    assert desk.claim(queues=["elsewhere"]) != []
    assert desk.claim(types=["Unknown"]) != []


def test_a_full_inbox_is_read_in_order_and_in_batches(desk):
    run_id = desk.start()
    desk.send(run_id, *(SignalReceived("n", (n,)) for n in range(5)))

    first = desk.claim(inbox_max=4)[0]
    assert first.more
    assert not desk.commit(desk.turn(first))
    second = desk.claim(inbox_max=4)[0]

    assert [entry.arrival.args for entry in (*first.inbox[1:], *second.inbox)] == [(0,), (1,), (2,), (3,), (4,)]
    assert not second.more


def test_a_turn_is_written_whole(desk):
    run_id = desk.start("order-1")
    claimed = desk.claim()[0]
    turn = desk.turn(claimed, STEP, TimerStarted(2, 4e9))

    assert not desk.commit(turn)

    history = desk.ask(runs.history, run_id)
    assert [entry.turn for entry in history] == [1]
    assert history[0].at == turn.at  # to the last bit: replay tells this time again
    assert history[0].arrivals == turn.arrivals
    assert history[0].commands == turn.commands
    assert (history[0].worker, history[0].build) == ("me", "b1")
    assert desk.count("inbox") == 0
    assert desk.ask(listing.pending_timers, run_id) == [TimerStarted(2, 4e9)]
    (pending,) = desk.ask(listing.pending_activities, run_id)
    assert pending.key == ActivityKey(run_id, 1, 1)
    assert pending.scheduled == STEP
    assert (pending.state, pending.worker, pending.workflow_id, pending.run_queue) == (ActivityState.STARTED, "me", "order-1", "orders")
    assert pending.deadline_at == pytest.approx(pending.started_at + 60)


def test_a_chain_of_eager_steps_needs_no_other_claim(desk):
    run = desk.running(STEP)
    second = ActivityScheduled(2, "2", "ship")
    done = desk.turn(run, second, number=2, arrivals=(ActivityCompleted(1, "paid"),), settled=(ActivityKey(run.run_id, 1, 1),))
    assert not desk.commit(done)
    last = desk.closing(run, number=3, arrivals=(ActivityCompleted(2, "sent"),), settled=(ActivityKey(run.run_id, 2, 1),))
    assert not desk.commit(last)

    assert [turn.turn for turn in desk.ask(runs.history, run.run_id)] == [1, 2, 3]
    assert desk.ask(runs.outcome, [run.run_id]) == {run.run_id: (Status.COMPLETED, "done", None, None)}
    assert [desk.count(table) for table in ("inbox", "activities", "timers")] == [0, 0, 0]
    description = desk.ask(runs.describe, run.run_id)
    assert (description.turn, description.history_events, description.closed_at is not None) == (3, 6, True)


def test_a_turn_under_an_old_epoch_writes_nothing_and_its_neighbours_stand(desk, rival):
    lost_id, kept_id = desk.start(), desk.start()
    stale, kept = sorted(desk.claim(), key=lambda run: run.run_id != lost_id)
    desk.ask(workers.release_runs, "me", 10, keep=[kept_id])
    (taken,) = rival.claim()

    lost = desk.commit(desk.turn(stale, STEP, TimerStarted(2, 4e9)), desk.turn(kept, STEP))

    assert lost == {lost_id}
    assert desk.ask(runs.history, lost_id) == []
    assert desk.ask(listing.pending_activities, lost_id) == []
    assert desk.ask(listing.pending_timers, lost_id) == []
    assert len(desk.ask(runs.history, kept_id)) == 1
    assert not rival.commit(rival.closing(taken))


def test_the_same_turn_twice_is_one_turn(desk):
    claimed = desk.claim() if desk.start() else []
    turn = desk.turn(claimed[0], STEP)
    assert not desk.commit(turn)
    assert desk.commit(turn) == {claimed[0].run_id}
    assert len(desk.ask(runs.history, claimed[0].run_id)) == 1


def test_a_run_does_not_close_over_an_arrival_it_has_not_seen(desk):
    run_id = desk.start()
    claimed = desk.claim()[0]
    desk.send(run_id, HELLO)

    assert desk.commit(desk.closing(claimed)) == {run_id}

    again = desk.claim()[0]
    assert [entry.arrival.kind for entry in again.inbox] == ["run_started", "signal_received"]
    assert again.epoch == claimed.epoch + 1
    assert not desk.commit(desk.closing(again))


def test_an_eager_result_is_lost_when_the_attempt_was_given_to_somebody_else(desk):
    run = desk.running(STEP)
    key = ActivityKey(run.run_id, 1, 1)
    desk.settle(Resolved(key, ActivityCompleted(1, "recovered")))

    late = desk.turn(run, number=2, arrivals=(ActivityCompleted(1, "late"),), settled=(key,))
    assert desk.commit(late) == {run.run_id}

    assert [entry.arrival.result for entry in desk.claim()[0].inbox] == ["recovered"]


def test_a_batch_of_everything_is_one_commit(desk):
    ids = [desk.start(f"w-{n}") for n in range(6)]
    claimed = {run.run_id: run for run in desk.claim()}
    a, b, c, d, e, f = (claimed[run_id] for run_id in ids)
    desk.send(e.run_id, HELLO)  # makes its closing turn lose
    new = desk.new("w-5", continued_from=f.run_id)
    lost = desk.commit(
        desk.turn(a, STEP),
        desk.turn(b, ActivityScheduled(1, "1", "mail", task=True), queue="mail"),
        desk.turn(c, TimerStarted(1, 0.0)),
        desk.closing(d),
        desk.closing(e),
        desk.turn(f, RunContinued(), status=Status.CONTINUED_AS_NEW, continued_as=new),
    )

    assert lost == {e.run_id}
    status = {run.run_id: run.status for run in desk.ask(listing.list_runs, RunFilter()).runs}
    assert [status[run_id] for run_id in ids] == ["running", "running", "running", "completed", "running", "continued_as_new"]
    assert status[new.started.run_id] == "running"
    assert {run.run_id for run in desk.claim()} == {e.run_id, new.started.run_id}


def test_a_run_that_continues_keeps_its_id_open_without_a_gap(desk):
    run = desk.running(workflow_id="loop")
    desk.send(run.run_id, HELLO)
    claimed = desk.claim()[0]
    new = desk.new("loop", continued_from=run.run_id, first_run_id=run.run_id)
    assert not desk.commit(desk.turn(claimed, RunContinued(), status=Status.CONTINUED_AS_NEW, continued_as=new))

    assert desk.ask(runs.resolve, "loop")[0] == new.started.run_id
    assert desk.ask(runs.outcome, [run.run_id])[run.run_id][3] == new.started.run_id
    assert desk.ask(runs.describe, new.started.run_id).continued_from == run.run_id


def test_cancelling_a_queued_activity_takes_it_back_and_tells_the_run_if_it_waits(desk):
    two = ActivityScheduled(2, "2", "ship", queue="far")
    run = desk.running(STEP, two, eager=False)
    desk.send(run.run_id, HELLO)
    claimed = desk.claim()[0]
    assert not desk.commit(desk.turn(claimed, ActivityCancelRequested(1, wait=True), ActivityCancelRequested(2)))

    assert desk.ask(listing.pending_activities, run.run_id) == []
    assert [entry.arrival for entry in desk.claim()[0].inbox] == [ActivityCanceled(1)]


def test_cancelling_a_started_activity_asks_its_worker(desk):
    run = desk.running(STEP, ActivityScheduled(2, "2", "ship"))
    desk.send(run.run_id, HELLO)
    claimed = desk.claim()[0]
    assert not desk.commit(desk.turn(claimed, ActivityCancelRequested(1, wait=True), ActivityCancelRequested(2)))

    assert [pending.cancel_requested for pending in desk.ask(listing.pending_activities, run.run_id)] == [True, True]
    # The run waits for the first and has moved on from the second.
    outcomes = [Resolved(ActivityKey(run.run_id, seq, 1), ActivityCanceled(seq)) for seq in (1, 2)]
    _, applied = desk.settle(*outcomes)
    assert len(applied) == 2
    assert [entry.arrival for entry in desk.claim()[0].inbox] == [ActivityCanceled(1)]


def test_a_stopped_timer_does_not_fire(desk):
    run = desk.running(TimerStarted(1, 0.0), TimerStarted(2, 4e9))
    desk.send(run.run_id, HELLO)
    assert not desk.commit(desk.turn(desk.claim()[0], TimerCanceled(1)))
    assert desk.ask(due.fire_timers, 10).count == 0
    assert desk.ask(listing.pending_timers, run.run_id) == [TimerStarted(2, 4e9)]


@pytest.mark.parametrize("ends", [False, True])
def test_a_turn_fires_a_timer_of_its_run_once_and_only_when_it_is_due(desk, ends):
    """Due: it is written. Fired by somebody else meanwhile, or not due yet by the database's clock: the turn is lost, and nothing of it is written."""
    runs_ = {name: desk.running(TimerStarted(1, at), TimerStarted(2, 4e9)) for name, at in (("due", 0.0), ("gone", 0.0), ("early", 4e9))}
    with desk.store.transaction() as tx:
        tx.run("DELETE FROM timers WHERE run_id = :run_id AND seq = 1", run_id=runs_["gone"].run_id)

    def firing(run):
        options = {"number": 2, "arrivals": (TimerFired(1),), "fired": (1,)}
        return desk.closing(run, **options) if ends else desk.turn(run, TimerCanceled(1), **options)

    assert desk.commit(*map(firing, runs_.values())) == {runs_["gone"].run_id, runs_["early"].run_id}
    left = [[timer.seq for timer in desk.ask(listing.pending_timers, run.run_id)] for run in runs_.values()]
    assert left == [[] if ends else [2], [2], [1, 2]]
    assert desk.ask(due.fire_timers, 10).count == 0, "nobody fires it again"
    if desk.store.dialect == "postgresql":  # where a single transaction is one statement and names no losers
        with pytest.raises(Unmet), desk.store.transaction(single=True) as tx:
            turns.commit(tx, [firing(runs_["gone"])], worker=desk.worker, build="b1")


def test_a_timer_is_left_for_a_moment_to_whoever_has_its_run_in_memory(desk):
    run = desk.running(TimerStarted(1, SYSTEM.now() - 0.01), run_timeout_s=-1.0)
    assert desk.ask(due.next_due_at, 60.0) < SYSTEM.now() + 61
    fired = desk.ask(due.fire_timers, 10, 60.0)
    assert fired.count == 1, "that of the run itself has no such friend"
    assert desk.ask(due.fire_timers, 10, 60.0).count == 0
    assert run.run_id


def test_a_failed_turn_leaves_the_run_unharmed_and_says_why(desk):
    run_id = desk.start()
    claimed = desk.claim()[0]
    reason = Failure("application", "no such step", type="Divergence")
    assert desk.ask(turns.fail_turns, [TurnFailure(run_id, claimed.epoch, reason, retry_in_s=-1.0)]) == {run_id}

    description = desk.ask(runs.describe, run_id)
    assert (description.stuck, description.turn_failures, description.status) == (reason, 1, Status.RUNNING)
    again = desk.claim()[0]
    assert again.turn_failures == 1
    assert [entry.arrival.kind for entry in again.inbox] == ["run_started"]
    assert not desk.commit(desk.turn(again))
    assert desk.ask(runs.describe, run_id).stuck is None


def test_a_failed_turn_waits_until_its_backoff_ends_or_a_new_build_arrives(desk):
    run_id = desk.start()
    claimed = desk.claim()[0]
    failure = TurnFailure(run_id, claimed.epoch, Failure("application", "?"), retry_in_s=300.0)
    desk.ask(turns.fail_turns, [failure])
    assert desk.claim() == []
    assert desk.ask(turns.fail_turns, [TurnFailure(run_id, claimed.epoch - 1, failure.reason, 0.0)]) == set()

    assert desk.ask(workers.retry_stuck, ["orders"]) == 1
    assert [run.run_id for run in desk.claim()] == [run_id]


def test_a_claim_that_found_nothing_to_do_is_let_go(desk, rival):
    run_id = desk.start()
    claimed = desk.claim()[0]
    desk.send(run_id, HELLO)
    desk.ask(turns.release, [(run_id, claimed.epoch)])
    assert [run.run_id for run in rival.claim()] == [run_id]


def test_histories_are_loaded_from_where_the_cache_ends(desk):
    a, b = desk.running(STEP), desk.running()
    desk.send(a.run_id, HELLO)
    assert not desk.commit(desk.turn(desk.claim()[0]))

    loaded = desk.ask(turns.load, {a.run_id: 1, b.run_id: 0})

    assert [turn.turn for turn in loaded[a.run_id]] == [2]
    assert [turn.turn for turn in loaded[b.run_id]] == [1]


def test_two_engines_never_take_the_same_run(desk, rival):
    started = {desk.start() for _ in range(60)}
    taken: dict[str, list[str]] = {"me": [], "rival": []}
    together = threading.Barrier(2)

    def work(engine):
        together.wait()
        while claimed := engine.claim(batch_max=3):
            taken[engine.worker] += [run.run_id for run in claimed]
            assert not engine.commit(*(engine.turn(run, STEP) for run in claimed))

    threads = [threading.Thread(target=work, args=(engine,)) for engine in (desk, rival)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(taken["me"] + taken["rival"]) == sorted(started)


def test_no_arrival_is_overlooked_however_deliveries_and_turns_interleave(desk, rival):
    """Signals from one side, turns on the other: each is consumed once, in order, and none stays behind."""
    run_ids = [desk.start() for _ in range(4)]
    sent = 30
    sender_is_done = threading.Event()

    def send():
        for n in range(sent):
            with rival.store.transaction() as tx:
                runs.deliver(tx, [(run_id, SignalReceived("n", (n,)), None) for run_id in reversed(run_ids)])
        sender_is_done.set()

    seen: dict[str, list[int]] = {run_id: [] for run_id in run_ids}
    sender = threading.Thread(target=send)
    sender.start()
    while True:
        finished = sender_is_done.is_set()
        claimed = desk.claim(inbox_max=3)
        for run in claimed:
            seen[run.run_id] += [entry.arrival.args[0] for entry in run.inbox if isinstance(entry.arrival, SignalReceived)]
        assert not desk.commit(*(desk.turn(run) for run in claimed))
        if finished and not claimed:
            break
    sender.join()

    assert seen == {run_id: list(range(sent)) for run_id in run_ids}
    assert desk.count("inbox") == 0


def test_results_and_turns_that_meet_settle_each_attempt_once(desk, rival):
    """Eager results committed by one engine race recovery by another: every attempt is resolved exactly once."""
    held = [desk.running(STEP) for _ in range(20)]
    keys = [ActivityKey(run.run_id, 1, 1) for run in held]
    applied: set[ActivityKey] = set()
    together = threading.Barrier(2)

    def recover():
        together.wait()
        for key in keys:
            applied.update(rival.settle(Resolved(key, ActivityCompleted(1, "recovered")))[1])

    thread = threading.Thread(target=recover)
    thread.start()
    together.wait()
    lost: set[str] = set()
    for start in range(0, 20, 5):
        batch = held[start : start + 5]
        eager = [
            desk.turn(run, number=2, arrivals=(ActivityCompleted(1, "eager"),), settled=(ActivityKey(run.run_id, 1, 1),)) for run in batch
        ]
        lost |= desk.commit(*eager)
    thread.join()

    assert {key.run_id for key in applied} == lost
    assert desk.count("activities") == 0
    assert desk.count("inbox") == len(applied)
    assert all(len(desk.ask(runs.history, run.run_id)) == (1 if run.run_id in lost else 2) for run in held)
