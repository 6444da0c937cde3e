"""A supervisor sees to the process behind an agent: the real workflow on a real engine; a twin stands for the workers of the agents.

The twin answers remote control as a worker would, and reports what a process does. Time in phases is real and short.
"""

from __future__ import annotations

import pytest

from orchestrator.core.restarts import RestartPolicy, next_restart_s
from orchestrator.core.supervision import Act, Limits, News, Phase, Supervised, Tidings, step
from orchestrator.errors import FleetError
from orchestrator.reports import supervision_id
from orchestrator.store import workers
from schemas.agents import AgentStatus
from schemas.messages import CommandName, CommandParams, ErrorCode
from tests.fleet.supervision.conftest import KEEPER
from workers import supervision
from workers.supervision import Place

S = AgentStatus
LIMITS = Limits(start_s=30, grace_s=5, policy=RestartPolicy(2, 300))


@pytest.mark.req("S2-25")
def test_an_agent_is_started_where_there_is_room_and_ended_in_good_order(fleet, twin, until, spec):
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    agent = until(S.RUNNING)
    fleet.command("a-1", CommandName.STOP, actor="ada")
    assert until(S.STOPPED).meta == {"exit_code": 0, "forced": False, "terminated_at": fleet.get("a-1").meta["terminated_at"]}
    assert [command for _, command in twin.calls] == ["agent_start", "agent_drain", "agent_end"]
    assert twin.calls[0][0] in {KEEPER, "worker-0"}
    assert agent.desired == "running"


@pytest.mark.req("S1-41")
def test_a_restart_drains_first_and_then_replaces_the_process(fleet, twin, until, house, spec):
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    until(S.RUNNING)
    fleet.command("a-1", CommandName.RESTART, actor="ada")
    house.until(lambda: ("a-1@here", "agent_restart") in twin.calls)
    until(S.RUNNING)
    triggers = [event.trigger for event in reversed(fleet.events("a-1")) if event.before is not None]
    assert triggers == ["start", "ready", "drain", "restarted", "ready"]


@pytest.mark.req("S1-20")
@pytest.mark.req("S2-35")
def test_what_does_not_drain_and_does_not_end_is_killed_in_the_end(fleet, twin, until, spec):
    twin.deaf = {"agent_drain", "agent_end"}
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    until(S.RUNNING)
    fleet.command("a-1", CommandName.STOP, CommandParams(drain_timeout_s=0.1), actor="ada")
    assert until(S.STOPPED, S.ERROR).meta["forced"] is True
    assert fleet.get("a-1").status is S.STOPPED
    assert [command for _, command in twin.calls][-3:] == ["agent_drain", "agent_end", "agent_kill"]


def test_a_stop_ends_even_if_nobody_answers_any_more(fleet, twin, until, spec):
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    until(S.RUNNING)
    twin.silent = {"agent_drain", "agent_end", "agent_kill"}
    fleet.command("a-1", CommandName.STOP, CommandParams(drain_timeout_s=0.1), actor="ada")
    assert until(S.STOPPED).reason == "its end could not be confirmed"


@pytest.mark.req("S0-36")
def test_a_crash_is_followed_by_a_new_start_and_a_crash_loop_ends(fleet, twin, until, house, spec):
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    until(S.RUNNING)
    for times in (1, 2):
        fleet.exited("a-1", -9)
        if times == 1:  # one restart is forgiven
            house.until(lambda: fleet.get("a-1").restarts == 1)
            until(S.RUNNING)
    handle = house.client.get_handle(supervision_id("a-1"))
    house.until(lambda: handle.query("phase") == Phase.IDLE)
    assert fleet.get("a-1").status is S.ERROR


@pytest.mark.req("S2-34")
def test_what_cannot_be_started_is_an_error_at_once_and_says_why(fleet, twin, until, spec):
    twin.refusal = "the executable 'nope' cannot be found"
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    assert until(S.ERROR).reason == "the executable 'nope' cannot be found"
    assert [command for _, command in twin.calls] == ["agent_start"]


def test_an_agent_that_is_not_ready_in_time_is_killed_and_tried_again(fleet, twin, until, house, spec):
    twin.deaf = {"ready"}
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    until(S.ERROR)
    assert "start_timeout" in fleet.get("a-1").reason or fleet.get("a-1").reason == "start_failed"
    twin.deaf = set()
    until(S.RUNNING)


def test_without_an_agent_host_a_start_says_what_is_missing(fleet, house, settings, until, spec, twin):
    lonely = settings.model_copy(update={"fleet_queue": "elsewhere"})
    supervision._PLACE[:] = [Place(fleet, twin, lonely)]
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    assert "no agent host is there" in until(S.ERROR).reason


@pytest.mark.req("DC-16")
def test_pause_and_resume_are_carried_out_and_answered(fleet, twin, until, spec):
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    until(S.RUNNING)
    assert fleet.command("a-1", CommandName.PAUSE, actor="ada").result["state"] == "paused"
    assert fleet.command("a-1", CommandName.PAUSE, actor="ada").result == {"state": "paused", "changed": False}
    assert fleet.command("a-1", CommandName.RESUME, actor="ada").result["state"] == "running"


@pytest.mark.req("DC-19")
def test_a_host_that_does_not_answer_fails_the_command_and_leaves_the_state(fleet, twin, until, spec):
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    until(S.RUNNING)
    twin.silent = {"agent_pause"}
    with pytest.raises(FleetError, match="did not answer") as refused:
        fleet.command("a-1", CommandName.PAUSE, actor="ada")
    assert (refused.value.code, fleet.get("a-1").status) == (ErrorCode.RC_TIMEOUT, S.RUNNING)


@pytest.mark.req("S2-22")
def test_a_removed_agent_and_its_supervisor_are_gone(fleet, twin, until, house, spec):
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    until(S.RUNNING)
    fleet.remove("a-1", actor="ada")
    house.until(lambda: fleet.find("a-1") is None)
    house.client.get_handle(supervision_id("a-1")).result(timeout=10)


@pytest.mark.req("S1-15")
@pytest.mark.req("S1-17")
def test_a_service_that_came_by_itself_gets_a_worker_and_another_one_when_that_is_gone(fleet, twin, house):
    fleet.register_service("planner", "http://127.0.0.1:8100")
    house.until(lambda: fleet.get("planner").node)
    with house.store.transaction() as tx:
        workers.remove(tx, "w")
        tx.run("UPDATE agents SET node = 'host@here'")
    fleet.recover()
    house.until(lambda: fleet.get("planner").node == "worker-0")
    assert fleet.get("planner").status is S.RUNNING
    assert [command for _, command in twin.calls] == ["agent_attach"] * 2


@pytest.mark.req("DC-18")
def test_agents_that_went_with_their_host_come_back_with_the_next_one_as_they_were_wanted(fleet, twin, until, house, spec):
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    until(S.RUNNING)
    house.until(lambda: fleet.get("a-1").keeper)
    fleet.command("a-1", CommandName.PAUSE, actor="ada")
    fleet.leaving("a-1")
    fleet.exited("a-1", 0)
    assert fleet.get("a-1").status is S.STOPPED
    assert fleet.revive() == 1
    assert until(S.PAUSED).desired == "paused"


def test_agents_that_no_host_could_start_are_started_when_there_is_one(fleet, house, settings, until, spec, twin):
    supervision._PLACE[:] = [Place(fleet, twin, settings.model_copy(update={"fleet_queue": "elsewhere"}))]
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    until(S.ERROR)
    supervision._PLACE[:] = [Place(fleet, twin, settings)]
    assert fleet.revive() == 1
    until(S.RUNNING)


def test_an_agent_that_was_stopped_stays_so(fleet, twin, until, spec):
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    until(S.RUNNING)
    fleet.command("a-1", CommandName.STOP, actor="ada")
    until(S.STOPPED)
    assert fleet.revive() == 0


# --- the table by itself ---------------------------------------------------------------------------------------------------------


def test_old_news_change_nothing():
    assert step(Supervised(), Tidings(News.DRAINED), now=0.0, limits=LIMITS) == (Supervised(), ())


def test_a_stop_during_a_restart_wins():
    state, _ = step(Supervised(), Tidings(News.RESTART, drain_s=9), now=0.0, limits=LIMITS)
    state, _ = step(state, Tidings(News.STOP, drain_s=9), now=1.0, limits=LIMITS)
    state, acts = step(state, Tidings(News.DRAINED), now=2.0, limits=LIMITS)
    assert (state.phase, acts) == (Phase.ENDING, (Act.END,))


def test_every_wait_has_a_deadline():
    state = Supervised()
    for news in (News.START, News.READY, News.STOP, News.DRAINED, News.LATE):
        state, _ = step(state, Tidings(news, drain_s=9), now=0.0, limits=LIMITS)
        assert (state.deadline_at is None) == (state.phase is Phase.IDLE), state


def test_pauses_between_restarts_grow_and_end():
    policy = RestartPolicy(5, 300)
    crashes = [float(at) for at in range(6)]
    assert [next_restart_s(crashes[: n + 1], now=6.0, policy=policy) for n in range(6)] == [1.0, 2.0, 4.0, 8.0, 16.0, None]
    assert next_restart_s(crashes, now=400.0, policy=policy) == 1.0
