"""Asking for work: accepted in one transaction, or refused; on each database, with no worker."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.core import placement
from orchestrator.core.machines import Trigger
from orchestrator.errors import AgentNotFound, FleetError, ResultTimeout
from orchestrator.fleet import Fleet
from orchestrator.store import agents, runs, works
from orchestrator.store.agents import Update
from orchestrator.works import Works, agent_queue, type_queue
from schemas.agents import AgentSpec, AgentStatus, Heartbeat
from schemas.history import RunTerminated
from schemas.messages import CommandName, ErrorCode, Requirements, WorkRequest, WorkResult

ECHO = WorkRequest(work_type="echo", parameters={"x": 1})
NODE = "a-1@here"


@pytest.fixture
def desk(settings, store, bell) -> Iterator[Works]:
    with Works(settings, store=store, bell=bell) as works_:
        yield works_


@pytest.fixture
def enter(fleet):
    """Agents that are running, with what their hosts measured."""

    def ready(agent_id: str, agent_type: str = "echo", **resources):
        fleet.ready(AgentSpec(id=agent_id, type=agent_type), node=NODE, pid=1, pid_started_at=1.0, capabilities={"echo": "1.0"})
        if resources:
            fleet.record_heartbeats([Heartbeat(agent_id, 0.0, resources=resources)])

    return ready


def refusal(desk: Works, *args, **kwargs) -> ErrorCode:
    with pytest.raises(FleetError) as refused:
        desk.submit(*args, **kwargs)
    return refused.value.code


def queue_of_run(store, request_id: str) -> str:
    with store.transaction(readonly=True) as tx:
        found = runs.resolve(tx, works.RUN_PREFIX + request_id)
    assert found
    return found[2]


@pytest.mark.req("S3-13")
def test_a_work_that_is_accepted_has_its_row_and_its_run_before_the_call_returns(desk, store, bell, running):
    receipt = desk.submit(ECHO, agent_id="a-1", actor="ann")
    assert receipt.created
    assert (receipt.work.agent_id, receipt.work.agent_type, receipt.work.actor) == ("a-1", "echo", "ann")
    assert queue_of_run(store, receipt.work.request_id) == agent_queue("a-1")
    assert agent_queue("a-1") in bell.rung


def test_a_work_for_any_agent_of_a_type_goes_to_the_queue_they_share(desk, store, running):
    receipt = desk.submit(ECHO, agent_type="echo")
    assert receipt.work.agent_id == ""
    assert queue_of_run(store, receipt.work.request_id) == type_queue("echo")


@pytest.mark.req("DC-11")
def test_the_same_request_id_is_the_same_work(desk, store, running):
    request_id = SYSTEM.fresh_id()
    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(lambda _: desk.submit(ECHO, agent_id="a-1", request_id=request_id), range(20)))
    assert sum(receipt.created for receipt in receipts) == 1
    assert {receipt.work.request_id for receipt in receipts} == {request_id}
    with store.transaction(readonly=True) as tx:
        assert tx.run("SELECT count(*) FROM runs WHERE type = 'orchestrator.work'") == [(1,)]


@pytest.mark.req("DC-11")
def test_the_same_request_id_for_another_work_is_a_conflict(desk, running):
    request_id = desk.submit(ECHO, agent_id="a-1").work.request_id
    other = ECHO.model_copy(update={"parameters": {"x": 2}})
    assert refusal(desk, other, agent_id="a-1", request_id=request_id) == ErrorCode.IDEMPOTENCY_CONFLICT
    assert refusal(desk, ECHO, agent_type="echo", request_id=request_id) == ErrorCode.IDEMPOTENCY_CONFLICT


@pytest.mark.req("S1-12", "S1-13", "S1-20")
@pytest.mark.parametrize(
    "way, code",
    [
        ([Trigger.PAUSED], ErrorCode.AGENT_PAUSED),
        ([Trigger.DRAIN], ErrorCode.AGENT_STOPPING),
        ([Trigger.DRAIN, Trigger.GONE], ErrorCode.AGENT_UNAVAILABLE),
        ([Trigger.CRASHED], ErrorCode.AGENT_UNAVAILABLE),
        ([Trigger.CRASHED, Trigger.START], ErrorCode.AGENT_UNAVAILABLE),
        ([Trigger.SILENT], ErrorCode.AGENT_UNAVAILABLE),
    ],
    ids=["paused", "stopping", "stopped", "error", "starting", "inactive"],
)
def test_only_a_running_agent_takes_work(desk, store, running, way, code):
    with store.transaction() as tx:
        for trigger in way:
            agents.change(tx, agents.need(tx, "a-1", lock=True), trigger, Update())
    assert refusal(desk, ECHO, agent_id="a-1") == code
    with store.transaction(readonly=True) as tx:
        assert tx.run("SELECT count(*) FROM works") == [(0,)]


@pytest.mark.req("S1-13")
def test_an_agent_that_has_left_the_registry_takes_no_work(desk, store, running):
    with store.transaction() as tx:
        agents.unregister(tx, ["a-1"])
    assert refusal(desk, ECHO, agent_id="a-1") == ErrorCode.AGENT_UNAVAILABLE


def test_a_work_that_was_accepted_is_found_again_whatever_the_agent_has_become(desk, fleet, running):
    request_id = desk.submit(ECHO, agent_id="a-1").work.request_id
    fleet.command("a-1", CommandName.STOP, actor="ann")
    assert not desk.submit(ECHO, agent_id="a-1", request_id=request_id).created


def test_an_agent_or_a_type_that_nobody_knows_is_refused(desk, running):
    with pytest.raises(AgentNotFound):
        desk.submit(ECHO, agent_id="nobody")
    assert refusal(desk, ECHO, agent_type="nothing") == ErrorCode.INVALID_REQUEST
    assert refusal(desk, ECHO) == ErrorCode.INVALID_REQUEST
    assert refusal(desk, ECHO, agent_id="a-1", agent_type="other") == ErrorCode.INVALID_REQUEST
    assert refusal(desk, ECHO, agent_id="a-1", request_id="seventeen") == ErrorCode.INVALID_REQUEST


def test_a_work_that_is_too_large_is_refused_before_anything_is_written(desk, settings, running):
    large = WorkRequest(work_type="echo", parameters={"x": "y" * settings.payload_bytes_max})
    assert refusal(desk, large, agent_id="a-1") == ErrorCode.PAYLOAD_TOO_LARGE


@pytest.mark.req("S1-23")
def test_of_many_works_and_a_stop_at_once_each_is_accepted_before_it_or_refused_after_it(desk, fleet, store, running):
    def submit(number: int) -> str:
        try:
            return str(desk.submit(ECHO, agent_id="a-1").work.request_id)
        except FleetError as error:
            return ErrorCode(error.code)

    with ThreadPoolExecutor(16) as pool:
        first = [pool.submit(submit, number) for number in range(100)]
        stop = pool.submit(fleet.command, "a-1", CommandName.STOP, actor="ann")
        rest = [pool.submit(submit, number) for number in range(100)]
        outcomes = [future.result() for future in (*first, *rest)]
        stop.result()
    accepted = {outcome for outcome in outcomes if not isinstance(outcome, ErrorCode)}
    assert set(outcomes) - accepted <= {ErrorCode.AGENT_STOPPING}
    with store.transaction(readonly=True) as tx:
        assert set(works.open_of(tx, "a-1")) == accepted
        stopped_at = tx.run("SELECT max(at) FROM agent_events WHERE after = 'stopping'")[0][0]
        late = tx.run("SELECT count(*) FROM works WHERE accepted_at > :at", at=stopped_at)[0][0]
    assert late == 0


# --- who has room for it ---------------------------------------------------------------------------------------------------------


@pytest.mark.req("S3-30")
def test_a_work_that_needs_graphics_memory_always_goes_to_the_agent_that_has_it(desk, enter):
    enter("plain", gpu_vram_available_mb=0.0)
    enter("cards", gpu_vram_available_mb=8000.0)
    wanted = ECHO.model_copy(update={"requirements": Requirements(gpu_vram_mb=4000)})
    assert {desk.submit(wanted, agent_type="echo").work.agent_id for _ in range(5)} == {"cards"}
    more = ECHO.model_copy(update={"requirements": Requirements(gpu_vram_mb=16_000)})
    assert refusal(desk, more, agent_type="echo") == ErrorCode.NO_CAPACITY
    assert refusal(desk, wanted, agent_id="plain") == ErrorCode.NO_CAPACITY


@pytest.mark.req("S3-30")
@pytest.mark.parametrize(
    "wanted, fit",
    [
        (Requirements(min_free_mem_mb=100), {"roomy"}),
        (Requirements(max_load=0.5), {"roomy"}),
        (Requirements(min_free_mem_mb=10), {"roomy", "busy"}),
        (Requirements(min_free_mem_mb=1000), set()),
    ],
)
def test_free_memory_and_load_are_judged_by_the_last_heartbeat(fleet, enter, wanted, fit):
    enter("roomy", free_mem_mb=500.0, load=0.1)
    enter("busy", free_mem_mb=50.0, load=0.9)
    enter("unknown")
    assert {agent.id for agent in fleet.list_agents() if placement.fits(agent, wanted)} == fit


def test_of_several_that_fit_the_one_with_the_least_to_do_is_chosen(running):
    busy = replace(running, spec=AgentSpec(id="busy", type="echo"), current_work=("w",), last_resources={"load": 0.0})
    calm = replace(running, spec=AgentSpec(id="calm", type="echo"), last_resources={"load": 0.2})
    loaded = replace(running, spec=AgentSpec(id="loaded", type="echo"), last_resources={"load": 0.8})
    paused = replace(running, spec=AgentSpec(id="a-paused", type="echo"), status=AgentStatus.PAUSED)
    assert placement.choose([busy, loaded, calm, paused], Requirements()) is calm
    assert placement.choose([paused], Requirements()) is None


@pytest.mark.req("DC-12")
def test_a_cleanup_forgets_no_work_whose_envelope_may_come_again(settings, store, bell, desk, running):
    request_id = desk.submit(ECHO, agent_id="a-1").work.request_id
    with store.transaction() as tx:
        works.finish(tx, request_id, WorkResult())
        tx.run("UPDATE works SET completed_at = completed_at - 5000")
    hasty = settings.model_copy(update={"idempotency_retention_s": 1.0})
    with Fleet(hasty, store=store, bell=bell) as fleet:
        fleet.prune()
        assert desk.get(request_id)
    hastier = hasty.model_copy(update={"visibility_timeout_s": 60.0})
    with Fleet(hastier, store=store, bell=bell) as fleet:
        assert fleet.prune() == 1
    with store.transaction(readonly=True) as tx:
        assert runs.resolve(tx, f"work:{request_id}"), "a run that is open stays: somebody is still at it"
    with pytest.raises(FleetError, match="kept for a limited time"):
        desk.get(request_id)


# --- waiting ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.req("DC-13", "S3-16")
def test_a_result_is_read_from_the_store_and_comes_with_the_same_request_again(desk, store, running):
    request_id = desk.submit(ECHO, agent_id="a-1").work.request_id
    with store.transaction() as tx:
        works.finish(tx, request_id, WorkResult(output={"x": 1}))
    assert desk.wait(request_id, timeout_s=1).output == {"x": 1}
    assert desk.submit(ECHO, agent_id="a-1", request_id=request_id).work.result.output == {"x": 1}


def test_a_wait_that_takes_too_long_says_so_and_the_work_goes_on(desk, running):
    request_id = desk.submit(ECHO, agent_id="a-1").work.request_id
    with pytest.raises(ResultTimeout, match="it goes on"):
        desk.wait(request_id, timeout_s=0.05)


def test_a_work_whose_run_was_ended_from_outside_has_an_error_for_a_result(desk, store, running):
    request_id = desk.submit(ECHO, agent_id="a-1").work.request_id
    with store.transaction() as tx:
        found = runs.resolve(tx, works.RUN_PREFIX + request_id)
        assert found
        runs.close_from_outside(tx, found[0], RunTerminated("no longer wanted"))
    result = desk.wait(request_id, timeout_s=5)
    assert (result.status, result.exit_code) == ("error", 1)
    assert result.error.message == "the run of the work was terminated before it had a result"


def test_a_work_that_nobody_knows_is_not_found(desk):
    with pytest.raises(FleetError) as unknown:
        desk.wait(SYSTEM.fresh_id(), timeout_s=1)
    assert unknown.value.code == ErrorCode.NOT_FOUND
