"""Runs as callers see them: signals, queries, timers, cancellation, continue-as-new, timeouts, and code that is wrong."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from orchestrator import activity, workflow
from orchestrator.core.definitions import WORKFLOWS, WorkflowDefinition
from orchestrator.errors import ApplicationError, QueryFailed, WorkflowFailure
from schemas.history import TimerStarted
from schemas.runs import RunDescription, Status
from tests.engine.conftest import WAIT_MAX_S, House


@activity.defn
def echo(value: object) -> object:
    return value


@workflow.defn
class Approval:
    def __init__(self) -> None:
        self.votes: list[str] = []

    @workflow.run
    async def run(self, needed: int) -> list[str]:
        await workflow.wait_condition(lambda: len(self.votes) >= needed)
        return self.votes

    @workflow.signal
    def vote(self, who: str) -> None:
        self.votes.append(who)

    @workflow.query
    def count(self) -> int:
        return len(self.votes)


@pytest.mark.req("DC-27")
def test_signals_arrive_in_order_and_queries_see_them_also_after_the_end(house: House) -> None:
    house.worker()
    handle = house.client.start_workflow(Approval.run, 3, start_signal="vote", start_signal_args=["first"])
    handle.signal(Approval.vote, "second")
    assert handle.query(Approval.count) in {1, 2}
    handle.signal("vote", "third")
    assert handle.result(timeout=WAIT_MAX_S) == ["first", "second", "third"]
    assert handle.query("count") == 3
    with pytest.raises(QueryFailed, match="count"):
        handle.query("colour")


def test_a_thousand_signals_are_all_delivered_and_none_twice(house: House) -> None:
    house.worker()
    house.worker()
    handle = house.client.start_workflow(Approval.run, 1000)
    for number in range(1000):
        handle.signal(Approval.vote, str(number))
    assert handle.result(timeout=WAIT_MAX_S) == [str(number) for number in range(1000)]


def test_a_timer_fires_on_its_own_and_never_early(house: House) -> None:
    @workflow.defn
    async def nap(seconds: float) -> float:
        before = workflow.time()
        await workflow.sleep(seconds)
        return workflow.time() - before

    house.worker()
    assert 0.15 <= house.run(nap, 0.15) < WAIT_MAX_S


@pytest.mark.req("DC-26")
def test_a_timer_fires_through_beat_when_the_worker_that_set_it_is_gone(house: House) -> None:
    @workflow.defn
    async def nap() -> str:
        await asyncio.sleep(0.3)
        return "awake"

    first = house.worker()
    handle = house.client.start_workflow(nap)
    house.until(lambda: any(isinstance(command, TimerStarted) for turn in handle.history() for command in turn.commands))
    first.stop(drain_s=0)
    house.hosts.remove(first)
    house.worker()
    house.until(lambda: handle.describe().status is Status.COMPLETED)
    assert handle.result() == "awake"


def test_waiting_in_real_time_inside_asyncio_is_durable_too(house: House) -> None:
    @workflow.defn
    async def race() -> str:
        async def late() -> str:
            await asyncio.sleep(60)
            return "late"

        try:
            return await asyncio.wait_for(late(), timeout=0.05)
        except TimeoutError:
            return "on time"

    house.worker()
    assert house.run(race) == "on time"


def test_a_run_that_fails_says_why_to_the_caller(house: House) -> None:
    @workflow.defn
    async def fails() -> None:
        raise ValueError("no such order")

    house.worker()
    with pytest.raises(WorkflowFailure, match="no such order") as caught:
        house.run(fails)
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == "ValueError"


def test_continue_as_new_goes_on_under_the_same_id_with_a_fresh_history(house: House) -> None:
    @workflow.defn
    async def countdown(left: int) -> str:
        await workflow.execute_activity(echo, left)
        if left:
            workflow.continue_as_new(left - 1)
        return workflow.info().first_run_id

    house.worker()
    handle = house.client.start_workflow(countdown, 3, id="countdown")
    assert handle.result(timeout=WAIT_MAX_S) == handle.run_id
    assert len(house.client.get_handle("countdown").history()) == 2


def test_a_run_timeout_closes_the_run_without_its_code(house: House) -> None:
    house.worker()
    handle = house.client.start_workflow(Approval.run, 1, run_timeout=0.2)
    house.until(lambda: handle.describe().status is not Status.RUNNING)
    with pytest.raises(WorkflowFailure) as caught:
        handle.result()
    assert caught.value.status == "timed_out"


@pytest.mark.req("DC-27")
def test_terminate_ends_a_run_at_once_and_its_late_results_change_nothing(house: House) -> None:
    begun, release = threading.Event(), threading.Event()

    @activity.defn
    def long() -> None:
        begun.set()
        release.wait(WAIT_MAX_S)

    @workflow.defn
    async def busy() -> None:
        await workflow.execute_activity(long)

    house.worker()
    handle = house.client.start_workflow(busy)
    assert begun.wait(WAIT_MAX_S)
    handle.terminate("operator")
    release.set()
    with pytest.raises(WorkflowFailure, match="operator"):
        handle.result(timeout=WAIT_MAX_S)
    assert house.run(Approval.run, 0) == []
    assert handle.describe().status is Status.TERMINATED


def _redefine(name: str, run: Callable[..., Coroutine[Any, Any, Any]]) -> None:
    """Deploy other code under the same name."""
    WORKFLOWS.pop(name, None)
    workflow.defn(name=name)(run)


def _stuck(house: House, handle: Any) -> RunDescription:
    house.until(lambda: handle.describe().stuck is not None)
    description: RunDescription = handle.describe()
    assert description.status is Status.RUNNING
    return description


@pytest.mark.req("DC-30")
def test_code_that_no_longer_fits_stops_the_run_unharmed_says_where_and_goes_on_when_it_is_mended(house: House) -> None:
    async def original() -> str:
        await workflow.execute_activity(echo, 1)
        await workflow.sleep(0.3)
        return "original"

    async def changed() -> str:
        await workflow.sleep(0.3)
        return "changed"

    _redefine("evolving", original)
    first = house.worker()
    handle = house.client.start_workflow("evolving")
    house.until(lambda: len(handle.history()) >= 2)
    first.stop(drain_s=0)
    house.hosts.remove(first)
    _redefine("evolving", changed)
    second = house.worker()
    stuck = _stuck(house, handle).stuck
    assert stuck is not None
    assert stuck.type == "Divergence"
    assert "turn 1, command 1" in stuck.message
    assert "echo" in stuck.message
    second.stop(drain_s=0)
    house.hosts.remove(second)
    _redefine("evolving", original)
    house.worker()
    house.until(lambda: handle.describe().status is Status.COMPLETED)
    assert handle.result() == "original"


@pytest.mark.parametrize(
    "wrong, right",
    [
        (lambda: open("/etc/hostname").close(), "activity"),  # noqa: PTH123 - what an author would write
        (lambda: time.sleep(0.01), "workflow.sleep"),
        (lambda: int(time.time()), "workflow.time"),
        (lambda: int(random.random()), "workflow.random"),
    ],
    ids=["file", "sleep", "clock", "chance"],
)
def test_a_call_that_a_replay_cannot_repeat_is_refused_and_the_right_one_is_named(
    house: House, wrong: Callable[[], Any], right: str
) -> None:
    async def careless() -> str:
        wrong()
        return "?"

    async def mended() -> str:
        return "mended"

    _redefine("careless", careless)
    house.worker()
    handle = house.client.start_workflow("careless")
    stuck = _stuck(house, handle).stuck
    assert stuck is not None
    assert stuck.type == "NonDeterministicCall"
    assert right in stuck.message
    assert "test_runs.py" in stuck.message
    _redefine("careless", mended)
    house.until(lambda: handle.describe().status is Status.COMPLETED)
    assert handle.result() == "mended"


def test_code_that_never_yields_fails_its_turn_names_the_line_and_its_neighbours_go_on(house: House) -> None:
    async def spinning() -> None:
        for _ in itertools.count():
            pass

    _redefine("spinning", spinning)
    house.worker(turn_seconds_max=0.2)
    handle = house.client.start_workflow("spinning")
    stuck = _stuck(house, handle).stuck
    assert stuck is not None
    assert stuck.type == "TurnTooLong"
    assert "test_runs.py" in stuck.message
    assert house.run(Approval.run, 0) == []
    handle.terminate()


def test_a_run_of_an_unknown_type_waits_for_a_worker_that_knows_it(house: House) -> None:
    house.worker()
    handle = house.client.start_workflow("not_written_yet", 5)
    house.tick()
    assert handle.describe().status is Status.RUNNING

    async def not_written_yet(number: int) -> int:
        return number + 1

    _redefine("not_written_yet", not_written_yet)
    house.ring("default")
    assert handle.result(timeout=WAIT_MAX_S) == 6


def test_a_wrong_typed_argument_of_an_unchecked_start_fails_the_run_with_one_clear_sentence(house: House) -> None:
    house.worker()
    definition = WORKFLOWS.pop("Approval")
    assert isinstance(definition, WorkflowDefinition)
    handle = house.client.start_workflow("Approval", "three")
    WORKFLOWS["Approval"] = definition
    house.ring("default")
    with pytest.raises(WorkflowFailure, match="needed"):
        handle.result(timeout=WAIT_MAX_S)


@workflow.defn
class Everything:
    """Uses most of the language, with an outcome that does not depend on timing."""

    def __init__(self) -> None:
        self.go = False

    @workflow.run
    async def run(self) -> list[object]:
        seen: list[object] = [str(workflow.uuid4()), workflow.random().random()]
        seen += await asyncio.gather(*(workflow.execute_activity(echo, number) for number in range(3)))
        await workflow.wait_condition(lambda: self.go)
        try:
            async with asyncio.timeout(0.02):
                await asyncio.Event().wait()
        except TimeoutError:
            seen.append("timeout")
        lost = workflow.start_activity("nobody_has_it", queue="nowhere")
        await workflow.sleep(0.01)
        lost.cancel()
        seen.append(type((await asyncio.gather(lost, return_exceptions=True))[0]).__name__)
        return seen

    @workflow.signal
    def proceed(self) -> None:
        self.go = True


def test_histories_are_the_same_with_and_without_instances_in_memory_and_eager_activities(house: House) -> None:
    ways: list[dict[str, Any]] = [{}, {"cache": False}, {"eager": False}, {"cache": False, "eager": False, "claim_batch_max": 1}]
    asked: list[list[str]] = []
    for number, way in enumerate(ways):
        host = house.worker(f"way-{number}", **way)
        handle = house.client.start_workflow(Everything.run, queue=f"way-{number}")
        handle.signal(Everything.proceed)
        result = handle.result(timeout=WAIT_MAX_S)
        assert result[2:] == [0, 1, 2, "timeout", "ActivityError"]
        asked.append([command.kind for turn in handle.history() for command in turn.commands])
        host.stop(drain_s=0)
        house.hosts.remove(host)
    assert all(one == asked[0] for one in asked)


def test_a_turn_that_cannot_be_written_is_set_aside_and_its_neighbours_go_on(house: House) -> None:
    async def unwritable() -> None:
        await workflow.execute_activity(echo, 1, summary="half a character: \ud800")

    _redefine("unwritable", unwritable)
    handle = house.client.start_workflow("unwritable")
    others = [house.client.start_workflow(Approval.run, 0) for _ in range(5)]
    house.worker()
    assert [other.result(timeout=WAIT_MAX_S) for other in others] == [[]] * 5
    stuck = _stuck(house, handle).stuck
    assert stuck is not None
    assert "surrogate" in stuck.message or "utf-8" in stuck.message.lower()
    handle.terminate()
