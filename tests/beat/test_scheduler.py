"""Several beats on one store: one acts, and whatever happens to it, entries are neither forgotten nor repeated."""

from __future__ import annotations

import logging
from datetime import timedelta

import pytest
from celery.schedules import crontab

from beat.scheduler import LEASE, RETRY_S, StoreScheduler
from orchestrator.errors import SettingsError
from orchestrator.store import Store, control
from schemas.history import TimerStarted
from tests.beat.conftest import every, messages
from tests.store.conftest import Desk


def run(beat: StoreScheduler, times: int = 5) -> float:
    """As Celery does: again at once as long as it wants no pause."""
    delay = 0.0
    for _ in range(times):
        delay = beat.tick()
        if delay > 0:
            break
    return delay


def entries(beat: StoreScheduler) -> dict[str, tuple[float | None, int]]:
    with beat._ours.store.transaction(readonly=True) as tx:
        return control.load_beat_entries(tx)


@pytest.mark.req("DC-34")
def test_of_two_beats_one_acts(make_beat, clock, queue):
    one, two = make_beat(), make_beat()
    for _ in range(101):
        run(one)
        run(two)
        clock.advance(1.0)

    assert messages(one, queue) == 10


def test_when_the_active_one_dies_the_other_goes_on_within_a_lease(make_beat, clock, queue):
    one, two = make_beat(), make_beat()
    run(one)
    run(two)
    clock.advance(10.0)
    run(one)
    assert messages(one, queue) == 1

    clock.advance(one._ours.settings.beat_lease_s + 0.01)  # and nothing is heard of it any more
    run(two)
    assert messages(two, queue) == 1, "fail-over repeats nothing"

    clock.advance(5.0)
    run(two)
    assert messages(two, queue) == 2, "fail-over forgets nothing"
    assert entries(two)["tock"][1] == 2


def test_a_beat_that_ends_in_good_order_lets_the_next_go_on_at_once(make_beat, clock, queue):
    one, two = make_beat(), make_beat()
    run(one)
    run(two)
    one.close()
    clock.advance(10.0)
    run(two)
    assert messages(two, queue) == 1


def test_a_beat_that_comes_back_after_its_lease_has_ended_finds_itself_replaced(make_beat, clock, queue):
    one, two = make_beat(), make_beat()
    run(one)
    clock.advance(11.0)
    run(two)  # takes over and fires
    run(one)
    run(one)
    assert messages(one, queue) == 1


def test_a_beat_whose_lease_is_taken_between_two_renewals_sends_nothing(make_beat, clock, queue):
    one = make_beat()
    run(one)
    clock.advance(9.9)
    run(one)
    with one._ours.store.transaction() as tx:
        control.release_lease(tx, LEASE, one._holder)
        assert control.take_lease(tx, LEASE, "somebody else", 5.0)
    clock.advance(0.1)  # due, and it still believes to be the active one
    run(one)
    assert messages(one, queue) == 0


def test_an_entry_that_somebody_has_fired_meanwhile_is_not_fired_again(make_beat, clock, queue):
    one = make_beat()
    run(one)
    clock.advance(10.0)
    with one._ours.store.transaction() as tx:
        control.save_beat_entries(tx, {"tock": (clock.now(), 1)})
    run(one)
    assert messages(one, queue) == 0


def test_an_interval_longer_than_any_beat_lives_is_kept(make_beat, clock, queue):
    for _ in range(4):
        beat = make_beat(hourly=every(3600, clock, queue))
        run(beat)
        clock.advance(1000.0)
        beat.close()

    beat = make_beat(hourly=every(3600, clock, queue))
    run(beat)
    assert messages(beat, queue) == 1


def test_an_entry_taken_out_of_the_schedule_is_forgotten(make_beat, clock, queue):
    make_beat(old=every(10, clock, queue)).tick()
    clock.advance(100.0)
    beat = make_beat(new=every(10, clock, queue))
    run(beat)
    assert set(entries(beat)) == {"new"}


@pytest.mark.req("DC-34")
def test_a_day_forward_fires_each_entry_once(make_beat, clock, queue):
    beat = make_beat()
    run(beat)
    clock.wall += 86400
    for _ in range(20):
        run(beat)
    assert messages(beat, queue) == 1


def test_a_day_back_does_not_silence_the_entries(make_beat, clock, queue):
    beat = make_beat()
    run(beat)
    clock.wall -= 86400
    for _ in range(12):
        run(beat)
        clock.advance(1.0)
    assert messages(beat, queue) == 1


def test_an_entry_that_cannot_be_sent_is_left_out_and_the_others_go(make_beat, clock, queue, caplog):
    beat = make_beat(bad=every(10, clock, queue, args=(object(),)), good=every(10, clock, queue))
    run(beat)
    clock.advance(10.0)
    run(beat, times=10)
    assert messages(beat, queue) == 1
    assert "entry bad could not be sent" in caplog.text


def test_crontab_entries_survive_the_store(make_beat, clock, queue):
    beat = make_beat(nightly={"task": "tock", "schedule": crontab(hour=4, minute=0), "options": {"queue": queue}})
    run(beat)
    again = make_beat(nightly={"task": "tock", "schedule": crontab(hour=4, minute=0), "options": {"queue": queue}})
    beat.close()
    run(again)
    assert abs(again.schedule["nightly"].last_run_at - beat.schedule["nightly"].last_run_at) < timedelta(milliseconds=1)


def test_while_the_broker_is_away_timers_fire_and_entries_wait(make_beat, clock, queue, valkey, sqlite_url, caplog):
    caplog.set_level(logging.WARNING)
    beat = make_beat(broker=valkey.url)
    run(beat)
    valkey.kill()
    try:
        desk = Desk(Store.open(sqlite_url, clock=clock))
        desk.running(TimerStarted(1, clock.now() + 5.0))
        for _ in range(4):
            clock.advance(10.0)
            run(beat)
            clock.advance(RETRY_S)
        assert len(desk.claim()[0].inbox) == 1
        desk.store.dispose()
    finally:
        valkey.restart()
    clock.advance(RETRY_S)
    run(beat)
    run(beat)

    assert messages(beat, queue) == 1, "it was due four times and fires once"
    assert caplog.text.count("beat cannot reach the broker") == 1


def test_while_the_database_is_away_beat_goes_on_trying(make_beat, clock, queue, tmp_path, caplog):
    beat = make_beat(database=f"sqlite:///{tmp_path}/later/x.db")
    assert [beat.tick() for _ in range(3)] == [RETRY_S] * 3
    assert caplog.text.count("beat goes on trying") == 1

    (tmp_path / "later").mkdir()
    beat._ours.store.upgrade()
    run(beat)
    clock.advance(10.0)
    run(beat)
    assert messages(beat, queue) == 1


def test_a_signal_in_the_middle_of_a_tick_leaves_the_lease_to_the_second_close(make_beat, clock, monkeypatch):
    beat = make_beat()
    seen = []

    def interrupted():
        beat.close()  # what Celery's signal handler does
        seen.append(beat._active)
        raise SystemExit

    run(beat)
    monkeypatch.setattr(beat._rounds, "go", interrupted)
    with pytest.raises(SystemExit):
        beat.tick()
    assert seen == [True]

    beat.close()
    other = make_beat()
    run(other)
    assert other._active


def test_an_application_without_us_is_told_what_to_write(celery_app):
    with pytest.raises(SettingsError, match=r"Write Orchestrator\(app\)"):
        StoreScheduler(celery_app)
