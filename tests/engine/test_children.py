"""Child workflows and messages to other runs, on a whole engine: each end is told once, each message delivered once, and a family ends in order."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator import activity, workflow
from orchestrator.errors import (
    ChildWorkflowError,
    MessageNotDelivered,
    TerminatedError,
    WorkflowAlreadyStarted,
    WorkflowFailure,
)
from schemas.history import ChildScheduled, ChildStarted
from schemas.runs import IdReusePolicy, RunDescription, Status
from tests.engine.conftest import WAIT_MAX_S, House

pytestmark = pytest.mark.req("DC-29")


@activity.defn
def double(value: int) -> int:
    return 2 * value


@workflow.defn
async def doubled(value: int) -> int:
    return await workflow.execute_activity(double, value)


@workflow.defn
async def out_of_luck(reason: str) -> None:
    raise ValueError(reason)


@workflow.defn
class Listener:
    def __init__(self) -> None:
        self.said: list[str] = []

    @workflow.run
    async def run(self, wanted: int) -> list[str]:
        try:
            await workflow.wait_condition(lambda: len(self.said) >= abs(wanted))
        except asyncio.CancelledError:
            self.said.append(f"cancelled: {workflow.cancellation_reason()}")
            if wanted < 0:
                raise
        return self.said

    @workflow.signal
    def say(self, word: str) -> None:
        self.said.append(word)


@workflow.defn
async def down_to_zero(left: int) -> str:
    if left:
        workflow.continue_as_new(left - 1)
    return "zero"


def described(house: House, workflow_id: str) -> RunDescription:
    return house.client.get_handle(workflow_id).describe()


def test_a_parent_gets_the_results_of_all_its_children(house: House) -> None:
    @workflow.defn
    async def parent(width: int) -> int:
        return sum(await asyncio.gather(*(workflow.execute_child_workflow(doubled, n) for n in range(width))))

    house.worker()
    house.worker("elsewhere")
    assert house.run(parent, 20) == 380


def test_children_run_on_other_queues_and_workers_and_know_their_parent(house: House) -> None:
    @workflow.defn
    async def child() -> str | None:
        return workflow.info().parent_id

    @workflow.defn
    async def parent() -> list[Any]:
        handle = await workflow.start_child_workflow(child, id="the-child", queue="elsewhere", priority=7, memo={"a": 1})
        return [handle.id, handle.first_execution_run_id, await handle]

    house.worker()
    house.worker("elsewhere")
    handle = house.client.start_workflow(parent, id="the-parent")
    child_id, run_id, parent_id = handle.result(timeout=WAIT_MAX_S)
    run = described(house, child_id)
    assert (child_id, run_id, parent_id) == ("the-child", run.run_id, "the-parent")
    assert (run.parent_id, run.queue, run.priority, run.memo) == ("the-parent", "elsewhere", 7, {"a": 1})
    events = [event for turn in handle.history() for event in (*turn.arrivals, *turn.commands)]
    assert [event.run_id for event in events if isinstance(event, ChildScheduled | ChildStarted)] == [run_id] * 2
    assert [run.workflow_id for run in handle.children()] == ["the-child"]


def test_a_child_has_the_priority_of_its_parent_unless_it_has_its_own(house: House) -> None:
    @workflow.defn
    async def parent() -> int:
        return await workflow.execute_child_workflow(doubled, 1, id="heir")

    house.worker()
    assert house.client.start_workflow(parent, priority=5).result(timeout=WAIT_MAX_S) == 2
    assert described(house, "heir").priority == 5


def test_the_failure_of_a_child_reaches_its_parent_with_its_cause(house: House) -> None:
    @workflow.defn
    async def parent() -> None:
        await workflow.execute_child_workflow(out_of_luck, "no luck")

    house.worker()
    with pytest.raises(WorkflowFailure) as caught:
        house.run(parent)
    error = caught.value.cause
    assert isinstance(error, ChildWorkflowError)
    assert (error.workflow_type, str(error.cause)) == ("out_of_luck", "no luck")


def test_a_parent_waits_for_the_end_of_the_chain_of_its_child(house: House) -> None:
    @workflow.defn
    async def parent() -> str:
        return await workflow.execute_child_workflow(down_to_zero, 3)

    house.worker()
    assert house.run(parent) == "zero"


def test_a_child_that_continues_as_new_keeps_what_its_parent_gave_it(house: House) -> None:
    @workflow.defn
    async def parent() -> str:
        return await workflow.execute_child_workflow(
            down_to_zero, 2, id="heir", priority=6, memo={"a": 1}, search_attributes={"b": 2}, run_timeout=60
        )

    house.worker()
    assert house.run(parent) == "zero"
    run = described(house, "heir")
    assert (run.priority, run.memo, run.search_attributes) == (6, {"a": 1}, {"b": 2})
    assert run.parent_id is not None


@pytest.mark.parametrize("announced", [True, False])
def test_an_id_that_is_taken_fails_the_start_in_the_parent(house: House, announced: bool) -> None:
    @workflow.defn
    async def parent(announced: bool) -> list[str]:
        said = []
        for reuse in (IdReusePolicy.ALLOW_DUPLICATE, IdReusePolicy.REJECT_DUPLICATE):
            try:
                if announced:
                    await workflow.start_child_workflow(Listener.run, 0, id="taken", id_reuse_policy=reuse)
                else:
                    await workflow.execute_child_workflow(Listener.run, 0, id="taken", id_reuse_policy=reuse)
            except WorkflowAlreadyStarted as error:
                said.append(f"{error.workflow_id}: {error.message}")
            await workflow.sleep(0)
            await workflow.get_external_workflow_handle("taken").signal(Listener.say, "go") if not said[1:] else None
            await workflow.sleep(0.3)
        return said

    house.worker()
    taken = house.client.start_workflow(Listener.run, 1, id="taken")
    said = house.run(parent, announced)
    assert taken.result(timeout=WAIT_MAX_S) == ["go"]
    assert "running already" in said[0]
    assert str(taken.run_id) in said[0]
    assert "is completed" in said[1]
    assert "reject_duplicate" in said[1]


def test_an_error_about_an_id_that_is_taken_fails_a_parent_that_does_not_catch_it(house: House) -> None:
    @workflow.defn
    async def parent() -> None:
        await workflow.execute_child_workflow(doubled, 1, id="mine")

    house.worker()
    with pytest.raises(WorkflowFailure) as caught:
        house.client.start_workflow(parent, id="mine").result(timeout=WAIT_MAX_S)
    assert isinstance(caught.value.cause, WorkflowAlreadyStarted)


def test_signals_reach_children_and_other_runs_once_and_in_order(house: House) -> None:
    @workflow.defn
    async def parent() -> list[str]:
        child = await workflow.start_child_workflow(Listener.run, 3)
        for word in ("one", "two", "three"):
            await child.signal(Listener.say, word)
        await asyncio.gather(*(workflow.get_external_workflow_handle("other").signal("say", str(n)) for n in range(10)))
        return await child

    house.worker()
    house.worker()
    other = house.client.start_workflow(Listener.run, 10, id="other")
    assert house.run(parent) == ["one", "two", "three"]
    assert other.result(timeout=WAIT_MAX_S) == [str(n) for n in range(10)]


def test_a_message_to_a_run_that_is_not_open_fails_and_says_so(house: House) -> None:
    @workflow.defn
    async def parent(run_id: str) -> list[str]:
        said = []
        for handle in (workflow.get_external_workflow_handle("nobody"), workflow.get_external_workflow_handle("other", run_id)):
            for message in (handle.signal("say", "x"), handle.cancel()):
                try:
                    await message
                except MessageNotDelivered as error:
                    said.append(error.message)
        child = await workflow.start_child_workflow(down_to_zero, 0)
        await child
        try:
            await child.signal("say", "too late")
        except MessageNotDelivered as error:
            said.append(error.workflow_id)
        return [*said, child.id]

    house.worker()
    house.client.start_workflow(Listener.run, 1, id="other")
    *said, closed, child = house.run(parent, "another run")
    assert len(said) == 4
    assert all("there is no open run of workflow" in message for message in said)
    assert "another run" in said[2]
    assert closed == child


def test_a_run_cancels_another_one_and_says_why(house: House) -> None:
    @workflow.defn
    async def parent() -> None:
        await workflow.get_external_workflow_handle("other").cancel("no more")

    house.worker()
    other = house.client.start_workflow(Listener.run, 1, id="other")
    house.run(parent)
    assert other.result(timeout=WAIT_MAX_S) == ["cancelled: no more"]


def test_cancelling_a_parent_cancels_the_child_it_waits_for(house: House) -> None:
    @workflow.defn
    async def parent(wanted: int) -> list[str]:
        return await workflow.execute_child_workflow(Listener.run, wanted, id=f"child{wanted}")

    house.worker()
    handles = {wanted: house.client.start_workflow(parent, wanted, id=f"parent{wanted}") for wanted in (1, -1)}
    house.until(lambda: house.client.count_workflows(id_prefix="child") == 2)
    for handle in handles.values():
        handle.cancel("enough")
    assert handles[1].result(timeout=WAIT_MAX_S) == ["cancelled: enough"]  # the child's true outcome
    with pytest.raises(WorkflowFailure):
        handles[-1].result(timeout=WAIT_MAX_S)
    assert described(house, "parent-1").status is Status.CANCELED
    assert described(house, "child-1").status is Status.CANCELED


def test_a_child_that_is_ended_from_outside_is_told_to_its_parent(house: House) -> None:
    @workflow.defn
    async def parent(limit_s: float | None) -> str:
        try:
            await workflow.execute_child_workflow(Listener.run, 1, id=f"child{limit_s}", run_timeout=limit_s)
        except ChildWorkflowError as error:
            return type(error.cause).__name__
        return "impossible"

    house.worker()
    terminated = house.client.start_workflow(parent, None)
    house.until(lambda: house.client.count_workflows(id_prefix="childNone"))
    house.client.get_handle("childNone").terminate("by hand")
    assert terminated.result(timeout=WAIT_MAX_S) == TerminatedError.__name__
    timed_out = house.client.start_workflow(parent, 0.2)
    house.until(lambda: timed_out.describe().status is Status.COMPLETED)
    assert timed_out.result() == "TimeoutError"


@workflow.defn
async def middle() -> None:
    for policy in ("terminate", "request_cancel", "abandon"):
        await workflow.start_child_workflow(Listener.run, 1, id=policy, parent_close_policy=policy)
    await workflow.start_child_workflow(Listener.run, 0, id="closed before")
    await workflow.wait_condition(lambda: False)


async def end(how: str) -> None:
    if how == "wait":
        await workflow.wait_condition(lambda: False)
    await workflow.sleep(1.0)  # the family is complete by then
    if how == "again":
        workflow.continue_as_new("return")
    if how == "fail":
        raise ValueError(how)


@pytest.mark.parametrize("how", ["terminate", "fail", "again", "time out"])
def test_a_family_ends_with_its_head_as_the_policies_say(house: House, how: str) -> None:
    @workflow.defn
    async def head(how: str) -> None:
        if how != "return":
            await workflow.start_child_workflow(middle, id="middle")
            await end(how)

    house.worker()
    handle = house.client.start_workflow(
        head, "wait" if how in {"terminate", "time out"} else how, id="head", run_timeout=2.0 if how == "time out" else None
    )
    house.until(lambda: house.client.count_workflows(id_prefix="closed before", status=Status.COMPLETED))
    if how == "terminate":
        handle.terminate("by hand")
    house.until(lambda: all(described(house, id_).closed_at for id_ in ("head", "middle", "terminate", "request_cancel")))
    assert described(house, "middle").status is Status.TERMINATED
    assert "its parent head has closed" in str(described(house, "middle").failure)
    assert described(house, "terminate").status is Status.TERMINATED
    assert described(house, "request_cancel").result == ["cancelled: its parent middle has closed"]
    assert described(house, "abandon").status is Status.RUNNING
    assert described(house, "closed before").status is Status.COMPLETED
    house.client.get_handle("abandon").signal("say", "still here")
    assert house.client.get_handle("abandon").result(timeout=WAIT_MAX_S) == ["still here"]


def test_a_child_started_in_the_last_turn_of_its_parent_lives_if_it_is_abandoned(house: House) -> None:
    @workflow.defn
    async def parent() -> None:
        for policy in ("abandon", "terminate"):
            asyncio.get_running_loop().create_task(workflow.execute_child_workflow(Listener.run, 1, id=policy, parent_close_policy=policy))
        asyncio.get_running_loop().create_task(workflow.get_external_workflow_handle("abandon").signal("say", "bye"))
        await asyncio.sleep(0)

    house.worker()
    house.run(parent)
    assert house.client.get_handle("abandon").result(timeout=WAIT_MAX_S) == ["bye"]
    house.until(lambda: described(house, "terminate").status is Status.TERMINATED)


def test_two_runs_that_signal_each_other_over_and_over_never_block(house: House) -> None:
    @workflow.defn
    class Player:
        def __init__(self) -> None:
            self.got = 0
            self.wanted = 1

        @workflow.run
        async def run(self, partner: str, rounds: int) -> int:
            await workflow.wait_condition(lambda: self.got > 0)
            for _ in range(rounds):
                await workflow.get_external_workflow_handle(partner).signal("ball")
                self.wanted += 1
                await workflow.wait_condition(lambda: self.got >= self.wanted)
            return self.got

        @workflow.signal
        def ball(self) -> None:
            self.got += 1

    for _ in range(3):
        house.worker(eager=False, claim_batch_max=2)
    pairs = [
        (
            house.client.start_workflow(Player.run, args=[f"b{n}", 5], id=f"a{n}"),
            house.client.start_workflow(Player.run, args=[f"a{n}", 5], id=f"b{n}"),
        )
        for n in range(6)
    ]
    for pair in pairs:
        for handle in pair:
            handle.signal("ball")
    for pair in pairs:
        for handle in pair:
            assert handle.result(timeout=WAIT_MAX_S) == 6
