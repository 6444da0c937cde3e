"""Of two processes that take themselves for one agent the row says which one counts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.core.fencing import Process, Standing, kept, standing
from schemas.agents import Agent, AgentSpec, AgentStatus, DesiredState

HERE = Process("a-1@here", 100, 1000.0)
AGENT = Agent(
    spec=AgentSpec(id="a-1", type="echo"),
    status=AgentStatus.RUNNING,
    desired=DesiredState.RUNNING,
    version=1,
    registered=True,
    node="a-1@here",
    pid=100,
    pid_started_at=1000.0,
)


@pytest.mark.parametrize("status", AgentStatus)
def test_a_process_that_the_row_names_is_the_agent_in_every_state(status):
    agent = replace(AGENT, status=status)
    assert standing(agent, HERE) is Standing.CURRENT
    assert kept(agent, HERE)


@pytest.mark.parametrize(
    "other",
    [{"pid": 101}, {"pid_started_at": 1001.5}, {"pid_started_at": None}, {"node": "a-1@there"}],
    ids=["pid", "a number given again", "no start", "node"],
)
def test_a_process_that_the_row_does_not_name_is_superseded(other):
    assert standing(replace(AGENT, **other), HERE) is Standing.SUPERSEDED


def test_start_times_are_the_same_if_the_kernel_has_rounded_them():
    assert standing(replace(AGENT, pid_started_at=1000.4), HERE) is Standing.CURRENT


@pytest.mark.parametrize("pid", [0, None])
@pytest.mark.parametrize("desired", DesiredState)
@pytest.mark.parametrize("status", AgentStatus)
def test_a_process_that_was_given_up_comes_back_only_where_nobody_has_decided_otherwise(status, desired, pid):
    may = status in {AgentStatus.ERROR, AgentStatus.INACTIVE} and desired is not DesiredState.STOPPED
    found = standing(replace(AGENT, status=status, desired=desired, pid=pid, pid_started_at=None), HERE)
    assert found is (Standing.GIVEN_UP if may else Standing.SUPERSEDED)


def test_a_host_keeps_what_may_yet_become_ready_and_nothing_that_was_given_up_or_replaced_or_removed():
    gone = replace(AGENT, pid=0, pid_started_at=None)
    assert kept(replace(gone, status=AgentStatus.STARTING), HERE)
    assert kept(replace(AGENT, status=AgentStatus.STARTING, pid=101), HERE), "a successor that is not noted yet"
    assert not kept(replace(gone, status=AgentStatus.ERROR), HERE)
    assert not kept(replace(AGENT, pid=101), HERE)
    assert not kept(None, HERE)
    assert standing(None, HERE) is Standing.SUPERSEDED
