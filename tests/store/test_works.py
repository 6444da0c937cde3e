"""Works as rows: accepted once, done once; on each database."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.core.fencing import Process
from orchestrator.store import agents, runs, works
from schemas.agents import AgentSpec, DesiredState, Work
from schemas.messages import WorkError, WorkResult


def new(**fields) -> Work:
    return Work(**{"request_id": SYSTEM.fresh_id(), "agent_type": "echo", "fingerprint": "f", "trace_id": SYSTEM.fresh_id(), **fields})


@pytest.fixture
def asked(desk) -> Work:
    """A work that was accepted, with its open run."""
    work = new(agent_id="e-1", work_type="echo", actor="ann")
    desk.start(works.RUN_PREFIX + work.request_id)
    assert desk.ask(works.add, work)
    return work


def test_a_work_is_read_as_it_was_accepted(desk, asked):
    found = desk.ask(works.get, asked.request_id)
    assert found.accepted_at > 0
    assert found == replace(asked, accepted_at=found.accepted_at)


@pytest.mark.req("DC-11")
def test_a_request_id_is_accepted_once(desk, asked):
    assert not desk.ask(works.add, new(request_id=asked.request_id, agent_type="other"))
    assert desk.ask(works.get, asked.request_id).agent_type == "echo"


@pytest.mark.req("S3-15", "DC-09")
def test_the_first_result_is_the_result_however_often_it_was_begun(desk, asked):
    assert [desk.ask(works.begin, asked.request_id, by) for by in ("e-1", "e-2")] == [1, 2]
    first = WorkResult(output={"x": 1})
    assert desk.ask(works.finish, asked.request_id, first) == first
    assert desk.ask(works.finish, asked.request_id, WorkResult(status="error", exit_code=1)) == first
    found = desk.ask(works.get, asked.request_id)
    assert (found.executions, found.executed_by, found.result) == (2, "e-2", first)
    assert found.started_at <= found.completed_at


@pytest.mark.req("S3-15")
def test_a_work_is_begun_by_the_process_that_the_row_of_the_agent_names_and_by_no_former_one(desk, asked):
    desk.ask(agents.add, AgentSpec(id="e-1", type="echo"), desired=DesiredState.RUNNING, discovery="test")
    desk.ask(agents.place, "e-1", keeper="", node="e-1@here", pid=7, pid_started_at=1000.0)
    former = [Process("e-1@here", 6, 1000.0), Process("e-1@here", 7, 990.0), Process("e-1@there", 7, 1000.0), Process("e-1@there", 0, 0.0)]
    assert [desk.ask(works.begin, asked.request_id, "e-1", process) for process in former] == [0, 0, 0, 0]
    assert desk.ask(works.get, asked.request_id).executions == 0
    assert desk.ask(works.begin, asked.request_id, "e-1", Process("e-1@here", 7, 1000.2)) == 1
    assert desk.ask(works.begin, asked.request_id, "e-1", Process("e-1@here", 0, 0.0)) == 2, "a service, which its node speaks for"
    desk.ask(agents.place, "e-1", keeper="", node="", pid=0, pid_started_at=0.0)
    assert desk.ask(works.begin, asked.request_id, "e-1", Process("e-1@here", 7, 1000.0)) == 0, "it was given up"
    assert desk.ask(works.begin, asked.request_id, "gone", Process("e-1@here", 7, 1000.0)) == 0


def test_a_work_that_is_done_is_not_begun(desk, asked):
    desk.ask(works.finish, asked.request_id, WorkResult())
    assert desk.ask(works.begin, asked.request_id, "e-1") == 0


def test_a_work_that_nobody_knows_is_no_obstacle(desk):
    unknown = SYSTEM.fresh_id()
    result = WorkResult(status="error", exit_code=1, error=WorkError(code="x", message="y"))
    assert desk.ask(works.get, unknown) is None
    assert desk.ask(works.begin, unknown, "e-1") == 0
    assert desk.ask(works.finish, unknown, result) == result


def test_many_who_accept_or_finish_one_work_at_once_agree(store, desk):
    work = new()

    def add(number: int) -> bool:
        with store.transaction() as tx:
            return works.add(tx, work)

    def finish(number: int) -> WorkResult:
        with store.transaction() as tx:
            return works.finish(tx, work.request_id, WorkResult(output=number))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(add, range(8))) == 1
        assert len({result.output for result in pool.map(finish, range(8))}) == 1


def test_open_works_of_an_agent_are_those_with_an_open_run_and_no_result(desk, asked):
    desk.ask(works.add, new(agent_id="e-2"))
    lost = new(agent_id="e-1")  # whoever ended its run from outside left no result
    desk.ask(works.add, lost)
    assert desk.ask(works.open_of, "e-1") == [asked.request_id]
    desk.ask(works.finish, asked.request_id, WorkResult())
    assert desk.ask(works.open_of, "e-1") == []


@pytest.mark.req("DC-12")
def test_works_are_forgotten_only_when_they_have_been_done_for_long_enough(desk, asked):
    done, lost = new(), new()
    for work in (done, lost):
        desk.ask(works.add, work)
    desk.ask(works.finish, done.request_id, WorkResult())
    assert desk.ask(works.prune, 3600.0, batch_max=100) == 0
    run = desk.running(workflow_id=f"work:{done.request_id}")
    assert not desk.commit(desk.closing(run, number=2))
    assert desk.ask(works.prune, 0.0, batch_max=100) == 2
    assert [desk.ask(runs.resolve, f"work:{work.request_id}") is None for work in (done, asked)] == [True, False], "and its run with it"
    assert desk.ask(works.get, asked.request_id), "its run is open: it is still to be done"
    assert desk.ask(works.get, done.request_id) is None
