"""A rolling restart: never more than so many away at once, each healthy before the next, and none after the first that is not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator import rolling_restarts
from orchestrator.client import Client
from orchestrator.core.rolling import STANDING, Gate, Plan, Progress, judge
from orchestrator.errors import FleetError, WorkflowAlreadyStarted
from schemas.agents import Agent, AgentSpec, AgentStatus, DesiredState, Health
from schemas.messages import CommandName, ErrorCode
from schemas.runs import Status
from workers.rolling_restart import RollingRestart

S = AgentStatus
AGENT = Agent(AgentSpec(id="a", type="echo"), S.RUNNING, DesiredState.RUNNING, 1, started_at=20.0, health=Health.HEALTHY)


def test_every_state_says_whether_to_go_on():
    assert set(STANDING) == set(AgentStatus)
    assert RollingRestart().progress() == Progress()


@pytest.mark.parametrize(
    "agent, gate",
    [
        (AGENT, Gate.WELL),
        (replace(AGENT, status=S.PAUSED, desired=DesiredState.PAUSED), Gate.WELL),
        (replace(AGENT, health=Health.UNKNOWN), Gate.WELL),
        (replace(AGENT, started_at=10.0), Gate.AWAIT),
        (replace(AGENT, started_at=None), Gate.AWAIT),
        (replace(AGENT, health=Health.DEGRADED), Gate.AWAIT),
        (replace(AGENT, status=S.STOPPING), Gate.AWAIT),
        (replace(AGENT, status=S.STARTING), Gate.AWAIT),
        (replace(AGENT, status=S.ERROR), Gate.FAILED),
        (replace(AGENT, status=S.INACTIVE), Gate.FAILED),
        (replace(AGENT, status=S.STOPPED, desired=DesiredState.STOPPED), Gate.LEFT),
        (None, Gate.LEFT),
    ],
)
def test_an_agent_is_well_again_when_it_is_new_and_runs_and_is_healthy(agent, gate):
    assert judge(agent, since=15.0)[0] is gate


def test_nobody_is_taken_after_one_that_failed():
    progress = Progress(waiting=["a", "b", "c", "d"])
    assert [progress.begin(), progress.begin()] == ["a", "b"]
    progress.end("a", Gate.WELL, "")
    assert progress.begin() == "c"
    progress.end("b", Gate.FAILED, "it is error")
    progress.end("c", Gate.LEFT, "somebody has stopped it")
    assert progress.begin() is None
    assert progress == Progress(["d"], [], ["a"], {"c": "somebody has stopped it"}, {"b": "it is error"})


@pytest.fixture
def client(house, settings):
    with Client(settings=settings, store=house.store, bell=house) as client:
        yield client


@pytest.fixture
def five(fleet, twin, until):
    """Five agents of one type that run, one of another, one that stands still."""
    for name in ("e-1", "e-2", "e-3", "e-4", "e-5", "still", "other"):
        fleet.add(AgentSpec(id=name, type="mail" if name == "other" else "echo", drain_timeout_s=0.2))
        if name != "still":
            fleet.command(name, CommandName.START, actor="ada")
            until(S.RUNNING, agent_id=name)
    twin.calls.clear()
    return ["e-1", "e-2", "e-3", "e-4", "e-5"]


@pytest.fixture
def roll(house, fleet, client):
    """Restart a type and wait for the end."""

    def go(**options):
        handle = rolling_restarts.start(fleet, client, Plan("echo", "ada", **options))
        house.until(lambda: handle.describe().status is not Status.RUNNING)
        return rolling_restarts.look(fleet, client, "echo", timeout_s=5)

    return go


def test_all_that_run_are_restarted_one_after_the_other_and_nobody_else(fleet, twin, five, roll):
    before = {agent.id: agent.started_at for agent in fleet.list_agents()}
    state = roll()
    assert (state.status, state.progress.restarted, state.progress.waiting) == (Status.COMPLETED, five, [])
    assert state.progress.left == {"still": "it was stopped from the start"}
    after = {agent.id: agent.started_at for agent in fleet.list_agents()}
    assert [name for name in before if before[name] != after[name]] == five
    assert fleet.get("still").status is S.STOPPED
    told = [node for node, command in twin.calls if command in {"agent_drain", "agent_health"}]
    assert told == [f"{name}@here" for name in five for _ in range(2)], "each is healthy before the next drains"
    assert "rolling restart of echo by ada" in {event.reason for event in fleet.events("e-1")}


def test_no_more_are_away_at_once_than_was_said(fleet, twin, five, roll):
    away: list[int] = []
    plain = twin.node

    def counting(node, command, arguments):
        if command == "agent_restart":
            away.append(sum(agent.status in {S.STOPPING, S.STARTING} for agent in fleet.list_agents()))
        return plain(node, command, arguments)

    twin.node = counting
    roll(at_a_time=2)
    assert len(away) == 5
    assert max(away) <= 2


def test_it_stops_at_the_first_that_does_not_come_back_and_says_so(fleet, twin, five, roll):
    plain = twin.node

    def failing(node, command, arguments):
        if (node, command) == ("e-2@here", "agent_restart"):
            fleet.exited("e-2", 1)
            return {}
        return plain(node, command, arguments)

    twin.node = failing
    twin.refusal = "no such program"
    state = roll()
    progress = state.progress
    assert (progress.restarted, list(progress.failed), progress.waiting) == (["e-1"], ["e-2"], ["e-3", "e-4", "e-5"])
    assert state.reason.startswith("e-2: it is error")
    assert state.status is Status.FAILED
    assert [fleet.get(name).status for name in five] == [S.RUNNING, S.ERROR, S.RUNNING, S.RUNNING, S.RUNNING]


def test_one_that_runs_but_does_not_answer_or_is_not_healthy_is_no_success(twin, five, roll):
    twin.silent = {"agent_health"}
    state = roll(healthy_within_s=0.3)
    assert (state.progress.restarted, list(state.progress.failed), state.progress.waiting) == ([], ["e-1"], five[1:])
    assert "not healthy within 0.3 s: worker e-1@here did not answer" in state.reason


def test_one_that_has_left_the_fleet_meanwhile_is_no_failure(fleet, twin, five, until, roll):
    plain = twin.node

    def leaving(node, command, arguments):
        if (node, command) == ("e-1@here", "agent_health"):
            fleet.command("e-2", CommandName.STOP, actor="ada")
            until(S.STOPPED, agent_id="e-2")
        return plain(node, command, arguments)

    twin.node = leaving
    progress = roll().progress
    assert progress.left["e-2"] == "somebody has stopped it"
    assert progress.restarted == ["e-1", "e-3", "e-4", "e-5"]


def test_what_makes_no_sense_is_refused_and_says_why(fleet, client, twin, five, house):
    with pytest.raises(FleetError, match="there is no agent of type 'nope'; there are echo, mail") as unknown:
        rolling_restarts.start(fleet, client, Plan("nope", "ada"))
    assert unknown.value.code is ErrorCode.NOT_FOUND
    with pytest.raises(FleetError, match="have had no rolling restart"):
        rolling_restarts.look(fleet, client, "echo", timeout_s=1)
    twin.silent = {"agent_health"}
    handle = rolling_restarts.start(fleet, client, Plan("echo", "ada"))
    with pytest.raises(WorkflowAlreadyStarted):
        rolling_restarts.start(fleet, client, Plan("echo", "ada"))
    handle.cancel()
    house.until(lambda: handle.describe().status is Status.CANCELED)
    fleet.add(AgentSpec(id="b", type="idle"))
    with pytest.raises(FleetError, match="no agent of type 'idle' runs"):
        rolling_restarts.start(fleet, client, Plan("idle", "ada"))
