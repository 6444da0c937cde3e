"""Waiting: many wait on one thread and few queries, through outages, for as long as each wants."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from orchestrator import workflow
from orchestrator.clock import SYSTEM
from orchestrator.errors import (
    ApplicationError,
    DatabaseUnavailable,
    PayloadMismatch,
    ResultTimeout,
    TerminatedError,
    WorkflowContinuedAsNew,
    WorkflowFailure,
)
from orchestrator.waiting import Awaited, Waiter


@workflow.defn
async def waiting_sum(numbers: list[int]) -> set[int]:
    return set(numbers)


def close_later(act):
    """From another thread, once the caller waits."""
    thread = threading.Timer(0.03, act)
    thread.start()
    return thread


def test_a_result_has_the_type_that_the_run_method_returns(client, hand):
    handle = client.start_workflow(waiting_sum, [1, 2], id="x")
    closing = close_later(lambda: hand.complete(hand.claim("waiting_sum")[0], [1, 2]))
    assert handle.result(timeout=10) == {1, 2}
    closing.join()
    assert handle.result(timeout=0) == {1, 2}, "a closed run needs no waiting"
    assert client.get_handle("x").result() == {1, 2}, "the type of the run is known to the process"
    assert client.get_handle("x", workflow=waiting_sum).result() == {1, 2}


def test_a_result_that_does_not_fit_is_told(client, hand):
    handle = client.start_workflow(waiting_sum, [1], id="x")
    hand.complete(hand.claim("waiting_sum")[0], "text")
    with pytest.raises(PayloadMismatch, match="result of workflow 'x'"):
        handle.result()


def test_a_failure_is_raised_with_its_cause(client, hand):
    handle = client.start_workflow(waiting_sum, [1], id="x")
    hand.fail(hand.claim("waiting_sum")[0], "too many numbers")
    with pytest.raises(WorkflowFailure, match="'x' failed: too many numbers") as failed:
        handle.result()
    assert isinstance(failed.value.cause, ApplicationError)
    assert (failed.value.status, failed.value.cause.type) == ("failed", "Broken")
    client.start_workflow(waiting_sum, [1], id="x").terminate("enough")
    with pytest.raises(WorkflowFailure, match="terminated: enough") as ended:
        client.get_handle("x").result()
    assert isinstance(ended.value.cause, TerminatedError)


@pytest.mark.parametrize("timeout", [0, 0.02, timedelta(milliseconds=20)])
def test_a_wait_ends_with_its_timeout_and_the_run_goes_on(client, timeout):
    handle = client.start_workflow(waiting_sum, [1])
    with pytest.raises(ResultTimeout, match="it goes on"):
        handle.result(timeout=timeout)
    assert handle.describe().status == "running"


def test_the_result_is_that_of_the_last_run_of_the_chain(client, hand):
    handle = client.start_workflow(waiting_sum, [1])
    hand.continue_as_new(hand.claim("waiting_sum")[0], "second")
    with pytest.raises(WorkflowContinuedAsNew) as continued:
        handle.result(follow_runs=False)
    assert continued.value.new_run_id == "second"
    closing = close_later(lambda: hand.complete(hand.claim("waiting_sum")[0], [9]))
    assert handle.result(timeout=10) == {9}
    closing.join()


def test_many_wait_on_one_thread(client, hand):
    handles = [client.start_workflow(waiting_sum, [n]) for n in range(40)]
    with ThreadPoolExecutor(40) as callers:
        results = [callers.submit(handle.result, 20) for handle in handles]
        runs = {run.run_id: run for run in hand.claim("waiting_sum")}
        for n, handle in enumerate(handles):
            hand.complete(runs[handle.run_id], [n])
        assert [result.result() for result in results] == [{n} for n in range(40)]
    assert [thread.name for thread in threading.enumerate()].count("orchestrator-waiter") <= 1


def test_a_thousand_waits_share_their_queries_and_asking_becomes_rare():
    asked, enough = [], threading.Event()

    def look(awaited):
        asked.append(len(awaited))
        if SYSTEM.monotonic() - began > 1.0:
            enough.set()
        return {}

    began = SYSTEM.monotonic()
    waiter = Waiter(look, SYSTEM)
    futures = [waiter.wait_for(("run", str(n))) for n in range(1000)]
    assert enough.wait(20)
    waiter.close()
    assert all(future.cancelled() for future in futures)
    late = asked[len(asked) // 2 :]
    assert max(late) > 200, "waits of about the same age are asked for together"
    assert len(asked) < 200, "the pause grows"


def test_an_outage_is_waited_out_and_a_mistake_is_told():
    answers = [DatabaseUnavailable("gone"), DatabaseUnavailable("gone"), {("run", "a"): "done"}]

    def look(awaited):
        answer = answers.pop(0) if answers else RuntimeError("a mistake of ours")
        if isinstance(answer, Exception):
            raise answer
        return answer

    waiter = Waiter(look, SYSTEM)
    assert waiter.wait_for(("run", "a")).result(10) == "done"
    with pytest.raises(RuntimeError, match="a mistake"):
        waiter.wait_for(("run", "b")).result(10)
    waiter.close()


def test_who_gave_up_is_not_asked_for():
    asked: list[Awaited] = []

    def look(awaited):
        asked.extend(awaited)
        return {("run", "b"): 1}

    waiter = Waiter(look, SYSTEM)
    given_up = waiter.wait_for(("run", "a"))
    given_up.cancel()
    assert waiter.wait_for(("run", "b")).result(10) == 1
    asked.clear()
    assert waiter.wait_for(("run", "b")).result(10) == 1
    assert asked == [("run", "b")]
    waiter.close()
