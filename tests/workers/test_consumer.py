"""What the consumer promises: a broker may restart, forget or fall silent, and the worker goes on."""

from __future__ import annotations

from orchestrator.clock import SYSTEM
from tests.workers.pool_app import wait_until


def works(worker):
    return worker.send("add", 1, 2).get(timeout=15) == 3


def test_a_worker_with_unacked_messages_survives_a_crash_of_the_broker(start_worker, valkey):
    worker = start_worker(valkey.url, "-c", "4")
    worker.send("late_busy", 2)
    wait_until(lambda: worker.control("active"), "a task runs unacked")
    valkey.kill()
    valkey.start()
    assert works(worker)
    assert worker.control("ping") == {"ok": "pong"}
    assert worker.alive


def test_a_wiped_broker_is_told_again_what_it_forgot(start_worker, valkey):
    worker = start_worker(valkey.url, "-c", "4")
    assert works(worker)
    with worker.app.connection_for_read() as connection:
        client = connection.default_channel.client
        queue = worker.app.conf.task_default_queue
        for _ in range(2):  # also when its watchdog has looked before
            valkey.flushall()
            wait_until(lambda: client.exists(f"_kombu.binding.{queue}"), "the binding is back")
    assert works(worker)
    assert worker.control("ping") == {"ok": "pong"}


def test_a_deaf_consumer_is_restarted_and_then_hears(start_worker, valkey):
    worker = start_worker(valkey.url, "-c", "4")
    assert worker.control("deafen") == {"ok": "deaf"}
    # The first travels in the reply that was pending when the worker went deaf: it must not be lost in the restart.
    results = [worker.send("add", 1, n) for n in range(3)]
    assert [result.get(timeout=15) for result in results] == [1, 2, 3]
    assert "is deaf" in worker.log.read_text()


def test_a_full_worker_and_a_paused_one_are_not_taken_for_deaf(start_worker, valkey):
    worker = start_worker(valkey.url, "-c", "1")
    results = [worker.send("late_busy", 1.5) for _ in range(2)]
    assert results[1].get(timeout=15) == "done"
    worker.control("cancel_consumer", queue=worker.app.conf.task_default_queue)
    worker.send("add", 1, 2)
    paused_at = SYSTEM.monotonic()
    wait_until(lambda: SYSTEM.monotonic() > paused_at + 1.5, "a deaf one would have been noticed")
    assert "is deaf" not in worker.log.read_text()


def test_a_worker_survives_a_restart_of_rabbitmq(start_worker, rabbitmq):
    worker = start_worker(rabbitmq.url, "-c", "4")
    assert works(worker)
    worker.send("late_busy", 2)
    wait_until(lambda: worker.control("active"), "a task runs unacked")
    rabbitmq.restart()
    assert works(worker)
    assert worker.control("ping") == {"ok": "pong"}
