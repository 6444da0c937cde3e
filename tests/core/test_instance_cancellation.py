"""Cancelling a run: a state that the code learns of once, may answer with cleanup, and may refuse."""

from __future__ import annotations

import asyncio
import contextlib

from orchestrator import workflow
from orchestrator.errors import ActivityError
from schemas.history import RunCanceled
from tests.core.twin import Twin, brief, cancel, done, failed, fired, signal


def test_a_run_that_sleeps_is_cancelled_and_its_timer_with_it():
    @workflow.defn
    async def sleeper() -> None:
        await workflow.sleep(100)

    run = Twin(sleeper)
    run.start()
    assert brief(run.turn(cancel("too slow"))) == ["untimer #1", "run_canceled"]
    assert isinstance(run.terminal, RunCanceled)
    assert run.terminal.failure.kind == "canceled"


def test_a_run_that_waits_for_an_activity_is_cancelled_through_it():
    @workflow.defn
    async def worker() -> None:
        await workflow.execute_activity("work")

    run = Twin(worker)
    run.start()
    assert brief(run.turn(cancel())) == ["cancel #1", "run_canceled"]
    assert isinstance(run.terminal, RunCanceled)
    assert run.terminal.failure.kind == "activity"


def test_cleanup_activities_run_in_finally_after_a_cancellation():
    @workflow.defn
    async def careful() -> None:
        try:
            await workflow.execute_activity("book")
        finally:
            await workflow.execute_activity("unbook", workflow.cancellation_reason())
            await workflow.sleep(1)

    run = Twin(careful)
    run.start()
    assert brief(run.turn(cancel("changed my mind"))) == ["cancel #1", "run unbook #2"]
    assert brief(run.turn(done(2))) == ["timer #3"]
    assert brief(run.turn(fired(3))) == ["run_canceled"]


def test_a_run_may_swallow_its_cancellation_and_complete():
    @workflow.defn
    async def stubborn() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await workflow.sleep(100)
        return await workflow.execute_activity("work", result_type=str)

    run = Twin(stubborn)
    run.start()
    assert brief(run.turn(cancel())) == ["untimer #1", "run work #2"]
    assert run.turn(cancel("again")) == ()  # only once
    run.turn(done(2, "fine"))
    assert run.result == "fine"


def test_a_cancellation_that_comes_with_the_start_still_enters_the_code():
    @workflow.defn
    async def entered() -> str:
        try:
            await workflow.sleep(1)
        except asyncio.CancelledError:
            return "cleaned up"
        return "slept"

    run = Twin(entered)
    assert brief(run.start(cancel())) == ["run_completed"]
    assert run.result == "cleaned up"
    earlier = Twin(entered)
    earlier.turn(cancel(), earlier.started)
    assert earlier.result == "cleaned up"


def test_a_run_that_needs_no_wait_completes_although_it_was_cancelled():
    @workflow.defn
    async def quick() -> str:
        return "done"

    assert brief(Twin(quick).start(cancel())) == ["run_completed"]


def test_all_parallel_activities_are_cancelled_in_their_order():
    @workflow.defn
    async def gathered() -> None:
        await asyncio.gather(*(workflow.start_activity("work") for _ in range(3)))

    @workflow.defn
    async def grouped() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(workflow.execute_activity("work"))

    first = Twin(gathered)
    first.start()
    assert brief(first.turn(cancel())) == ["cancel #1", "cancel #2", "cancel #3", "run_canceled"]
    second = Twin(grouped)
    second.start()
    commands = brief(second.turn(cancel()))
    assert sorted(commands[:-1]) == ["cancel #1", "cancel #2", "cancel #3"]
    assert commands[-1] == "run_canceled"  # a group of nothing but cancellations is a cancellation


def test_a_failure_during_a_cancellation_fails_the_run():
    @workflow.defn
    async def unlucky() -> None:
        try:
            await workflow.sleep(10)
        finally:
            await workflow.execute_activity("clean up")

    run = Twin(unlucky)
    run.start()
    run.turn(cancel())
    assert brief(run.turn(failed(2))) == ["run_failed"]


def test_an_activity_that_was_cancelled_without_a_request_fails_the_run():
    @workflow.defn
    async def own() -> None:
        handle = workflow.start_activity("work")
        await workflow.sleep(1)
        handle.cancel()
        await handle

    run = Twin(own)
    run.start()
    assert brief(run.turn(fired(2))) == ["cancel #1", "run_failed"]
    assert run.failure.kind == "activity"


def test_handlers_go_on_when_their_run_is_cancelled():
    @workflow.defn
    class Busy:
        @workflow.run
        async def run(self) -> str:
            try:
                await workflow.sleep(100)
            except asyncio.CancelledError:
                await workflow.wait_condition(workflow.all_handlers_finished)
                raise
            return ""

        @workflow.signal
        async def work(self) -> None:
            await workflow.execute_activity("work")

    run = Twin(Busy)
    run.start(signal("work"))
    assert brief(run.turn(cancel())) == ["untimer #2"]
    assert brief(run.turn(done(1))) == ["run_canceled"]


def test_waiting_for_the_true_outcome_works_through_a_cancelled_run():
    @workflow.defn
    async def thorough() -> str:
        try:
            return str(await workflow.execute_activity("pay", result_type=str, cancellation_type="wait_cancellation_completed"))
        except ActivityError:
            return "not paid"

    run = Twin(thorough)
    run.start()
    assert brief(run.turn(cancel())) == ["cancel #1"]
    run.turn(done(1, "paid"))
    assert run.result == "paid"
