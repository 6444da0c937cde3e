"""What the pool promises: Celery's semantics for coroutines, limits and termination for threads, nothing lost when it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from celery import signals
from celery.exceptions import SoftTimeLimitExceeded, Terminated, WorkerLostError
from kombu import Message
from kombu.asynchronous import Hub
from vine import promise

from tests.workers import pool_app
from tests.workers.pool_app import wait_until
from workers.pool import current_pool


def state_of(pool, told):
    return pool.app.AsyncResult(told.task_id).state


def test_a_coroutine_task_returns_its_result_to_the_caller_and_the_backend(pool):
    told = pool.ended("add", 1, 2)
    assert [result[:2] for result in told.results] == [(0, "3")]
    assert len(told.accepted) == 1
    assert pool.app.AsyncResult(told.task_id).result == 3


def test_each_coroutine_has_its_own_request_and_context_variables_also_in_what_it_gathers(pool):
    all_told = [pool.run("whoami") for _ in range(50)]
    wait_until(lambda: all(told.over for told in all_told), "all are over")
    for told in all_told:
        assert pool.app.AsyncResult(told.task_id).result == [told.task_id] * 5


def test_signals_and_handlers_of_a_coroutine_task_come_once_and_in_the_order_of_celery(pool):
    def note(name):
        def receiver(**_):
            pool_app.NOTES.append(name)

        return receiver

    receivers = [note(name) for name in ("prerun", "success", "postrun")]
    for signal, receiver in zip((signals.task_prerun, signals.task_success, signals.task_postrun), receivers, strict=True):
        signal.connect(receiver, weak=False)
    try:
        pool.ended("noted", 1, 1)
    finally:
        for signal, receiver in zip((signals.task_prerun, signals.task_success, signals.task_postrun), receivers, strict=True):
            signal.disconnect(receiver)
    assert pool_app.NOTES == ["prerun", "before_start", "on_success 2", "success", "after_return SUCCESS", "postrun"]


def test_a_failing_coroutine_task_is_recorded_and_its_handlers_are_called(pool):
    told = pool.ended("fail")
    assert told.results[0][0] == 1
    assert pool_app.NOTES == ["before_start", "on_failure as asked", "after_return FAILURE"]
    result = pool.app.AsyncResult(told.task_id)
    assert (result.state, type(result.result)) == ("FAILURE", ValueError)


@pytest.mark.parametrize("name", ["again", "flaky"])
def test_a_coroutine_task_is_retried_by_hand_and_by_autoretry(pool, name):
    told = pool.ended(name)
    assert state_of(pool, told) == "RETRY"
    assert told.results[0][0] == 1
    assert type(told.results[0][1].exception).__name__ in {"Retry", "ExceptionWithTraceback"}


def test_ignore_and_reject_leave_no_result(pool):
    assert state_of(pool, pool.ended("ignore")) == "PENDING"
    assert state_of(pool, pool.ended("reject")) == "PENDING"


def test_thousands_of_coroutines_run_at_once_beside_two_threads(pool):
    pool.loop._gate._value = 2000
    all_told = [pool.run("nap", 0.5) for _ in range(2000)]
    wait_until(lambda: sum(len(told.accepted) for told in all_told) == 2000, "all are accepted")
    assert not any(told.over for told in all_told[-10:])
    wait_until(lambda: all(told.over for told in all_told), "all are over")
    assert pool.info["threads"] == 0


def test_coroutines_over_the_limit_are_not_accepted(pool):
    pool.loop._gate._value = 1
    first, second = pool.run("nap", 60), pool.run("nap", 60)
    wait_until(lambda: first.accepted, "the first runs")
    assert not second.accepted
    pool.terminate_job(first.accepted[0])
    wait_until(lambda: second.accepted, "the second runs")


def test_a_soft_limit_can_be_caught_and_used_to_tidy_up(pool):
    for name in ("tidy", "tidy_busy"):
        told = pool.ended(name, soft_timeout=0.1, timeout=30)
        assert told.timeouts == [(True, 0.1)]
        assert pool.app.AsyncResult(told.task_id).result == "tidied"


def test_a_soft_limit_that_is_not_caught_fails_the_task(pool):
    for name in ("nap", "busy"):
        told = pool.ended(name, 60, soft_timeout=0.1)
        assert told.results[0][0] == 1
        assert type(pool.app.AsyncResult(told.task_id).result) is SoftTimeLimitExceeded


def test_a_hard_limit_is_told_at_once_and_the_stuck_thread_is_replaced(pool):
    stuck = [pool.run("stuck", gate, timeout=0.1) for gate in ("one", "two")]
    wait_until(lambda: all(told.over for told in stuck), "both are timed out")
    assert [told.timeouts for told in stuck] == [[(False, 0.1)]] * 2
    assert pool.info["threads-given-up"] == 2
    assert pool.ended("plain", 1, 2).results[0][:2] == (0, "3")
    for gate in ("one", "two"):
        pool_app.GATES[gate].set()
    wait_until(lambda: pool.info["threads-given-up"] == 0, "the stuck threads have left")
    assert [state_of(pool, told) for told in stuck] == ["PENDING"] * 2, "what a thread does after its limit counts for nothing"


def test_a_hard_limit_ends_a_coroutine(pool):
    told = pool.ended("nap", 60, timeout=0.1)
    assert told.timeouts == [(False, 0.1)]
    wait_until(lambda: pool.info["coroutines"] == 0, "the coroutine is gone")
    assert (told.results, told.errors, state_of(pool, told)) == ([], [], "PENDING")


@pytest.mark.parametrize("name", ["nap", "busy"])
def test_a_terminated_task_ends_soon_and_stores_nothing(pool, name):
    told = pool.run(name, 60)
    wait_until(lambda: told.accepted, "it runs")
    pool.terminate_job(told.accepted[0], 15)
    wait_until(lambda: told.over, "it is over", 3)
    assert type(told.errors[0].exception.exc if hasattr(told.errors[0].exception, "exc") else told.errors[0].exception) is Terminated
    assert state_of(pool, told) == "PENDING"


def test_a_thread_that_was_struck_again_and_again_still_works(pool):
    pool.shrink(1)
    for _ in range(30):
        told = pool.run("busy", 60)
        wait_until(lambda: told.accepted, "it runs")  # noqa: B023 - called at once
        told.job.terminate(15)
        told.job.terminate(15)
        wait_until(lambda: told.over, "it is over", 3)  # noqa: B023 - called at once
        assert pool.ended("plain", 1, 2).results[0][:2] == (0, "3")
    assert pool.info["threads"] == 1


def test_a_queued_task_that_is_terminated_never_runs(pool):
    running = [pool.run("stuck", "queue") for _ in range(2)]
    wait_until(lambda: all(told.accepted for told in running) and "queue" in pool_app.GATES, "both threads are taken")
    waiting = pool.run("plain", 1, 2)
    waiting.job.terminate(15)
    assert waiting.errors
    assert not waiting.accepted
    pool_app.GATES["queue"].set()
    wait_until(lambda: all(told.over for told in running), "the others are over")


def test_a_task_that_exits_does_not_take_its_thread_along(pool):
    told = pool.ended("exit_quickly")
    assert "WorkerLostError" in told.errors[0].traceback or isinstance(told.errors[0].exception, WorkerLostError)
    assert pool.ended("plain", 1, 2).results[0][:2] == (0, "3")


def test_the_pool_grows_and_shrinks_but_never_to_nothing(pool):
    held = [pool.run("stuck", "grow") for _ in range(3)]
    wait_until(lambda: sum(len(told.accepted) for told in held) == 2, "two run")
    pool.grow(1)
    wait_until(lambda: len(held[2].accepted) == 1, "the third runs")
    assert pool.num_processes == 3
    pool.shrink(2)
    with pytest.raises(ValueError, match="shrink"):
        pool.shrink(1)
    pool_app.GATES["grow"].set()
    wait_until(lambda: pool.info["threads"] == 1, "one thread is left")


def test_the_process_reaches_its_pool_and_shares_threads_and_loop(pool):
    present = current_pool()
    assert present is not None
    assert present is pool
    assert pool.submit(lambda: threading.current_thread().name).result(5).startswith("fleet")

    async def where():
        await asyncio.sleep(0)
        return threading.current_thread().name

    assert pool.submit_coroutine(where()).result(5) == "fleet-loop"
    waits = pool.submit_coroutine(asyncio.sleep(60))
    waits.cancel()
    wait_until(lambda: pool.info["coroutines"] == 0, "the coroutine is gone")


def test_a_stopping_pool_waits_for_what_runs_and_drops_what_does_not(pool):
    running = [pool.run("nap", 0.3), pool.run("busy", 0.3), pool.run("busy", 0.3)]
    wait_until(lambda: all(told.accepted for told in running), "all run")
    waiting = pool.run("plain", 1, 2)
    pool.stop()
    assert all(told.results for told in running)
    assert not waiting.over
    assert current_pool() is None


def test_a_drain_is_bounded(pool):
    pool.app.conf.worker_drain_timeout = 0.2
    told = pool.run("stuck", "drain")
    wait_until(lambda: told.accepted, "it runs")
    pool.stop()
    assert not told.over


def test_a_worker_runs_more_late_acked_coroutines_than_it_may_prefetch(start_worker, valkey):
    worker = start_worker(valkey.url, "-c", "2")
    results = [worker.send("late_nap", 1.0) for _ in range(60)]
    others = [worker.send("plain", 1, n) for n in range(5)]
    assert [result.get(timeout=15) for result in others] == [1 + n for n in range(5)]
    wait_until(lambda: worker.control("stats")["pool"]["coroutines"] == 0, "all napped")
    assert [result.get(timeout=10) for result in results] == ["rested"] * 60
    assert worker.control("stats")["prefetch_count"] == 2


def test_a_worker_terminates_and_limits_both_kinds_and_grows(start_worker, valkey):
    worker = start_worker(valkey.url, "-c", "3")
    doomed = [worker.send("nap", 60), worker.send("busy", 60)]
    wait_until(lambda: len(worker.control("active") or []) == 2, "both run")
    for result in doomed:
        result.revoke(terminate=True)
    for result in doomed:
        wait_until(lambda: result.state == "REVOKED", "it is revoked")  # noqa: B023 - called at once
    for result in (worker.send("nap", 60, time_limit=0.3), worker.send("stuck", "x", time_limit=0.3)):
        with pytest.raises(Exception, match="TimeLimitExceeded"):
            result.get(timeout=10)
    assert worker.control("pool_grow", n=2) == {"ok": "pool will grow"}
    assert worker.control("stats")["pool"]["max-concurrency"] == 5
    assert worker.send("again").get(timeout=10) == "second"
    assert worker.send("flaky").get(timeout=10) == 1


def test_a_warm_shutdown_finishes_and_acks_what_runs(start_worker, valkey):
    worker = start_worker(valkey.url, "-c", "2")
    results = [worker.send("late_nap", 1.0), worker.send("late_busy", 1.0)]
    wait_until(lambda: len(worker.control("active") or []) == 2, "both run")
    assert worker.stop() == 0
    assert [result.get(timeout=1) for result in results] == ["rested", "done"]
    with worker.app.connection_for_read() as connection:
        unacked = connection.default_channel.client.hvals("unacked")
    queue = worker.app.conf.task_default_queue.encode()  # other tests killed workers in the middle of their tasks
    assert not [message for message in unacked if queue in message]


def test_an_ack_is_sent_when_the_outcome_is_told_and_not_when_the_hub_has_slept(pool):
    """The hub does not wake for what its own thread asks for: acks would wait for up to a second, and the next messages with them."""
    acked = []
    hub: Any = Hub()
    fleet = current_pool()
    assert fleet is not None
    before, fleet._hub = fleet._hub, hub
    try:
        ack = Message(
            channel=SimpleNamespace(no_ack_consumers=None, basic_ack=lambda *_, **__: acked.append(1)), delivery_tag="t"
        ).ack_log_error
        fleet.deliver(lambda: hub.call_soon(promise(ack, (logging.getLogger(), (OSError,)))))
        for asked in hub._pop_ready():  # one round of the hub, before it looks at its sockets
            asked()
        assert acked == [1]
    finally:
        fleet._hub = before
        hub.close()
