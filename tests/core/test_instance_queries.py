"""Queries look and change nothing."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import Any

import pytest

from orchestrator import workflow
from orchestrator.errors import InvalidArgument, QueryFailed, ReadOnlyContext
from tests.core.twin import Twin, brief, signal


@workflow.defn
class Shop:
    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.handle: Any = None
        self.task: Any = None
        self.try_it: Any = None

    @workflow.run
    async def run(self) -> str:
        self.handle = workflow.start_activity("work")
        self.task = asyncio.create_task(asyncio.sleep(50))
        await self.event.wait()
        return "woken"

    @workflow.signal
    def wake(self) -> None:
        self.event.set()

    @workflow.query
    def plus(self, a: int, b: int = 1) -> int:
        return a + b

    @workflow.query
    def attempt(self, what: str) -> object:
        return MUTATIONS[what](self)

    @workflow.query
    def wake_quietly(self) -> None:
        self.event.set()


def unstarted(coroutine: Any) -> Any:
    """Run a coroutine to its first refusal."""
    try:
        return coroutine.send(None)
    finally:
        coroutine.close()


MUTATIONS: dict[str, Any] = {
    "start_activity": lambda _: workflow.start_activity("x"),
    "execute_activity": lambda _: unstarted(workflow.execute_activity("x")),
    "sleep": lambda _: unstarted(workflow.sleep(1)),
    "wait_condition": lambda _: unstarted(workflow.wait_condition(lambda: True)),
    "random": lambda _: workflow.random(),
    "uuid4": lambda _: str(workflow.uuid4()),
    "set_signal_handler": lambda _: workflow.set_signal_handler("x", print),
    "set_query_handler": lambda _: workflow.set_query_handler("x", len),
    "continue_as_new": lambda _: workflow.continue_as_new(),
    "create_task": lambda _: asyncio.get_running_loop().create_task(asyncio.sleep(0)),
    "call_later": lambda _: asyncio.get_running_loop().call_later(1, print),
    "cancel_activity": lambda shop: shop.handle.cancel(),
}


@pytest.mark.parametrize("what", MUTATIONS)
def test_whatever_would_change_the_run_is_refused_in_a_query(what):
    run = Twin(Shop)
    run.start()
    with pytest.raises(QueryFailed, match=r"query 'attempt' failed: ReadOnlyContext: .* Send a signal"):
        run.query("attempt", what)
    assert not run.live.spoiled
    run.signal("wake")
    assert run.result == "woken"


@pytest.mark.parametrize("query", ["wake_quietly", "cancel_task"])
def test_a_query_that_wakes_up_waiting_code_is_refused_and_the_instance_given_up(query, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(MUTATIONS, "cancel_task", lambda shop: shop.task.cancel())
    run = Twin(Shop)
    run.start()
    with pytest.raises(QueryFailed, match="ReadOnlyContext"):
        run.query(*(["wake_quietly"] if query == "wake_quietly" else ["attempt", "cancel_task"]))
    assert run.live.spoiled
    with pytest.raises(ReadOnlyContext, match="read again from its history"):
        run.live.activate(run.at, [signal("wake")])


def test_a_query_is_typed_and_its_faults_are_told_to_the_one_who_asks():
    run = Twin(Shop)
    with pytest.raises(QueryFailed, match="before the first turn"):
        run.query("plus", 1)
    run.start()
    assert run.query("plus", 1) == 2
    assert run.query("plus", 1, 5) == 6
    with pytest.raises(QueryFailed, match="query 'plus'"):
        run.query("plus", "one")
    with pytest.raises(QueryFailed, match="has no query 'minus'; it has: attempt, plus, wake_quietly"):
        run.query("minus")
    with pytest.raises(QueryFailed, match="KeyError"):
        run.query("attempt", "nothing")


def test_a_query_asks_no_condition_and_makes_no_progress():
    @workflow.defn
    class Counting:
        def __init__(self) -> None:
            self.asked = 0

        def ask(self) -> bool:
            self.asked += 1
            return False

        @workflow.run
        async def run(self) -> None:
            await workflow.wait_condition(self.ask)

        @workflow.query
        def count(self) -> int:
            return self.asked

    run = Twin(Counting)
    run.start()
    assert run.query("count") == run.query("count") == 1


def test_query_handlers_can_be_put_in_place_by_a_function():
    @workflow.defn
    async def plain() -> None:
        step = "one"
        workflow.set_query_handler("step", lambda: step)
        with pytest.raises(InvalidArgument, match="must not be async"):
            workflow.set_query_handler("slow", asyncio.sleep)
        await workflow.sleep(1)
        step = "two"
        workflow.set_query_handler("other", lambda: 1)
        workflow.set_query_handler("other", None)
        await workflow.sleep(1)

    run = Twin(plain)
    assert brief(run.start()) == ["timer #1"]
    assert run.query("step") == "one"
    with pytest.raises(QueryFailed):
        run.query("other")


def test_the_stack_trace_shows_where_each_task_waits():
    run = Twin(Shop)
    run.start()
    trace = run.query("__stack_trace")
    assert "Shop run\n" in trace
    assert "Task-3\n" in trace
    assert re.search(r"test_instance_queries\.py:\d+ Shop\.run\n.* Event\.wait\n", trace)
    assert "core/instance.py" not in trace


def test_a_query_may_log_also_after_a_replay(caplog: pytest.LogCaptureFixture):
    @workflow.defn
    class Logs:
        @workflow.run
        async def run(self) -> None:
            await workflow.sleep(1)

        @workflow.query
        def look(self) -> bool:
            workflow.logger.info("asked")
            return workflow.unsafe.is_replaying()

    run = Twin(Logs)
    run.start()
    run.live.replaying = True  # as an instance that was just revived
    with caplog.at_level(logging.INFO, "orchestrator.workflow"):
        assert run.query("look") is False
    assert [record.getMessage() for record in caplog.records] == ["asked (w-1)"]
