"""Workers that die, hang, leave, come back and pause: their work goes on, once; real processes on real brokers."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
from celery import Celery

from orchestrator.clock import SYSTEM
from orchestrator.dispatch import HEADER
from orchestrator.store import activities
from schemas.runs import ActivityKey
from tests.e2e.processes import WAIT_MAX_S, redis_of, wait_until
from workers.steps import SHARE_INTERVAL_S

TAKE_OVER_MAX_S = 4.0  # of a process that is gone for sure; most of it is a busy machine starting another


def sender(shop):
    return Celery("sender", broker=shop.broker_url, set_as_current=False)


def pid_of(line):
    return int(line.rpartition("pid=")[2])


def losses(shop, handle, *, attempt):
    with shop.store.transaction(readonly=True) as tx:
        pending = activities.get(tx, ActivityKey(handle.describe().run_id, 1, attempt))
    assert pending is not None, "it runs"
    return pending.losses


def test_a_message_that_comes_twice_or_late_runs_nothing(any_shop):
    any_shop.worker()
    handle = any_shop.start("gated", "twice")
    any_shop.await_note("twice", "started")
    run_id = handle.describe().run_id
    header = {"run_id": run_id, "seq": 1, "attempt": 1}
    with sender(any_shop) as app:
        for attempt in (1, 1, 2, 7):
            headers = {HEADER: {**header, "attempt": attempt}}
            app.send_task("gated", ("twice",), task_id=f"{run_id}--1-{attempt}", headers=headers, queue=any_shop.settings.default_queue)
        wait_until(lambda: any_shop.programs[0].text.count("came too late") == 4, "all of them are dropped")
        any_shop.open_gate("twice")
        assert handle.result(timeout=WAIT_MAX_S) == "twice"
        app.send_task("gated", ("twice",), headers={HEADER: header}, queue=any_shop.settings.default_queue)
        wait_until(lambda: any_shop.programs[0].text.count("came too late") == 5, "the late one is dropped")
    assert len(any_shop.notes("twice", "started")) == 1


def test_task_messages_that_the_broker_forgot_are_sent_again(shop):
    shop.beat()
    shop.worker()
    handles = [shop.start("count", number, queue="later") for number in range(5)]
    broker = redis_of(shop.broker_url)
    wait_until(lambda: broker.llen("later") == 5, "the messages wait for a worker")
    broker.flushdb()
    shop.worker(queues="later")
    with shop.store.transaction() as tx:
        tx.run("UPDATE activities SET due_at = 0")  # what the passing of time does
    assert [handle.result(timeout=WAIT_MAX_S) for handle in handles] == list(range(5))
    assert sorted(shop.notes("count")) == [f"count {number}" for number in range(5)]


def test_a_task_that_kills_its_prefork_child_three_times_becomes_a_dead_letter(any_shop):
    any_shop.beat()
    any_shop.worker("prefork", queues=f"{any_shop.settings.default_queue},own")
    any_shop.worker("fleet", queues="calm")
    neighbour = any_shop.client.start_workflow("steps", args=[1, 40], queue="calm")
    result = any_shop.call("poison", "kill", queue="own")
    assert result[1] == "WorkerLost"
    assert "dead letter" in result[3]
    assert len(any_shop.notes("poison")) == 3
    assert [letter.kind for letter in any_shop.dead_letters()] == ["activity"]
    assert any_shop.call("add", 1, queue="own") == 11
    assert neighbour.result(timeout=WAIT_MAX_S) == 1


def test_a_task_that_kills_its_whole_worker_three_times_becomes_a_dead_letter(shop):
    shop.beat()
    shop.worker("fleet")
    handle = shop.start("poison", "exit", queue="deadly")
    for _ in range(3):
        worker = shop.worker("fleet", node="victim@test", queues="deadly", wait=False)
        assert worker.process.wait(WAIT_MAX_S) == 9, "it has killed its worker"
    shop.worker("fleet", node="victim@test", queues="deadly")
    assert "dead letter" in handle.result(timeout=WAIT_MAX_S)[3]
    assert len(shop.notes("poison")) == 3
    assert shop.call("add", 1, queue="deadly") == 11


def test_what_a_killed_prefork_child_did_runs_again_within_seconds(shop):
    shop.beat()
    shop.worker("prefork")
    for kind in ("gated", "native_gated"):
        handle = shop.start(kind, kind)
        victim = pid_of(shop.await_note(kind, "started", "1")[0])
        os.kill(victim, signal.SIGKILL)
        begun = SYSTEM.monotonic()
        assert pid_of(shop.await_note(kind, "started", "2")[0]) != victim
        assert SYSTEM.monotonic() - begun < TAKE_OVER_MAX_S
        shop.open_gate(kind)
        assert handle.result(timeout=WAIT_MAX_S) == kind


def test_a_worker_that_restarts_under_its_name_takes_over_at_once(any_shop):
    any_shop.beat()
    first = any_shop.worker(node="phoenix@test")
    handles = {kind: any_shop.start(kind, kind) for kind in ("gated", "native_gated")}
    for kind in handles:
        any_shop.await_note(kind, "started", "1")
    first.kill()
    any_shop.worker(node="phoenix@test")
    begun = SYSTEM.monotonic()
    for kind in handles:
        any_shop.await_note(kind, "started", "2")
        any_shop.open_gate(kind)
    assert SYSTEM.monotonic() - begun < TAKE_OVER_MAX_S
    assert {kind: handle.result(timeout=WAIT_MAX_S) for kind, handle in handles.items()} == {kind: kind for kind in handles}
    assert len(any_shop.workers()) == 1, "its former self is forgotten"


def test_a_silent_worker_is_taken_over_when_its_lease_ends_and_comes_back_as_somebody_else(shop):
    shop.beat()
    lease = {"lease_s": 2.0, "lease_beat_s": 0.5}
    silent = shop.worker(**lease)
    handle = shop.start("native_gated", "silence")
    shop.await_note("silence", "started", "1")
    shop.worker(**lease)
    silent.signal(signal.SIGSTOP)
    shop.await_note("silence", "started", "2")
    silent.signal(signal.SIGCONT)
    wait_until(lambda: "goes on under a new identity" in silent.text, "it has noticed")
    shop.open_gate("silence")
    assert handle.result(timeout=WAIT_MAX_S) == "silence"
    wait_until(lambda: len(shop.notes("silence", "ended")) == 2, "both have ended, one counted")
    wait_until(lambda: len([row for row in shop.workers() if not row.expired]) == 2, "both are workers")
    assert [event.kind for turn in handle.history() for event in turn.arrivals].count("activity_completed") == 1


def test_a_prefork_child_that_is_told_to_end_hands_its_task_back(shop):
    shop.beat()
    shop.worker("prefork")
    handle = shop.start("gated", "told")
    os.kill(pid_of(shop.await_note("told", "started", "1")[0]), signal.SIGTERM)
    shop.await_note("told", "started", "2")
    assert losses(shop, handle, attempt=2) == 0
    shop.open_gate("told")
    assert handle.result(timeout=WAIT_MAX_S) == "told"


@pytest.mark.parametrize("pool", ["fleet", "prefork"])
def test_a_task_that_celery_cancels_with_its_connection_runs_again_and_is_no_loss(shop, pool):
    shop.beat()
    worker = shop.worker(pool)
    handle = shop.start("gated", "cut")
    shop.await_note("cut", "started", "1")
    broker = redis_of(shop.broker_url)
    broker.client_kill_filter(_type="pubsub", skipme=True)
    broker.client_kill_filter(_type="normal", skipme=True)
    shop.await_note("cut", "started", "2")
    assert losses(shop, handle, attempt=2) == 0
    shop.open_gate("cut")
    assert handle.result(timeout=WAIT_MAX_S) == "cut"
    assert worker.alive


@pytest.mark.parametrize("pool", ["fleet", "prefork", "threads"])
def test_a_warm_shutdown_lets_activities_finish(shop, pool):
    leaver = shop.worker(pool)
    handles = {kind: shop.start(kind, kind) for kind in ("gated", "native_gated")}
    for kind in handles:
        shop.await_note(kind, "started")
    shop.worker("fleet")
    leaver.signal(signal.SIGTERM)
    wait_until(lambda: "Warm shutdown" in leaver.text, "it is told to leave")
    for kind in handles:
        shop.open_gate(kind)
    assert leaver.process.wait(WAIT_MAX_S) == 0
    assert {kind: handle.result(timeout=WAIT_MAX_S) for kind, handle in handles.items()} == {kind: kind for kind in handles}
    assert len(shop.notes("started")) == len(shop.notes("ended")) == 2


def test_what_does_not_end_in_time_is_handed_back_and_is_no_loss(any_shop):
    any_shop.beat()
    leaver = any_shop.worker("fleet", drain_s=0.5)
    handles = {kind: any_shop.start(kind, kind) for kind in ("gated", "native_gated")}
    for kind in handles:
        any_shop.await_note(kind, "started", "1")
    any_shop.worker("fleet")
    assert leaver.stop() == 0
    for kind, handle in handles.items():
        any_shop.await_note(kind, "started", "2")
        assert losses(any_shop, handle, attempt=2) == 0
        any_shop.open_gate(kind)
        assert handle.result(timeout=WAIT_MAX_S) == kind


def serve_others(shop, for_s):
    until = SYSTEM.monotonic() + for_s
    while SYSTEM.monotonic() < until:
        assert shop.client.start_workflow("steps", args=[2, 0], queue="two").result(timeout=WAIT_MAX_S) == 2


def served(app: Celery, node: str) -> list[str]:
    """The queues that a node says it consumes; none if it does not answer in time."""
    answers = app.control.inspect([node]).active_queues() or {}
    return [queue["name"] for queue in answers.get(node, [])]


@pytest.mark.parametrize("pool", ["fleet", "prefork"])
def test_a_cancelled_consumer_pauses_its_queue_and_an_added_one_resumes_it(shop, pool):
    worker = shop.worker(pool, queues="one,two")
    with sender(shop) as app:
        assert app.control.cancel_consumer("one", destination=[worker.node], reply=True, timeout=5)
        wait_until(lambda: served(app, worker.node) == ["two"], "paused")
        # A child of prefork is told of it within half a second.
        serve_others(shop, SHARE_INTERVAL_S + shop.settings.poll_s)
        paused = shop.client.start_workflow("steps", args=[1, 0], queue="one")
        serve_others(shop, 3 * shop.settings.poll_s)
        assert paused.describe().turn == 0
        app.control.add_consumer("one", destination=[worker.node], reply=True, timeout=5)
        assert paused.result(timeout=WAIT_MAX_S) == 1


def test_a_rolling_restart_under_load_loses_nothing_and_runs_nothing_twice(shop):
    shop.beat()
    nodes = {"a@rolling": "fleet", "b@rolling": "prefork"}
    running = {node: shop.worker(pool, node=node, wait=False) for node, pool in nodes.items()}
    for worker in running.values():
        shop.await_ready(worker)
    handles = [shop.client.start_workflow("steps", args=[number, 6]) for number in range(60)]
    for node, pool in nodes.items():
        shop.await_note("count", "20000")
        assert running[node].stop() == 0
        running[node] = shop.worker(pool, node=node)
    assert [handle.result(timeout=3 * WAIT_MAX_S) for handle in handles] == list(range(60))
    done = Counter(shop.notes("count") + shop.notes("quick"))
    assert len(done) == 60 * 6
    assert set(done.values()) == {1}


def test_prefork_that_spawns_its_children_is_refused_in_one_sentence(shop):
    worker = shop.worker("prefork", "--pool-start-method", "spawn", wait=False)
    assert worker.process.wait(WAIT_MAX_S) == 1
    assert "prefork children must be forked" in worker.text
