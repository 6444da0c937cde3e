"""Time, workers, leases and queries: judged by the database's clock, recovered row by row."""

from __future__ import annotations

from orchestrator.store import activities, control, due, workers
from schemas.history import ActivityScheduled, Failure, SignalReceived, TimerFired, TimerStarted
from schemas.runs import ActivityKey, Beat, DeadLetter, Question, WorkerIdentity

STEP = ActivityScheduled(1, "1", "charge")


def identity(worker_id, node="node-1", host="host-1", boot_id="boot-1"):
    return WorkerIdentity(worker_id, node, host, boot_id, 4711, 1000.5, ("orders", "mail"), "b1")


def test_due_timers_fire_in_order_and_no_more_than_a_batch(desk):
    run = desk.running(TimerStarted(1, 30.0), TimerStarted(2, 10.0), TimerStarted(3, 20.0), TimerStarted(4, 4e9))
    assert desk.ask(due.next_due_at) == 10.0
    fired = desk.ask(due.fire_timers, 2)
    assert (fired.count, fired.queues) == (2, {"orders"})
    assert desk.ask(due.fire_timers, 2).count == 1
    assert desk.ask(due.fire_timers, 2).count == 0
    assert [entry.arrival for entry in desk.claim()[0].inbox] == [TimerFired(2), TimerFired(3), TimerFired(1)]
    assert desk.ask(due.next_due_at) == 4e9
    assert run.run_id


def test_nothing_is_due_in_an_empty_store(desk):
    assert desk.ask(due.next_due_at) is None
    assert desk.ask(due.forgotten_queues, older_than_s=0.0) == set()


def test_queues_where_something_waits_are_remembered(desk):
    desk.start(queue="a")
    desk.running(ActivityScheduled(1, "1", "charge"), eager=False)
    desk.ask(control.ask, Question("q-1", "r", "c", "Order", "status", ()))
    desk.start(queue="later", start_delay_s=300.0)
    assert desk.ask(due.forgotten_queues, older_than_s=-1.0) == {"a", "orders", "c"}
    assert desk.ask(due.forgotten_queues, older_than_s=60.0) == set()
    assert desk.ask(due.came_due, since=0.0) == {"orders"}


def test_a_worker_lives_as_long_as_it_extends_its_lease(desk):
    desk.ask(workers.register, identity("w-1"), 60.0)
    desk.ask(workers.register, identity("w-2", node="node-2", boot_id="boot-0"), -1.0)

    assert [row.expired for row in desk.ask(workers.list_workers)] == [False, True]
    assert [row.identity for row in desk.ask(workers.list_workers)] == [identity("w-1"), identity("w-2", node="node-2", boot_id="boot-0")]
    assert [row.identity.worker_id for row in desk.ask(workers.on_host, "host-1", "boot-1")] == ["w-1"]
    assert [row.identity.worker_id for row in desk.ask(workers.predecessors, "node-2", "w-3")] == ["w-2"]
    assert desk.ask(workers.predecessors, "node-1", "w-1") == []

    assert desk.ask(workers.extend, "w-2", 60.0, stopping=True)
    assert desk.ask(workers.strike_expired) == []
    assert [row.stopping for row in desk.ask(workers.list_workers)] == [False, True]
    assert desk.ask(workers.extend, "w-2", -1.0)
    assert [row.identity.worker_id for row in desk.ask(workers.strike_expired)] == ["w-2"]
    assert not desk.ask(workers.extend, "w-2", 60.0)
    assert [row.identity.worker_id for row in desk.ask(workers.list_workers)] == ["w-1"]


def test_what_a_dead_worker_held_is_found_page_by_page(desk, rival):
    held = sorted(desk.running(STEP).run_id for _ in range(5))
    rival.running(STEP)
    pages, after = [], None
    while page := desk.ask(workers.running_activities, "me", after, 2):
        after = page[-1].key
        pages.append([pending.key.run_id for pending in page])
    assert pages == [held[:2], held[2:4], held[4:]]


def test_the_runs_of_a_dead_worker_can_be_claimed_again_and_its_turns_come_to_nothing(desk, rival):
    for _ in range(3):
        desk.start()
    claimed = desk.claim()
    assert desk.ask(workers.release_runs, "me", 2) == {"orders"}
    assert desk.ask(workers.release_runs, "me", 2) == {"orders"}
    assert desk.ask(workers.release_runs, "me", 2) == set()

    again = rival.claim()
    assert {run.run_id for run in again} == {run.run_id for run in claimed}
    assert all(run.inbox for run in again)
    assert desk.commit(*(desk.turn(run) for run in claimed)) == {run.run_id for run in claimed}


def test_a_lease_has_one_holder_until_it_expires_or_is_released(desk, rival):
    assert desk.ask(control.take_lease, "beat", "a", 60.0)
    assert not rival.ask(control.take_lease, "beat", "b", 60.0)
    assert desk.ask(control.take_lease, "beat", "a", -1.0)
    assert rival.ask(control.take_lease, "beat", "b", 60.0)
    desk.ask(control.release_lease, "beat", "a")
    assert not desk.ask(control.take_lease, "beat", "a", 60.0)
    rival.ask(control.release_lease, "beat", "b")
    assert desk.ask(control.take_lease, "beat", "a", 60.0)
    assert desk.rows("SELECT epoch FROM leases") == [(3,)]


def test_a_query_is_answered_once(desk):
    question = Question("q-1", "run-1", "orders", "Order", "status", ("x", 1))
    other = Question("q-2", "run-1", "orders", "Order", "status", ())
    desk.ask(control.ask, question)
    desk.ask(control.ask, other)
    assert desk.ask(control.questions, ["orders"], ["Order"], 10) == [question, other]
    assert desk.ask(control.questions, ["orders"], ["Invoice"], 10) == []

    good = Question("q-1", "run-1", "orders", "Order", "status", ("x", 1), answer={"state": "paid"}, answered=True)
    bad = Question("q-2", "run-1", "orders", "Order", "status", (), failure=Failure("application", "no"), answered=True)
    assert desk.ask(control.answer, [good, bad]) == {"q-1", "q-2"}
    assert desk.ask(control.answer, [good]) == set()

    assert sorted(desk.ask(control.answered, ["q-1", "q-2", "q-3"]), key=lambda q: q.id) == [good, bad]
    assert desk.ask(control.questions, ["orders"], ["Order"], 10) == []
    assert desk.ask(control.prune_questions, 60.0) == 0
    assert desk.ask(control.prune_questions, -1.0) == 2


def test_dead_letters_are_paged_newest_first_and_dropped(desk):
    for n in range(3):
        desk.ask(control.add_dead_letter, DeadLetter(f"d-{n}", "message", "not JSON", 0.0, None, None, {"n": n}))
    desk.ask(control.add_dead_letter, DeadLetter("d-1", "message", "again", 0.0, None, None, {}))
    page = desk.ask(control.dead_letters, limit=2)
    rest = desk.ask(control.dead_letters, limit=2, after_id=page[-1].id)
    assert [letter.document["n"] for letter in (*page, *rest)] == [2, 1, 0]
    assert desk.ask(control.remove_dead_letter, "d-1")
    assert not desk.ask(control.remove_dead_letter, "d-1")


def test_beat_remembers_when_its_entries_ran(desk):
    desk.ask(control.save_beat_entries, {"a": (1.5, 2), "b": (None, 0)})
    desk.ask(control.save_beat_entries, {"a": (2.5, 3)})
    assert desk.ask(control.load_beat_entries) == {"a": (2.5, 3), "b": (None, 0)}
    desk.ask(control.remove_beat_entries, ["b"])
    assert desk.ask(control.load_beat_entries) == {"a": (2.5, 3)}


def test_beats_and_settlements_of_many_activities_do_not_wait_for_each_other(desk, rival):
    run = desk.running(*(ActivityScheduled(seq, str(seq), "charge") for seq in range(1, 6)))
    desk.send(run.run_id, SignalReceived("go"))
    beats = [Beat(ActivityKey(run.run_id, seq, 1), (seq,)) for seq in range(5, 0, -1)]
    answers = rival.ask(activities.beat, beats)
    assert [answer.key.seq for answer in answers] == [5, 4, 3, 2, 1]
    assert not any(answer.gone for answer in answers)
