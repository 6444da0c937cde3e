"""Celery tasks that nobody wrote for us run as activities, in every pool, with what Celery promises them."""

from __future__ import annotations

import pytest
from celery import Celery

from orchestrator.clock import SYSTEM
from tests.e2e.processes import POOLS, WAIT_MAX_S, Shop, broker_of, site, wait_until

NO_LIMITS = {"threads", "solo"}  # Celery's own pools of these kinds keep no time limits


@pytest.fixture(scope="module", params=POOLS)
def shop(request, valkey, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    with site(Shop, folder, f"sqlite:///{folder / 'test.db'}", broker_of(valkey)) as opened:
        opened.beat()
        opened.pool = request.param
        opened.worker(request.param)
        yield opened


@pytest.fixture
def limits(shop):
    if shop.pool in NO_LIMITS:
        pytest.skip("Celery's pool keeps no time limits")


def test_tasks_run_by_object_and_by_name_on_their_own_and_their_routed_queues(shop):
    assert shop.client.start_workflow("call_object").result(timeout=WAIT_MAX_S) == [3, 15, "own", "routed"]
    assert shop.call("add", 1, 5) == 6


def test_a_bound_task_sees_its_id_its_retries_and_its_activity(shop):
    task_id, expected, retries, queue = shop.call("bound")
    assert (task_id, retries, queue) == (expected, 0, shop.settings.default_queue)
    assert len(shop.notes(task_id, "prerun")) == len(wait_until(lambda: shop.notes(task_id, "postrun"), "postrun")) == 1


def test_retry_is_durable_and_the_next_attempt_knows_its_number(shop):
    begun = SYSTEM.monotonic()
    assert shop.call("again", 2, 0.3) == [2, 3]
    assert SYSTEM.monotonic() - begun >= 0.6
    assert shop.call("quietly_again") == 1


def test_too_many_retries_fail_with_the_original_cause(shop):
    assert shop.call("again", 99, 0)[1:4] == ["ApplicationError", "OSError", "not yet"]


def test_autoretry_backs_off_and_gives_up_with_the_last_error(shop):
    assert shop.call("flaky", 1) == 1
    assert shop.call("flaky", 9)[1:4] == ["ApplicationError", "OSError", "disk 2"]


def test_a_retry_with_other_arguments_is_refused_with_a_sentence(shop):
    assert shop.call("other_again")[2] == "RetryWithOtherArguments"


def test_failures_are_not_retried_unless_the_task_or_the_workflow_says_so(shop):
    assert shop.call("fail")[1:5] == ["ApplicationError", "ValueError", "as asked", "maximum_attempts_reached"]


def test_ignore_and_reject_end_a_task_and_requeue_tries_again(shop):
    assert shop.call("ignore") is None
    assert shop.call("reject", False)[2] == "Reject"
    assert shop.call("reject", True) == "the second time"


def test_a_result_that_cannot_be_carried_fails_with_a_clear_sentence(shop):
    assert "unserialisable" in shop.call("unserialisable")[3]


def test_hooks_and_signals_are_called_once(shop):
    handle = shop.start("hooked", True)
    assert handle.result(timeout=WAIT_MAX_S) == "fine"
    assert [line.split(maxsplit=1)[1] for line in shop.notes(f"{handle.describe().run_id}--1-1")] == [
        "prerun", "on_success fine", "after_return SUCCESS", "postrun",
    ]  # fmt: skip
    failed = shop.start("hooked", False)
    failed.result(timeout=WAIT_MAX_S)
    assert [line.split(maxsplit=1)[1] for line in shop.notes(f"{failed.describe().run_id}--1-1")] == [
        "prerun", "on_failure as asked", "after_return FAILURE", "postrun",
    ]  # fmt: skip


def test_a_soft_time_limit_can_be_caught_and_fails_the_task_otherwise(shop, limits):
    assert shop.call("soft", True) == "tidied"
    assert shop.call("soft", False)[2] == "SoftTimeLimitExceeded"


def test_a_hard_time_limit_is_a_timeout_and_the_pool_goes_on(shop, limits):
    assert shop.call("hard")[1:3] == ["TimeoutError", "start_to_close"]
    assert shop.call("add", 1) == 11


def test_heartbeats_keep_a_task_alive_and_bring_back_its_cancellation(shop):
    handle = shop.start("beating", 10, heartbeat_timeout=1.0)
    wait_until(lambda: handle.describe().turn, "it has begun")
    run_id = handle.describe().run_id
    wait_until(lambda: shop.notes(f"{run_id}--1-1", "prerun"), "the task runs")
    handle.cancel()
    shop.await_note(run_id, "cancelled")
    assert handle.result(timeout=WAIT_MAX_S)[1] == "CancelledError"


def test_a_revoked_task_is_a_failure_of_its_activity(shop, limits):
    handle = shop.start("gated", "revoked")
    shop.await_note("revoked", "started")
    with Celery("operator", broker=shop.broker_url, set_as_current=False) as app:
        app.control.revoke(f"{handle.describe().run_id}--1-1", terminate=True, signal="SIGKILL")
    assert handle.result(timeout=WAIT_MAX_S)[1] == "TerminatedError"
    assert shop.call("add", 1) == 11


def test_coroutine_tasks_are_activities_in_our_pool_and_refused_in_others(shop):
    if shop.pool != "fleet":
        assert "FleetPool" in shop.call("nap", 0.01)[3]
        return
    assert shop.call("nap", 0.01) == [1, True]
    assert shop.call("async_again") == 1
    assert shop.call("async_fail")[2:4] == ["ValueError", "as asked"]
    assert shop.call("async_soft", 30)[2] == "SoftTimeLimitExceeded"
    assert shop.call("async_hard", 30)[1:3] == ["TimeoutError", "start_to_close"]
    begun = SYSTEM.monotonic()
    naps = [shop.start("nap", 1.0) for _ in range(30)]
    assert [handle.result(timeout=WAIT_MAX_S) for handle in naps] == [[1, True]] * 30
    assert SYSTEM.monotonic() - begun < 10.0, "together, not one after the other"
