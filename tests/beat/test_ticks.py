"""What happens when time has passed: each chore does its part, and no chore suffers from another."""

from __future__ import annotations

import pytest

from beat import ticks
from beat.ticks import CHORES, Chore, Rounds, pause_s, tick
from orchestrator.clock import SYSTEM
from orchestrator.dispatch import HEAD_START_S
from orchestrator.errors import DatabaseUnavailable
from orchestrator.store import Store, control, workers
from schemas.history import ActivityScheduled, TimerFired, TimerStarted
from schemas.runs import Question, WorkerIdentity
from tests.beat.conftest import MovableClock
from tests.store.conftest import QUEUE


def test_a_due_timer_fires_once_and_rings_for_its_run(store, desk, bells, settings):
    desk.running(TimerStarted(1, SYSTEM.now() - 1.0))

    reports = [tick(store, bells, settings), tick(store, bells, settings)]

    assert [report.done["fire_timers"] for report in reports] == [1, 0]
    assert bells.rung == [QUEUE]
    assert [entry.arrival for entry in desk.claim()[0].inbox] == [TimerFired(1)]


def test_a_late_activity_is_timed_out(store, desk, bells, settings):
    late = ActivityScheduled(1, "1", "charge", (), schedule_to_start_s=0.0)
    desk.running(late, eager=False)

    assert tick(store, bells, settings).done["expire_activities"] == 1

    assert desk.claim()[0].inbox[0].arrival.kind == "activity_failed"


def test_what_a_dead_worker_had_is_ready_again(store, desk, bells, settings):
    desk.ask(workers.register, WorkerIdentity(desk.worker, "w@here", "here", "boot", 1, 0.0, (QUEUE,), "b1"), ttl_s=-1.0)
    run_id = desk.start()
    desk.claim()

    assert tick(store, bells, settings).done["recover_expired"] == 1

    assert QUEUE in bells.rung
    assert [claimed.run_id for claimed in desk.claim()] == [run_id]


def test_old_questions_are_forgotten(store, desk, bells, settings):
    desk.ask(control.ask, Question("q", "r", QUEUE, "Order", "status", ()))
    unused = settings.model_copy(update={"question_s": 0.0})

    assert tick(store, bells, unused).done["prune_questions"] == 1


def serve(store: Store, queue: str = QUEUE) -> None:
    """A live worker listens to the queue."""
    with store.transaction() as tx:
        workers.register(tx, WorkerIdentity("w", "node", "host", "boot", 1, 1.0, (queue,), ""), 60.0)


def test_work_that_nobody_was_told_of_is_rung_for(store, desk, bells, settings):
    serve(store)
    desk.start()
    assert tick(store, bells, settings.model_copy(update={"forgotten_s": 0.0})).done["ring_forgotten"] == 1
    assert bells.rung == [QUEUE]


def test_one_failing_chore_does_not_stop_the_others(store, bells, settings):
    def fail(*_):
        raise ValueError("no")

    report = tick(store, bells, settings, chores=(Chore("broken", fail, lambda _: 0.0), *CHORES))

    assert list(report.failed) == ["broken"]
    assert set(report.done) == {chore.name for chore in CHORES}


def test_a_chore_that_goes_on_failing_is_logged_once_until_it_succeeds_again(store, bells, settings, monkeypatch, caplog):
    fail = [True]

    def chore(*_):
        if fail[0]:
            raise ValueError("no")
        return 0

    monkeypatch.setattr(ticks, "CHORES", (Chore("sometimes", chore, lambda _: 0.0),))
    rounds = Rounds(store, bells, settings, clock=SYSTEM)
    for fail[0] in (True, True, False, True):
        rounds.go()

    assert [record.message.split()[1] for record in caplog.records if record.levelname == "ERROR"] == ["sometimes", "sometimes"]


def test_without_a_database_a_tick_says_so_and_does_nothing(bells, settings, tmp_path):
    with pytest.raises(DatabaseUnavailable):
        tick(Store.open(f"sqlite:///{tmp_path}/missing/x.db"), bells, settings)


def test_beat_sleeps_until_the_next_due_moment_but_never_long(store, desk, settings):
    assert pause_s(store, settings, worked=False) == settings.tick_s

    desk.running(TimerStarted(1, SYSTEM.now() + 60.0))
    assert pause_s(store, settings, worked=False) == settings.tick_s

    patient = settings.model_copy(update={"tick_s": 1000.0})
    assert 50.0 < pause_s(store, patient, worked=False) <= 60.0 + HEAD_START_S


def test_overdue_work_that_beat_cannot_do_does_not_make_it_spin(store, desk, settings):
    desk.running(TimerStarted(1, SYSTEM.now() - 1.0))
    assert pause_s(store, settings, worked=False) == settings.tick_s
    assert pause_s(store, settings, worked=True) == ticks.PAUSE_MIN_S


def test_a_queue_without_workers_is_not_rung_for(store, desk, bells, settings):
    serve(store, "another")
    desk.start()
    assert tick(store, bells, settings.model_copy(update={"forgotten_s": 0.0})).done["ring_forgotten"] == 0
    assert bells.rung == []


def test_a_forgotten_queue_is_rung_for_at_intervals_and_not_at_each_tick(store, desk, bells, settings):
    serve(store)
    clock = MovableClock()
    desk.start()
    rounds = Rounds(store, bells, settings.model_copy(update={"forgotten_s": 1e-9}), clock=clock)
    eager = Rounds(store, bells, settings.model_copy(update={"forgotten_s": 1e9}), clock=clock)

    for _ in range(5):
        rounds.go()
        eager.go()
        clock.advance(1e-10)

    assert bells.rung == [QUEUE]
