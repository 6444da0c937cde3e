"""Starts, signals and closes: an acknowledged one is never lost, and of two starts of an id exactly one wins."""

from __future__ import annotations

import threading

import pytest
import sqlalchemy

from orchestrator.store import due, listing, runs
from schemas.history import (
    ActivityScheduled,
    CancelRequested,
    Failure,
    RunTerminated,
    RunTimedOut,
    SignalReceived,
    TimerStarted,
)
from schemas.runs import IdConflictPolicy, IdReusePolicy, RunFilter, StartOutcome, Status

HELLO = SignalReceived("hello", id="request-1")


def finish(desk, run_id, status=Status.COMPLETED, failure=None):
    claimed = next(claimed for claimed in desk.claim() if claimed.run_id == run_id)
    assert not desk.commit(desk.turn(claimed, status=status, failure=failure))


def test_an_open_id_refuses_a_second_start_by_default(desk):
    first = desk.start("order-1")
    assert desk.start_all([desk.new("order-1")]) == [StartOutcome(first, created=False)]
    assert desk.count("runs") == 1


def test_starting_the_same_run_again_changes_nothing_and_says_created(desk):
    new = desk.new("order-1")
    assert desk.start_all([new]) == desk.start_all([new]) == [StartOutcome(new.started.run_id, created=True)]
    assert desk.count("inbox") == 1
    finish(desk, new.started.run_id)
    assert desk.start_all([new]) == [StartOutcome(new.started.run_id, created=True, status=Status.COMPLETED)]


def test_an_existing_run_takes_the_signal_of_a_start_that_would_use_it(desk):
    first = desk.start("order-1")
    outcome = desk.start_all([desk.new("order-1", conflict=IdConflictPolicy.USE_EXISTING, signal=HELLO)])
    assert outcome == [StartOutcome(first, created=False, used_existing=True)]
    assert [entry.arrival.kind for entry in desk.claim()[0].inbox] == ["run_started", "signal_received"]


def test_signal_with_start_gives_a_new_run_its_signal_after_its_start(desk):
    desk.start("order-1", conflict=IdConflictPolicy.USE_EXISTING, signal=HELLO)
    assert [entry.arrival for entry in desk.claim()[0].inbox][1:] == [HELLO]


def test_an_existing_run_is_terminated_for_a_start_that_wants_its_place(desk):
    first = desk.start("order-1")
    second = desk.start("order-1", conflict=IdConflictPolicy.TERMINATE_EXISTING)

    assert desk.ask(runs.resolve, "order-1")[:2] == (second, Status.RUNNING)
    status, _, failure, _ = desk.ask(runs.outcome, [first])[first]
    assert (status, failure.kind) == (Status.TERMINATED, "terminated")
    assert isinstance(desk.ask(runs.history, first)[-1].commands[0], RunTerminated)


@pytest.mark.parametrize(
    "reuse, closed, created",
    [
        (IdReusePolicy.ALLOW_DUPLICATE, Status.COMPLETED, True),
        (IdReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY, Status.COMPLETED, False),
        (IdReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY, Status.FAILED, True),
        (IdReusePolicy.REJECT_DUPLICATE, Status.FAILED, False),
    ],
)
def test_the_id_of_a_closed_run_is_reused_as_the_policy_says(desk, reuse, closed, created):
    first = desk.start("order-1")
    finish(desk, first, closed)

    new = desk.new("order-1", reuse=reuse, memo={"a": 1}, run_timeout_s=5.0)
    (outcome,) = desk.start_all([new])

    assert outcome == (StartOutcome(new.started.run_id, created=True) if created else StartOutcome(first, created=False, status=closed))
    assert desk.count("runs") == (2 if created else 1)
    assert desk.count("inbox") == desk.count("timers") == desk.count("run_payloads") == (1 if created else 0)


def test_many_starts_in_one_batch_keep_their_order_and_see_each_other(desk):
    new = [desk.new("b"), desk.new("a"), desk.new("b"), desk.new("b", conflict=IdConflictPolicy.USE_EXISTING, signal=HELLO)]
    first, second, third, fourth = desk.start_all(new)
    assert [first, second] == [StartOutcome(run.started.run_id, created=True) for run in new[:2]]
    assert third == StartOutcome(first.run_id, created=False)
    assert fourth == StartOutcome(first.run_id, created=False, used_existing=True)


@pytest.mark.parametrize("conflict", IdConflictPolicy)
def test_of_concurrent_starts_of_one_id_exactly_one_is_open_in_the_end(desk, rival, conflict):
    together = threading.Barrier(2)
    outcomes: list[StartOutcome] = []

    def start(engine):
        for n in range(15):
            together.wait()
            outcomes.extend(engine.start_all([engine.new(f"order-{m}", conflict=conflict) for m in (n, n + 100)]))

    threads = [threading.Thread(target=start, args=(engine,)) for engine in (desk, rival)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(outcomes) == 60
    assert desk.rows("SELECT count(*) FROM runs WHERE status = 'running'") == [(30,)]
    created = sum(outcome.created for outcome in outcomes)
    assert created == (60 if conflict is IdConflictPolicy.TERMINATE_EXISTING else 30)
    assert sum(outcome.used_existing for outcome in outcomes) == (30 if conflict is IdConflictPolicy.USE_EXISTING else 0)


def test_a_delayed_start_is_not_claimed_before_its_time_and_rings_then(desk):
    late, soon = desk.start(start_delay_s=300.0), desk.start(start_delay_s=-1.0)
    assert [claimed.run_id for claimed in desk.claim()] == [soon]
    assert desk.ask(due.next_due_at) is not None
    fired = desk.ask(due.fire_timers, 10)
    assert (fired.count, fired.queues) == (1, {"orders"})
    assert desk.ask(listing.pending_timers, late) == []


def test_a_signal_wakes_a_run_before_its_delay_ends(desk):
    run_id = desk.start(start_delay_s=300.0)
    assert desk.send(run_id, HELLO) == {run_id}
    assert [claimed.run_id for claimed in desk.claim()] == [run_id]


def test_a_signal_sent_twice_waits_once(desk):
    run_id = desk.start()
    desk.send(run_id, HELLO, dedup=HELLO.id)
    desk.send(run_id, HELLO, dedup=HELLO.id)
    assert [entry.arrival for entry in desk.claim()[0].inbox][1:] == [HELLO]


def test_nothing_is_delivered_to_a_closed_or_unknown_run(desk):
    run_id = desk.start()
    finish(desk, run_id)
    assert desk.send(run_id, CancelRequested()) == set()
    assert desk.send("nobody", CancelRequested()) == set()
    assert desk.count("inbox") == 0


def test_a_run_closed_from_outside_takes_everything_with_it(desk):
    run = desk.running(ActivityScheduled(1, "1", "charge"), TimerStarted(2, 4e9), run_timeout_s=60.0)
    desk.send(run.run_id, HELLO)
    claimed = desk.claim()[0]

    assert desk.ask(runs.close_from_outside, run.run_id, RunTerminated("enough")) == set()
    assert desk.ask(runs.close_from_outside, run.run_id, RunTerminated("again")) is None

    assert desk.commit(desk.turn(claimed)) == {run.run_id}
    assert [desk.count(table) for table in ("inbox", "activities", "timers")] == [0, 0, 0]
    assert [turn.turn for turn in desk.ask(runs.history, run.run_id)] == [1, 2]
    assert desk.ask(runs.outcome, [run.run_id])[run.run_id][2] == Failure("terminated", "enough")


def test_a_run_past_its_timeout_is_closed(desk):
    run_id = desk.start(run_timeout_s=-1.0, execution_deadline_at=4e9)
    fired = desk.ask(due.fire_timers, 10)
    assert fired.count == 1
    assert desk.ask(runs.outcome, [run_id])[run_id][0] is Status.TIMED_OUT
    assert isinstance(desk.ask(runs.history, run_id)[-1].commands[0], RunTimedOut)


def test_the_earlier_of_run_timeout_and_execution_deadline_counts(desk):
    assert desk.ask(runs.describe, desk.start(run_timeout_s=60.0, execution_deadline_at=4e9)).deadline_at < 4e9
    assert desk.ask(runs.describe, desk.start(run_timeout_s=1e10, execution_deadline_at=4e9)).deadline_at == 4e9


def test_an_id_resolves_to_its_open_or_else_latest_run(desk):
    first = desk.start("order-1")
    finish(desk, first)
    second = desk.start("order-1")
    assert desk.ask(runs.resolve, "order-1") == (second, Status.RUNNING, "orders", "Order")
    assert desk.ask(runs.resolve, "order-1", first) == (first, Status.COMPLETED, "orders", "Order")
    finish(desk, second)
    assert desk.ask(runs.resolve, "order-1")[0] == second
    assert desk.ask(runs.resolve, "order-2") is None
    assert desk.ask(runs.resolve, "order-2", first) is None


def test_a_description_has_what_the_start_gave(desk):
    run_id = desk.start("order-1", memo={"by": "Ada"}, search_attributes={"customer": 7}, priority=5, parent_id="p", attempt=2)
    found = desk.ask(runs.describe, run_id)
    assert (found.memo, found.search_attributes, found.priority, found.parent_id, found.attempt) == (
        {"by": "Ada"},
        {"customer": 7},
        5,
        "p",
        2,
    )
    assert desk.ask(runs.describe, "nobody") is None


def test_an_outcome_is_told_only_of_closed_runs(desk):
    run_id = desk.start()
    assert desk.ask(runs.outcome, [run_id, "nobody"]) == {}
    finish(desk, run_id, Status.FAILED, Failure("application", "no"))
    assert desk.ask(runs.outcome, [run_id]) == {run_id: (Status.FAILED, None, Failure("application", "no"), None)}


def test_a_start_joins_the_callers_own_transaction(desk, store, database_url):
    engine = sqlalchemy.create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE orders (id text)")
    with engine.connect() as connection:
        connection.exec_driver_sql("INSERT INTO orders VALUES ('kept')")
        runs.start(store.joined(connection), [desk.new("kept")])
        connection.commit()
        runs.start(store.joined(connection), [desk.new("dropped")])
        connection.exec_driver_sql("INSERT INTO orders VALUES ('dropped')")
        connection.rollback()

    assert desk.rows("SELECT id FROM orders") == [("kept",)]
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE orders")  # the database serves other tests
    engine.dispose()
    assert [run.workflow_id for run in desk.ask(listing.list_runs, RunFilter()).runs] == ["kept"]
