"""Child workflows and messages to other runs in the language: started, awaited, failed and cancelled in two phases."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from orchestrator import workflow
from orchestrator.core.replay import revive
from orchestrator.errors import (
    CancelledError,
    ChildWorkflowError,
    Divergence,
    InvalidArgument,
    MessageNotDelivered,
    PayloadMismatch,
    TerminatedError,
    WorkflowAlreadyStarted,
)
from schemas.history import ChildCancelRequested, ChildScheduled, RunCanceled, SignalSent
from schemas.runs import IdReusePolicy
from tests.core.twin import CONVERTER, Twin, begun, brief, cancel, delivered, done, fired, grown, lost, taken, undelivered

pytestmark = pytest.mark.req("DC-29")


@workflow.defn
class Sale:
    @workflow.run
    async def run(self, number: int) -> dict[str, int]:
        return {"number": number}

    @workflow.signal
    def approve(self, by: str) -> None: ...


@workflow.defn
async def hail(name: str) -> str:
    return f"Hello {name}"


def asked(run: Twin) -> ChildScheduled:
    (command,) = run.history[-1].commands
    assert isinstance(command, ChildScheduled)
    return command


@pytest.mark.parametrize("target", [Sale, Sale.run, "Sale"])
def test_a_child_is_called_by_its_class_its_run_method_or_its_name(target: Any) -> None:
    @workflow.defn
    async def parent() -> int:
        return (await workflow.execute_child_workflow(target, 7))["number"]  # type: ignore[no-any-return]

    run = Twin(parent)
    run.start()
    assert asked(run) == ChildScheduled(1, "r-1-1", "Sale", (7,))
    run.turn(grown(1, {"number": 7}))
    assert run.result == 7


def test_every_option_of_a_child_reaches_the_command() -> None:
    @workflow.defn
    async def parent() -> None:
        await workflow.execute_child_workflow(
            hail,
            "Ada",
            id="the-one",
            queue="far",
            id_reuse_policy=IdReusePolicy.REJECT_DUPLICATE,
            run_timeout=timedelta(minutes=1),
            execution_timeout=90,
            parent_close_policy="abandon",
            memo={"a": 1},
            search_attributes={"b": 2},
            priority=3,
            summary="a line",
        )

    run = Twin(parent)
    run.start()
    assert asked(run) == ChildScheduled(
        1,
        "the-one",
        "hail",
        ("Ada",),
        queue="far",
        parent_close="abandon",
        reuse="reject_duplicate",
        run_timeout_s=60.0,
        execution_timeout_s=90.0,
        memo={"a": 1},
        search_attributes={"b": 2},
        priority=3,
        summary="a line",
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"parent_close_policy": "forget"}, "parent_close_policy must be one of terminate, abandon, request_cancel"),
        ({"cancellation_type": "never"}, "cancellation_type must be one of"),
        ({"id_reuse_policy": "always"}, "id_reuse_policy must be one of"),
        ({"id": ""}, "id must not be empty"),
        ({"queue": " "}, "queue must not be empty"),
        ({"run_timeout": 0}, "must be longer than nothing"),
        ({"priority": "high"}, "priority must be a whole number"),
    ],
)
def test_what_is_wrong_with_a_child_is_told_at_the_call(options: dict[str, Any], message: str) -> None:
    @workflow.defn
    async def parent() -> str:
        with pytest.raises(InvalidArgument, match=message):
            await workflow.execute_child_workflow(hail, "Ada", **options)
        with pytest.raises(PayloadMismatch):
            await workflow.execute_child_workflow(hail, args=["Ada", "Bob"])
        with pytest.raises(TypeError, match="no option colour"):
            await workflow.execute_child_workflow(hail, "Ada", colour="red")  # type: ignore[call-overload]
        with pytest.raises(InvalidArgument, match="is not a workflow"):
            await workflow.execute_child_workflow(len, "Ada")  # type: ignore[arg-type]
        return "told"

    run = Twin(parent)
    assert brief(run.start()) == ["run_completed"]


def test_a_start_is_awaited_apart_from_the_result() -> None:
    @workflow.defn
    async def parent() -> list[str]:
        handle = await workflow.start_child_workflow(hail, "Ada", id="c")
        await workflow.execute_activity("between")
        return [handle.id, handle.first_execution_run_id, await handle]

    run = Twin(parent)
    assert brief(run.start()) == ["child hail #1"]
    assert asked(run).announced
    assert brief(run.turn(begun(1, "r-9"))) == ["run between #2"]
    run.turn(grown(1, "Hello Ada"))
    run.turn(done(2))
    assert run.result == ["c", "r-9", "Hello Ada"]


def test_a_child_that_ends_in_the_moment_it_starts_has_both_told() -> None:
    @workflow.defn
    async def parent() -> str:
        return await (await workflow.start_child_workflow(hail, "Ada"))

    run = Twin(parent)
    run.start()
    run.turn(begun(1), grown(1, "quick"))
    assert run.result == "quick"


@pytest.mark.parametrize("call", [workflow.start_child_workflow, workflow.execute_child_workflow])
def test_a_start_that_is_refused_raises_where_it_was_asked_for(call: Any) -> None:
    @workflow.defn
    async def parent() -> list[str]:
        try:
            await call(hail, "Ada", id="taken")
        except WorkflowAlreadyStarted as error:
            return [error.workflow_id, error.run_id]
        return []

    run = Twin(parent)
    run.start()
    run.turn(taken(1))
    assert run.result == ["taken", "r-0"]


@pytest.mark.parametrize("kind, cause", [("terminated", TerminatedError), ("canceled", CancelledError)])
def test_a_child_without_a_result_fails_its_parent_with_the_cause(kind: str, cause: type[Exception]) -> None:
    causes: list[type] = []

    @workflow.defn
    async def parent() -> None:
        try:
            await workflow.execute_child_workflow(hail, "Ada")
        except ChildWorkflowError as error:
            causes.append(type(error.cause))
            raise

    run = Twin(parent)
    run.start()
    run.turn(lost(1, kind))
    assert set(causes) == {cause}
    assert (run.failure.kind, run.failure.workflow_type, run.failure.workflow_id, run.failure.run_id) == (
        "child",
        "hail",
        "r-1-1",
        "child-run",
    )


@pytest.mark.parametrize("how", ["try_cancel", "wait_cancellation_requested", "abandon"])
def test_a_cancelled_wait_for_a_child_ends_at_once_and_later_news_of_it_are_nothing(how: Any) -> None:
    @workflow.defn
    async def parent() -> str:
        with pytest.raises(ChildWorkflowError) as caught:
            await workflow.execute_child_workflow(hail, "Ada", cancellation_type=how)
        assert workflow.is_cancellation(caught.value)
        await workflow.execute_activity("clean up")
        return "cleaned"

    run = Twin(parent)
    run.start()
    asks = [] if how == "abandon" else ["cancel #1"]
    assert brief(run.turn(cancel("enough"))) == [*asks, "run clean up #2"]
    if asks:
        assert run.history[-1].commands[0] == ChildCancelRequested(1, "enough", wait=False)
    run.turn(grown(1, "late"))
    run.turn(done(2))
    assert run.result == "cleaned"


def test_the_wait_for_a_child_lasts_until_its_true_end_unless_told_otherwise() -> None:
    @workflow.defn
    async def parent() -> str:
        return await workflow.execute_child_workflow(hail, "Ada")

    run = Twin(parent)
    run.start()
    run.turn(cancel())
    assert run.history[-1].commands == (ChildCancelRequested(1, "enough", wait=True),)
    run.turn(grown(1, "in time"))
    assert run.result == "in time"

    run = Twin(parent)
    run.start()
    run.turn(cancel())
    run.turn(lost(1, "canceled"))
    assert isinstance(run.terminal, RunCanceled)


def test_the_message_of_a_cancelled_handle_is_the_reason_that_the_child_hears() -> None:
    @workflow.defn
    async def parent() -> None:
        handle = await workflow.start_child_workflow(hail, "Ada")
        handle.cancel("too slow")
        await asyncio.wait([handle])

    run = Twin(parent)
    run.start()
    run.turn(begun(1))
    assert run.history[-1].commands == (ChildCancelRequested(1, "too slow", wait=True),)


def test_a_child_that_is_cancelled_before_its_turn_ends_was_never_asked_for() -> None:
    @workflow.defn
    async def hasty() -> str:
        task = asyncio.ensure_future(workflow.start_child_workflow(hail, "Ada"))
        await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except ChildWorkflowError as error:
            return type(error.cause).__name__
        return "impossible"

    run = Twin(hasty)
    assert brief(run.start()) == ["run_completed"]
    assert run.result == "CancelledError"


def test_a_cancelled_wait_for_a_start_cancels_the_child_and_ends() -> None:
    @workflow.defn
    async def parent() -> str:
        with pytest.raises(ChildWorkflowError) as caught:
            await workflow.start_child_workflow(hail, "Ada")
        assert workflow.is_cancellation(caught.value)
        await workflow.sleep(1)
        return "gone"

    run = Twin(parent)
    run.start()
    assert brief(run.turn(cancel())) == ["cancel #1", "timer #2"]
    run.turn(begun(1))
    run.turn(lost(1, "canceled"))
    run.turn(fired(2))
    assert run.result == "gone"


def test_messages_to_other_runs_are_typed_and_waited_for() -> None:
    @workflow.defn
    async def sender() -> list[str]:
        child = await workflow.start_child_workflow(Sale.run, 1, id="c")
        await child.signal(Sale.approve, "Ada")
        other = workflow.get_external_workflow_handle("o", "r-7")
        await other.signal("hello", args=[1, 2])
        said = [other.id, other.run_id or ""]
        try:
            await workflow.get_external_workflow_handle("nobody").cancel("no reason")
        except MessageNotDelivered as error:
            said.append(error.workflow_id)
        return said

    run = Twin(sender)
    run.start()
    run.turn(begun(1, "r-5"))
    assert run.history[-1].commands == (SignalSent(2, "c", "approve", ("Ada",), first_run_id="r-5"),)
    run.turn(delivered(2))
    assert run.history[-1].commands == (SignalSent(3, "o", "hello", (1, 2), run_id="r-7"),)
    assert brief(run.turn(delivered(3))) == ["cancel nobody #4"]
    run.turn(undelivered(4))
    assert run.result == ["o", "r-7", "nobody"]


def test_a_message_that_is_not_delivered_fails_a_run_that_does_not_catch_it() -> None:
    @workflow.defn
    async def sender() -> None:
        await workflow.get_external_workflow_handle("nobody").signal("hello")

    run = Twin(sender)
    run.start()
    run.turn(undelivered(1))
    assert (run.failure.kind, run.failure.workflow_id) == ("not_delivered", "nobody")


def test_wrong_messages_are_refused_at_the_call() -> None:
    @workflow.defn
    async def sender() -> str:
        other = workflow.get_external_workflow_handle("o")
        with pytest.raises(InvalidArgument, match="is no signal"):
            await other.signal(Sale.run, 1)
        with pytest.raises(PayloadMismatch):
            await other.signal(Sale.approve)
        with pytest.raises(InvalidArgument, match="workflow id must not be empty"):
            workflow.get_external_workflow_handle("")
        return "told"

    assert brief(Twin(sender).start()) == ["run_completed"]
    with pytest.raises(InvalidArgument, match="only be used inside a workflow"):
        workflow.get_external_workflow_handle("o")


def test_a_message_that_nobody_waits_for_any_more_leaves_no_trace_in_its_turn() -> None:
    @workflow.defn
    async def sender() -> str:
        task = asyncio.ensure_future(workflow.get_external_workflow_handle("o").signal("hello"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return "nothing"

    assert brief(Twin(sender).start()) == ["run_completed"]


def test_a_query_starts_no_child_and_sends_nothing() -> None:
    @workflow.defn
    class Asked:
        @workflow.run
        async def run(self) -> None:
            await workflow.wait_condition(lambda: False)

        @workflow.query
        def children(self) -> str:
            for call in (workflow.execute_child_workflow(hail, "Ada"), workflow.get_external_workflow_handle("o").signal("x")):
                with pytest.raises(Exception, match="not possible inside query"):
                    call.send(None)
            return "none"

    run = Twin(Asked)
    run.start()
    assert run.query("children") == "none"


@pytest.mark.parametrize(
    "then, now, expected, found",
    [
        ("hail c", "other c", "child workflow 'hail' (id c, number 1)", "child workflow 'other' (id c, number 1)"),
        ("hail c", "hail d", "child workflow 'hail' (id c, number 1)", "child workflow 'hail' (id d, number 1)"),
        ("signal c", "signal d", "signal 'x' to workflow c (number 1)", "signal 'x' to workflow d (number 1)"),
        ("signal c", "cancel c", "signal 'x' to workflow c (number 1)", "cancel request to workflow c (number 1)"),
    ],
)
def test_changed_children_and_messages_are_told_where_they_differ(then: str, now: str, expected: str, found: str) -> None:
    def version(words: str) -> Any:
        what, id_ = words.split()

        @workflow.defn(name="versioned")
        async def run() -> None:
            if what in {"signal", "cancel"}:
                other = workflow.get_external_workflow_handle(id_)
                await (other.signal("x") if what == "signal" else other.cancel())
            else:
                await workflow.execute_child_workflow(what, id=id_)

        return run

    run = Twin(version(then))
    run.start()
    with pytest.raises(Divergence) as caught:
        revive(workflow.definition_of(version(now)), run.history, CONVERTER)
    assert (caught.value.expected, caught.value.found) == (expected, found)
