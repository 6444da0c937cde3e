"""Heartbeats, summaries and what their absence means."""

from __future__ import annotations

import pytest

from orchestrator.fleet import Fleet
from schemas.agents import AgentSpec, AgentStatus, DesiredState, Health, Heartbeat
from schemas.messages import CommandName

S = AgentStatus


def age(store, seconds, *, column="last_heartbeat_at"):
    with store.transaction() as tx:
        tx.run(f"UPDATE agent_vitals SET {column} = {column} - :seconds", seconds=float(seconds))


@pytest.mark.req("S1-16")
def test_a_heartbeat_is_kept_and_shown(fleet, running):
    fleet.record_heartbeats([Heartbeat("a-1", 0.0, 1, "running", ("r-1",), {"cpu": 0.03}, {"cpu_percent": 3.0})])
    agent = fleet.get("a-1")
    assert (agent.health, agent.current_work, agent.last_metrics["cpu"]) == (Health.HEALTHY, ("r-1",), 0.03)
    assert [beat.resources for beat in fleet.heartbeats("a-1")] == [{"cpu_percent": 3.0}]


@pytest.mark.req("S0-05")
@pytest.mark.parametrize("shown", [False, True])
def test_heartbeats_are_on_the_console_only_if_somebody_wants_to_see_them(settings, store, bell, running, caplog, shown):
    caplog.set_level("INFO")
    with Fleet(settings.model_copy(update={"console_heartbeats": shown}), store=store, bell=bell) as fleet:
        fleet.record_heartbeats([Heartbeat("a-1", 0.0, 1, "running")])
        assert fleet.get("a-1").last_heartbeat_at is not None
    assert ("heartbeat of agent a-1: running" in caplog.text) is shown


def test_a_heartbeat_of_somebody_unknown_is_left_out(fleet, running):
    fleet.record_heartbeats([Heartbeat("nobody", 0.0), Heartbeat("a-1", 0.0)])
    assert fleet.get("a-1").last_heartbeat_at


@pytest.mark.req("S1-32")
@pytest.mark.req("S2-36")
def test_silence_first_unregisters_then_makes_inactive_and_a_heartbeat_heals_both(fleet, running, store):
    fleet.record_heartbeats([Heartbeat("a-1", 0.0)])
    claim_lease(store)
    age(store, 31)
    assert fleet.monitor(beat_up_s=1000) == 1
    assert (fleet.get("a-1").status, fleet.get("a-1").registered) == (S.RUNNING, False)
    fleet.record_heartbeats([Heartbeat("a-1", 0.0)])
    assert fleet.get("a-1").registered
    age(store, 61)
    fleet.monitor(beat_up_s=1000)
    agent = fleet.get("a-1")
    assert (agent.status, "last_seen" in agent.meta) == (S.INACTIVE, True)
    assert fleet.record_heartbeats([Heartbeat("a-1", 0.0)]) == ["a-1"]
    assert (fleet.get("a-1").status, fleet.get("a-1").registered) == (S.RUNNING, True)


@pytest.mark.req("DC-34")
def test_nobody_is_called_silent_for_a_silence_in_which_nobody_asked(fleet, running, store):
    fleet.record_heartbeats([Heartbeat("a-1", 0.0)])
    claim_lease(store)
    age(store, 1000)
    fleet.monitor(beat_up_s=5)
    assert fleet.get("a-1").status is S.RUNNING


@pytest.mark.req("S1-21")
@pytest.mark.req("S2-48")
def test_what_is_older_than_its_retention_is_forgotten_and_what_is_younger_is_kept(fleet, running, store):
    assert fleet.settings.cleanup_interval_s == 3600
    fleet.record_heartbeats([Heartbeat("a-1", 0.0, 1)])
    with store.transaction() as tx:
        tx.run("UPDATE heartbeats SET at = at - :day", day=fleet.settings.heartbeat_retention_s + 60)
    fleet.record_heartbeats([Heartbeat("a-1", 0.0, 2)])
    assert fleet.prune() == 1
    assert [beat.seq for beat in fleet.heartbeats("a-1")] == [2]
    assert fleet.prune() == 0


def test_a_draining_agent_is_listed_however_silent_it_is(fleet, running, store):
    fleet.record_heartbeats([Heartbeat("a-1", 0.0)])
    claim_lease(store)
    fleet.command("a-1", CommandName.STOP, actor="ada")
    age(store, 1000)
    fleet.monitor(beat_up_s=1000)
    assert (fleet.get("a-1").status, fleet.get("a-1").registered) == (S.STOPPING, True)


def test_an_agent_whose_worker_is_gone_has_crashed(fleet, running):
    assert fleet.recover() == 1
    assert (fleet.get("a-1").status, fleet.get("a-1").reason) == (S.ERROR, "its worker is gone")


@pytest.mark.req("S0-03")
def test_a_summary_is_kept_as_its_agent_wrote_it(fleet, running):
    document = '{"zeta": 1, "alpha": [1.50, "ä"],\t"extra": null}'
    fleet.add_summary("a-1", document, start=1.0, end=2.0, count=2)
    assert [one.document for one in fleet.summaries("a-1")] == [document]


@pytest.mark.req("S0-37")
def test_a_summary_that_is_owed_makes_an_agent_degraded_until_it_comes(fleet, running, store):
    fleet.record_heartbeats([Heartbeat("a-1", 0.0)])
    claim_lease(store)
    fleet.flush_asked(["a-1"])
    age(store, 11, column="last_flush_at")
    for _ in range(2):  # it is said once
        fleet.monitor(beat_up_s=1000)
    agent = fleet.get("a-1")
    assert (agent.health, agent.flush_timeouts) == (Health.DEGRADED, 1)
    fleet.add_summary("a-1", "{}")
    assert fleet.get("a-1").health is Health.HEALTHY


@pytest.mark.req("S1-15")
@pytest.mark.req("S1-31")
def test_a_service_that_registers_twice_is_one_agent_and_runs(fleet):
    for _ in range(2):
        agent = fleet.register_service("planner", "http://127.0.0.1:8100", {"name": "Planner"})
    assert (agent.status, agent.service_url, agent.spec.name) == (S.RUNNING, "http://127.0.0.1:8100", "Planner")
    assert agent.registered_at is not None
    assert [one.id for one in fleet.list_agents()] == ["planner"]


def test_agents_found_in_files_are_entered_once_and_follow_their_file(fleet):
    first = AgentSpec(id="a-1", type="echo")
    assert [agent.id for agent in fleet.adopt([first, AgentSpec(id="a-2", type="echo", enabled=False)])] == ["a-1"]
    fleet.adopt([first.model_copy(update={"name": "Renamed"})])
    assert (fleet.get("a-1").spec.name, fleet.get("a-2").desired) == ("Renamed", DesiredState.STOPPED)


def claim_lease(store):
    """The worker of the agent is alive."""
    with store.transaction() as tx:
        tx.run(
            "INSERT INTO workers (worker_id, node, host, boot_id, pid, pid_started_at, queues, build, expires_at, stopping)"
            " VALUES ('w', 'a-1@here', 'here', '', 1, 0, '[]', '', {now} + 1000, false)"
        )
