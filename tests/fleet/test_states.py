"""Where agents stand: decided in one place, at once, and told to their supervisors in the same transaction."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.core.machines import AGENT, ORDERS, Trigger, after, order
from orchestrator.core.supervision import News
from orchestrator.errors import AgentNotFound, FleetError, IllegalTransition
from orchestrator.store import vitals
from schemas.agents import AgentSpec, AgentStatus, DesiredState
from schemas.messages import CommandName, CommandParams, ErrorCode

S = AgentStatus


@pytest.mark.req("S2-19")
def test_an_added_agent_stands_still_and_its_id_is_taken(fleet, spec):
    assert fleet.add(spec).status is S.STOPPED
    with pytest.raises(FleetError, match="already") as refused:
        fleet.add(spec)
    assert refused.value.code is ErrorCode.AGENT_EXISTS


@pytest.mark.req("S2-23")
def test_start_leads_over_starting_to_running_and_the_supervisor_hears_of_both(fleet, spec, told, bell):
    fleet.add(spec)
    answer = fleet.command("a-1", CommandName.START, actor="ada")
    assert (answer.result["state"], fleet.get("a-1").desired) == ("starting", DesiredState.RUNNING)
    assert fleet.ready(spec, node="n", pid=1, pid_started_at=1.0, capabilities={}).status is S.RUNNING
    assert [one.news for one in told("a-1")] == [News.START, News.READY]
    assert set(bell.rung) == {"fleet"}
    with pytest.raises(IllegalTransition, match="running cannot start"):
        fleet.command("a-1", CommandName.START, actor="ada")


def test_a_process_has_one_start_whoever_speaks_of_it_first(fleet, spec):
    fleet.add(spec)
    fleet.command("a-1", CommandName.START, actor="ada")
    began = fleet.ready(spec, node="n", pid=1, pid_started_at=1.0, capabilities={}).started_at
    for pid, same in ((1, True), (2, False)):
        fleet.launched("a-1", keeper="host@here", node="n", pid=pid, pid_started_at=1.0)
        assert (fleet.get("a-1").started_at == began) is same


@pytest.mark.req("S2-24")
@pytest.mark.req("S2-11")
def test_what_holds_already_changes_nothing_and_is_no_error(fleet, spec, told):
    fleet.add(spec)
    answer = fleet.command("a-1", CommandName.STOP, actor="ada")
    assert answer.result == {"state": "stopped", "changed": False}
    assert told("a-1") == []
    assert [event.trigger for event in fleet.events("a-1")] == ["added"]


@pytest.mark.req("S2-11")
def test_an_unknown_agent_is_an_error_that_names_it(fleet):
    with pytest.raises(AgentNotFound, match="'nobody'"):
        fleet.command("nobody", CommandName.STOP, actor="ada")


@pytest.mark.req("S1-39")
@pytest.mark.parametrize("asked, own, expected", [(3.0, 7.0, 3.0), (None, 7.0, 7.0), (None, None, 30.0)])
def test_the_drain_takes_as_long_as_the_command_the_agent_or_the_settings_say(fleet, told, store, asked, own, expected):
    fleet.ready(AgentSpec(id="a-1", type="echo", drain_timeout_s=own), node="n", pid=1, pid_started_at=1.0, capabilities={})
    fleet.command("a-1", CommandName.STOP, CommandParams(drain_timeout_s=asked), actor="ada")
    agent = fleet.get("a-1")
    with store.transaction(readonly=True) as tx:
        assert agent.drain_deadline_at == pytest.approx(tx.now() + expected, abs=5)
    assert (agent.status, agent.desired, told("a-1")[-1].drain_s) == (S.STOPPING, DesiredState.STOPPED, expected)


@pytest.mark.req("DC-19")
def test_a_command_that_nobody_carries_out_fails_in_time_changes_nothing_and_stays_undone(fleet, running, store):
    with pytest.raises(FleetError, match="nobody has carried out pause") as late:
        fleet.command("a-1", CommandName.PAUSE, actor="ada")
    assert late.value.code is ErrorCode.RC_TIMEOUT
    assert fleet.get("a-1").status is S.RUNNING
    command = fleet.commands("a-1")[0]
    assert (command.state, command.actor) == ("expired", "ada")
    assert fleet.begin_command(command.id) is None


@pytest.mark.req("DC-16")
def test_a_command_that_was_carried_out_tells_its_caller_and_is_what_the_operator_wants_from_now_on(fleet, running, settings, store, bell):
    patient = type(fleet)(settings.model_copy(update={"remote_control_s": 10.0}), store=store, bell=bell)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(patient.command, "a-1", CommandName.PAUSE, actor="ada")
        command = next(found for found in iter(lambda: next(iter(fleet.commands("a-1")), None), ()) if found)
        assert fleet.begin_command(command.id) is not None
        fleet.end_command(command, Trigger.PAUSED, {"queues": ["work.echo"]})
        assert answer.result(10).result == {"state": "paused", "changed": True, "queues": ["work.echo"]}
    assert (fleet.get("a-1").status, fleet.get("a-1").desired) == (S.PAUSED, DesiredState.PAUSED)


@pytest.mark.req("DC-18")
def test_a_paused_agent_that_comes_back_is_paused(fleet, running, spec, store):
    with store.transaction() as tx:
        tx.run("UPDATE agents SET status = 'paused', desired = 'paused'")
    fleet.exited("a-1", -9)
    assert fleet.get("a-1").status is S.ERROR
    assert fleet.ready(spec, node="n", pid=2, pid_started_at=2.0, capabilities={}).status is S.PAUSED


@pytest.mark.req("S2-38")
@pytest.mark.parametrize(
    "command, code, expected, news",
    [
        (None, 3, S.ERROR, News.CRASHED),
        (None, 0, S.STOPPED, News.GONE),
        (CommandName.STOP, 0, S.STOPPED, News.GONE),
        (CommandName.STOP, 3, S.ERROR, News.CRASHED),
        (CommandName.STOP, None, S.ERROR, News.CRASHED),
        (CommandName.RESTART, 0, S.STOPPING, News.GONE),
        (CommandName.RESTART, -11, S.ERROR, News.CRASHED),
    ],
)
def test_what_the_end_of_a_process_means_depends_on_what_was_asked_of_it(fleet, running, told, command, code, expected, news):
    if command is not None:
        fleet.command("a-1", command, actor="ada")
    fleet.exited("a-1", code, pid=4711)
    agent = fleet.get("a-1")
    assert (agent.status, told("a-1")[-1].news) == (expected, news)
    if expected is not S.STOPPING:
        assert (agent.registered, agent.meta["exit_code"]) == (False, code)


@pytest.mark.req("S1-43")
def test_a_crash_during_the_drain_is_noticed_and_said(fleet, running):
    fleet.command("a-1", CommandName.STOP, actor="ada")
    fleet.exited("a-1", -9)
    assert (fleet.get("a-1").status, fleet.get("a-1").reason, fleet.get("a-1").registered) == (S.ERROR, "crashed_during_drain", False)


def test_an_end_that_was_forced_is_no_crash(fleet, running):
    fleet.command("a-1", CommandName.STOP, actor="ada")
    assert fleet.ending("a-1", forced=True)
    fleet.exited("a-1", -9)
    assert (fleet.get("a-1").status, fleet.get("a-1").meta["forced"]) == (S.STOPPED, True)


@pytest.mark.req("S1-41")
def test_a_restart_that_fails_says_so(fleet, running):
    fleet.command("a-1", CommandName.RESTART, actor="ada")
    fleet.ending("a-1", forced=False)
    fleet.exited("a-1", 1)
    assert (fleet.get("a-1").status, fleet.get("a-1").reason) == (S.ERROR, "restart_failed")


def test_the_end_of_a_former_process_changes_nothing(fleet, running):
    fleet.exited("a-1", -9, pid=1)
    assert fleet.get("a-1").status is S.RUNNING


@pytest.mark.req("S2-22")
def test_a_running_agent_is_drained_before_it_is_forgotten(fleet, running, told):
    assert fleet.remove("a-1", actor="ada").result["state"] == "stopping"
    assert told("a-1")[-1].forget
    fleet.exited("a-1", 0)
    fleet.forget("a-1")
    with pytest.raises(AgentNotFound):
        fleet.get("a-1")
    assert fleet.events("a-1")[0].trigger == "removed"


@pytest.mark.req("S2-21")
def test_a_change_that_read_an_old_version_is_refused(fleet, running):
    changed = fleet.update("a-1", {"name": "First"}, version=running.version)
    with pytest.raises(FleetError, match="has changed meanwhile") as refused:
        fleet.update("a-1", {"name": "Second"}, version=running.version)
    assert (changed.spec.name, refused.value.code) == ("First", ErrorCode.VERSION_CONFLICT)


def test_of_two_opposite_orders_at_once_one_comes_first_and_both_are_told_the_truth(fleet, running, told):
    def give(command):
        try:
            return fleet.command("a-1", command, actor=command.value).result["state"]
        except IllegalTransition as error:
            return str(error.code)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(give, [CommandName.STOP, CommandName.RESTART] * 4))
    changes = [event for event in fleet.events("a-1") if event.trigger == "drain"]
    assert len(changes) == 1
    assert set(answers) <= {"stopping", "invalid_transition"}


def test_every_state_can_be_left_and_no_table_names_what_does_not_exist():
    assert set(AGENT) == set(AgentStatus)
    assert all(AGENT[status] for status in AgentStatus)
    for command, table in ORDERS.items():
        for status, trigger in table.items():
            assert trigger is None or trigger in AGENT[status], f"{command} of an agent that is {status}"
    with pytest.raises(IllegalTransition, match="an agent that is stopped cannot be paused"):
        after(S.STOPPED, Trigger.PAUSED)
    with pytest.raises(IllegalTransition, match="an agent that is paused cannot start"):
        order(S.PAUSED, CommandName.START)


@pytest.mark.req("S0-36")
def test_a_command_is_begun_by_one_and_ended_once(fleet, running, store):
    with pytest.raises(FleetError):
        fleet.command("a-1", CommandName.FLUSH, actor="ada")
    with store.transaction() as tx:
        assert not vitals.end_command(tx, fleet.commands("a-1")[0].id, {})
