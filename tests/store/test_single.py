"""Single transactions: one statement on PostgreSQL, all or nothing; and the hints that come with them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.store import Unmet, claims, control, hints, runs, turns, workers
from schemas.history import ActivityScheduled, RetryPolicy
from schemas.runs import Question, WorkerIdentity
from tests.store.conftest import QUEUE, TYPE

HEARD_MAX_S = 5.0


def test_a_single_commit_with_a_broken_fence_writes_nothing(store, desk):
    desk.start("w")
    (claimed,) = desk.claim()
    stale = replace(desk.closing(claimed), epoch=claimed.epoch - 1)
    try:
        with store.transaction(single=True) as tx:
            assert turns.commit(tx, [stale], worker=desk.worker, build="").lost == {claimed.run_id}
            assert store.dialect == "sqlite", "PostgreSQL cannot say which turn was lost"
    except Unmet:
        assert store.dialect == "postgresql"
    assert desk.count("turns") == 0
    assert not desk.commit(desk.closing(claimed))


def test_a_plain_start_of_an_id_in_use_writes_nothing_of_its_batch(store, desk):
    desk.start("taken")
    new = [desk.new("free", queue=QUEUE), desk.new("taken", queue=QUEUE)]
    assert runs.is_plain(new)
    with pytest.raises(Unmet), store.transaction(single=True) as tx:
        runs.start_plain(tx, new)
    assert desk.count("runs") == desk.count("inbox") == 1


def test_whoever_listens_is_told_which_run_has_closed(store, desk):
    ear = store.listen()
    if ear is None:
        assert store.dialect == "sqlite"
        return
    desk.start("w")
    (claimed,) = desk.claim()
    assert not desk.commit(desk.closing(claimed))
    assert ear.hears(HEARD_MAX_S) == [claimed.run_id]
    ear.close()


def test_one_worker_of_the_queue_is_told_of_a_started_run_unless_it_has_left(store, desk):
    if store.dialect == "sqlite":
        assert not started_with_hint(store, desk)
        return
    assert not started_with_hint(store, desk), "there is nobody to tell"
    register(desk, "elsewhere", queues=(f"{QUEUE}-more", "mail"))
    register(desk, "gone", ttl_s=-1.0)
    assert not started_with_hint(store, desk)
    register(desk, "here")
    ear = store.listen(hints.channel_of("here"))
    assert started_with_hint(store, desk) == {QUEUE}
    assert ear.hears(HEARD_MAX_S) == [""]
    ear.close()


def test_where_many_workers_live_none_is_told(store, desk):
    for number in range(hints.LISTENERS_MAX + 1):
        register(desk, f"worker-{number}")
    assert not started_with_hint(store, desk)


@pytest.mark.parametrize("single", [True, False])
def test_a_quick_claim_is_a_claim(store, desk, single):
    """Runs, activities and questions of one queue, and no more of each than was asked for."""
    desk.running(call(1, "mail"), call(2, "mail"), eager=False)
    runs_started = sorted(desk.start() for _ in range(3))
    desk.start(queue="elsewhere")
    desk.ask(control.ask, Question("q", runs_started[0], QUEUE, TYPE, "count", ()))
    wanted = claims.Wanted("me", [QUEUE], [TYPE], runs_max=2, rooms=[(["mail"], 1)], inbox_max=10)
    with store.transaction(single=single) as tx:
        claimed = claims.claim_quickly(tx, wanted, QUEUE)
    assert len(claimed.runs) == 2
    assert {run.epoch for run in claimed.runs} == {1}
    assert [pending.key.seq for pending in claimed.activities] == [1]
    assert claimed.filled
    assert [question.id for question in claimed.questions] == ["q"]
    inboxes = desk.ask(turns.with_inboxes, claimed.runs, 10)
    assert [len(run.inbox) for run in inboxes] == [1, 1]
    rest = desk.claim()
    assert sorted(run.run_id for run in [*claimed.runs, *rest]) == runs_started


def test_an_attempt_that_may_be_the_last_is_claimed_on_the_disk_before_it_runs(store, desk):
    last, other = RetryPolicy(maximum_attempts=1), RetryPolicy(maximum_attempts=2)
    desk.running(replace(call(1, "mail"), retry=last), replace(call(2, "post"), retry=other), eager=False)
    assert [claims.must_be_kept(quickly(store, kind)) for kind in ("post", "mail")] == [False, True]
    if store.dialect == "postgresql":
        with store.transaction() as tx:
            claimed_at = tx.run("SELECT pg_current_wal_insert_lsn()")[0][0]
        register(desk, "me")
        with store.transaction(single=True) as tx:
            workers.extend(tx, "me", 15.0)
        with store.transaction() as tx:
            assert tx.run("SELECT pg_current_wal_flush_lsn() >= cast(:at AS pg_lsn)", at=claimed_at)[0][0]


def test_of_two_claims_under_one_epoch_one_takes_the_turn(store, desk, rival):
    """The server died before the disk had the first claim, and the claimant never knew."""
    run_id = desk.start("w")
    (first,) = desk.claim()
    with store.transaction() as tx:
        tx.run("UPDATE runs SET epoch = epoch - 1, ready = true, owner = NULL WHERE run_id = :run_id RETURNING 1", run_id=run_id)
    (second,) = rival.claim()
    assert first.epoch == second.epoch
    assert not rival.commit(rival.turn(second))
    assert desk.commit(desk.closing(first, "a second history")) == {run_id}
    assert desk.count("turns") == 1
    assert not rival.commit(rival.closing(second, number=2))


def started_with_hint(store, desk):
    with store.transaction(single=True) as tx:
        _, woken = runs.start_plain(tx, [desk.new()], hint=True)
    return hints.told(woken)


def register(desk, worker_id, *, queues=(QUEUE,), ttl_s=60.0):
    desk.ask(workers.register, WorkerIdentity(worker_id, worker_id, "host", "boot", 1, 1.0, queues, ""), ttl_s)


def call(seq, type_):
    return ActivityScheduled(seq=seq, activity_id=str(seq), type=type_)


def quickly(store, kind):
    wanted = claims.Wanted("me", [QUEUE], [TYPE], runs_max=1, rooms=[([kind], 1)], inbox_max=10)
    with store.transaction(single=True) as tx:
        return claims.claim_quickly(tx, wanted, QUEUE)
