"""Agents over HTTP: entered, shown, changed, told, removed; each with its documented status, and audited once."""

from __future__ import annotations

import pytest

from orchestrator.core.machines import Trigger
from orchestrator.fleet import Fleet
from orchestrator.store import control
from schemas.access import Role
from schemas.agents import AgentSpec, Heartbeat
from schemas.messages import CommandResponse

AGENTS = "/api/v1/agents"
SPEC = {"id": "a-1", "type": "echo", "name": "First", "metadata": {"team": "x"}}


@pytest.fixture
def fleet(api):
    return api.app.state.services.fleet


def running(fleet: Fleet, agent_id="a-1", **spec):
    """An agent whose host has said that it is there."""
    return fleet.ready(
        AgentSpec(**{"id": agent_id, "type": "echo", **spec}), node="w@test", pid=1, pid_started_at=1.0, capabilities={"echo": "1"}
    )


def refused(answer, status, code):
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    response = CommandResponse.model_validate({**answer.json(), "result": {}})
    assert response.status == "error"
    assert answer.json()["result"] is None
    return answer.json()["error"]["message"]


@pytest.mark.req("S2-18", "S2-19", "S2-20")
def test_an_agent_is_entered_once_listed_and_shown(api):
    made = api.http.post(AGENTS, json=SPEC)
    assert made.status_code == 201
    assert made.headers["location"] == f"{AGENTS}/a-1"
    assert (made.json()["status"], made.json()["desired"], made.json()["spec"]["heartbeat_interval_s"]) == ("stopped", "stopped", 15.0)
    refused(api.http.post(AGENTS, json=SPEC), 409, "agent_exists")
    assert [agent["agent_id"] for agent in api.http.get(AGENTS).json()] == ["a-1"]
    shown = api.http.get(f"{AGENTS}/a-1").json()
    assert (shown["name"], shown["spec"]["metadata"]) == ("First", {"team": "x"})
    refused(api.http.get(f"{AGENTS}/nobody"), 404, "agent_not_found")


@pytest.mark.req("S2-18")
def test_a_list_is_narrowed_and_paged(api, fleet):
    for number in range(4):
        running(fleet, f"a-{number}", type="even" if number % 2 == 0 else "odd")
    api.http.post(AGENTS, json={"id": "b", "type": "even"})
    listed = lambda **params: [agent["agent_id"] for agent in api.http.get(AGENTS, params=params).json()]  # noqa: E731 - a sentence below
    assert listed(type="even") == ["a-0", "a-2", "b"]
    assert listed(type="even", status="running") == ["a-0", "a-2"]
    assert listed(registered=False) == ["b"]
    assert listed(limit=2, offset=1) == ["a-1", "a-2"]
    assert api.http.get(AGENTS, params={"status": "tired"}).status_code == 400


@pytest.mark.req("S2-21")
def test_what_an_agent_is_can_be_changed_where_it_stands_cannot(api):
    api.http.post(AGENTS, json=SPEC)
    version = api.http.get(f"{AGENTS}/a-1").json()["version"]
    changed = api.http.put(f"{AGENTS}/a-1", json={"name": "Second", "heartbeat_interval_s": 5, "version": version})
    assert changed.status_code == 200
    assert (changed.json()["name"], changed.json()["spec"]["heartbeat_interval_s"]) == ("Second", 5.0)
    refused(api.http.put(f"{AGENTS}/a-1", json={"name": "Third", "version": version}), 409, "version_conflict")
    for forbidden in ({"status": "running"}, {"id": "b"}, {"executable": "/bin/sh"}, {"args": ["-c"]}, {"concurrency": 0}):
        refused(api.http.put(f"{AGENTS}/a-1", json=forbidden), 400, "invalid_request")
    refused(api.http.put(f"{AGENTS}/nobody", json={"name": "x"}), 404, "agent_not_found")
    assert api.http.get(f"{AGENTS}/a-1").json()["name"] == "Second"


@pytest.mark.req("S2-19")
@pytest.mark.parametrize(
    "body, words",
    [
        ({"id": "a b", "type": "echo"}, "id"),
        ({"id": "a"}, "type"),
        ({"id": "a", "type": "echo", "kind": "child"}, "needs an executable"),
        ({"id": "a", "type": "echo", "heartbeat_interval_s": "15"}, "heartbeat_interval_s"),
        ({"id": "a", "type": "echo", "args": "one two"}, "list of arguments"),
        ({"id": "a", "type": "echo", "heartbeat_intervall_s": 15}, "heartbeat_intervall_s"),
    ],
)
def test_an_agent_that_is_not_described_well_is_refused_and_told_where(api, body, words):
    assert words in refused(api.http.post(AGENTS, json=body), 400, "invalid_request")


@pytest.mark.req("S1-36")
def test_no_call_chooses_what_is_executed(open_api):
    api = open_api(environment="production", auth_mode="token", manager_token="m", headers={"X-Manager-Token": "m"})
    child = {"id": "c", "type": "shell", "kind": "child", "executable": "/bin/sh", "args": ["-c", "id"]}
    refused(api.http.post(AGENTS, json=child), 403, "forbidden")
    assert api.http.post(AGENTS, json=SPEC).status_code == 201
    extras: tuple[dict[str, object], ...] = ({"executable": "/bin/sh"}, {"env": {"A": "b"}}, {"args": []})
    for extra in extras:
        refused(api.http.post(f"{AGENTS}/a-1/restart", json=extra), 400, "invalid_request")


@pytest.mark.req("S2-22")
def test_an_agent_is_removed_at_once_or_when_it_has_finished(api, fleet):
    api.http.post(AGENTS, json=SPEC)
    gone = api.http.delete(f"{AGENTS}/a-1")
    assert (gone.status_code, gone.json()["result"]["state"]) == (200, "removed")
    refused(api.http.get(f"{AGENTS}/a-1"), 404, "agent_not_found")
    refused(api.http.delete(f"{AGENTS}/a-1"), 404, "agent_not_found")
    assert [event["trigger"] for event in api.http.get(f"{AGENTS}/a-1/events").json()] == ["removed", "added"]
    running(fleet)
    draining = api.http.delete(f"{AGENTS}/a-1", params={"drain_timeout_s": 5})
    assert (draining.status_code, draining.json()["result"]["state"]) == (202, "stopping")
    assert api.http.get(f"{AGENTS}/a-1").json()["draining"]


@pytest.mark.req("S2-10", "S2-11", "S2-23", "S2-24", "S2-25", "S1-33")
def test_orders_answer_with_where_the_agent_stands_now(api, fleet):
    api.http.post(AGENTS, json=SPEC)
    started = api.http.post(f"{AGENTS}/a-1/start")
    assert (started.status_code, started.json()["result"]) == (202, {"state": "starting", "changed": True})
    answer = CommandResponse.model_validate(started.json())
    assert (answer.status, answer.command, answer.agent_id, answer.error) == ("success", "start", "a-1", None)
    assert answer.timestamp is not None
    refused(api.http.post(f"{AGENTS}/a-1/start"), 409, "invalid_transition")
    running(fleet)
    stopping = api.http.post(f"{AGENTS}/a-1/stop", json={"drain_timeout_s": 7, "reason": "new version"})
    assert (stopping.status_code, stopping.json()["result"]["state"]) == (202, "stopping")
    assert stopping.json()["result"]["drain_deadline"]
    again = api.http.post(f"{AGENTS}/a-1/stop")
    assert (again.status_code, again.json()["result"]["changed"]) == (202, False)
    refused(api.http.post(f"{AGENTS}/a-1/restart"), 409, "invalid_transition")
    events = api.http.get(f"{AGENTS}/a-1/events").json()
    assert (events[0]["before"], events[0]["after"], events[0]["reason"]) == ("running", "stopping", "new version")


@pytest.mark.req("S1-13", "S2-01")
@pytest.mark.parametrize("act, body", [("pause", {}), ("flush", {}), ("pool", {"delta": 1}), ("sequence", {"sequence": ["flush"]})])
def test_an_order_that_nobody_carries_out_is_503_and_changes_nothing(open_api, act, body):
    api = open_api(remote_control_s=0.05)
    running(api.app.state.services.fleet)
    answer = api.http.post(f"{AGENTS}/a-1/{act}", json=body)
    assert "nobody has carried out" in refused(answer, 503, "rc_timeout")
    assert answer.headers["retry-after"]
    assert api.http.get(f"{AGENTS}/a-1").json()["status"] == "running"
    (told,) = api.http.get(f"{AGENTS}/a-1/commands").json()
    assert (told["command"], told["state"], told["error"], told["actor"]) == (
        act.replace("pool", "scale"),
        "expired",
        "rc_timeout",
        "anonymous",
    )


@pytest.mark.req("S2-45")
@pytest.mark.parametrize("act", ["start", "stop", "restart", "pause", "resume", "flush", "pool", "sequence"])
def test_every_order_to_an_unknown_agent_is_404_and_with_a_wrong_body_400(api, act):
    body = {"pool": {"delta": 1}, "sequence": {"sequence": ["flush"]}}.get(act, {})
    refused(api.http.post(f"{AGENTS}/nobody/{act}", json=body), 404, "agent_not_found")
    refused(api.http.post(f"{AGENTS}/nobody/{act}", json={"fly": True}), 400, "invalid_request")
    assert [(entry.target, entry.outcome) for entry in api.audit()] == [
        ("agent:nobody", "invalid_request"),
        ("agent:nobody", "agent_not_found"),
    ]


@pytest.mark.req("S2-45")
@pytest.mark.parametrize("act", ["pause", "resume", "flush", "pool", "sequence"])
def test_an_order_that_does_not_fit_the_state_is_409(api, act):
    api.http.post(AGENTS, json=SPEC)
    body = {"pool": {"delta": 1}, "sequence": {"sequence": ["flush"]}}.get(act, {})
    refused(api.http.post(f"{AGENTS}/a-1/{act}", json=body), 409, "invalid_transition")


@pytest.mark.req("S2-26", "S3-31", "S2-12", "S2-13")
def test_how_an_agent_does_is_what_its_last_heartbeat_brought(api, fleet):
    running(fleet)
    beat = Heartbeat("a-1", 0.0, 1, "running", ("r-1", "r-2"), {"cpu": 0.03, "mem": 42.1}, {"free_mem_mb": 512.0})
    fleet.record_heartbeats([beat])
    status = api.http.get(f"{AGENTS}/a-1/status").json()
    assert (status["status"], status["current_task"], status["current_work"]) == ("running", "r-1", ["r-1", "r-2"])
    assert status["resources"] == {"free_mem_mb": 512.0}
    assert status["last_heartbeat"].endswith("Z")
    assert api.http.get(f"{AGENTS}/a-1/metrics").json()["metrics"] == {"cpu": 0.03, "mem": 42.1}
    assert api.http.get(f"{AGENTS}/a-1/health").json()["status"] == "healthy"


@pytest.mark.req("S2-12", "S2-13")
def test_an_unknown_agent_is_unknown_to_every_question(api):
    health = api.http.get(f"{AGENTS}/nobody/health")
    assert (health.status_code, health.json()) == (404, {"status": "unknown"})
    metrics = api.http.get(f"{AGENTS}/nobody/metrics")
    assert (metrics.status_code, metrics.json()) == (404, {})
    for question in ("status", "logs", "events", "commands", "summaries"):
        refused(api.http.get(f"{AGENTS}/nobody/{question}"), 404, "agent_not_found")


@pytest.mark.req("S1-19")
def test_the_four_states_of_a_service_are_told_in_these_words_and_draining_is_said(api, fleet):
    api.http.post(AGENTS, json=SPEC)

    def told():
        found = api.http.get(f"{AGENTS}/a-1/status").json()
        return found["status"], found["draining"]

    running(fleet)
    seen = [told()]
    for trigger in (Trigger.PAUSED, Trigger.RESUMED):  # as its host confirms what `pause` and `resume` asked for
        fleet.turned("a-1", trigger, actor="ada")
        seen.append(told())
    api.http.post(f"{AGENTS}/a-1/restart")
    seen.append(told())
    fleet.starting("a-1")
    running(fleet)
    api.http.post(f"{AGENTS}/a-1/stop")
    seen.append(told())
    fleet.exited("a-1", 0)
    seen.append(told())
    assert seen == [("running", False), ("paused", False), ("running", False), ("stopping", True), ("stopping", True), ("stopped", False)]


@pytest.mark.req("S2-40")
def test_where_agents_stand_is_in_the_store_and_no_process_that_ends_takes_it_along(open_api, store):
    first = open_api()
    fleet = first.app.state.services.fleet
    for name in ("runs", "rests", "ends", "fails"):
        running(fleet, name)
    fleet.turned("rests", Trigger.PAUSED, actor="ada")
    fleet.exited("ends", 0)
    fleet.exited("fails", 3)
    questions = [f"{AGENTS}/{name}{part}" for name in ("runs", "rests", "ends", "fails") for part in ("", "/status", "/events", "/health")]
    before = [first.http.get(question).json() for question in questions]
    first.http.__exit__(None, None, None)
    second = open_api()
    assert [second.http.get(question).json() for question in questions] == before
    assert [one["status"] for one in before[1::4]] == ["running", "paused", "stopped", "error"]


@pytest.mark.req("S2-31", "S2-04")
def test_each_state_is_told_in_lower_case(open_api):
    api = open_api(heartbeat_timeout_s=0.01, registry_ttl_s=0.01)
    fleet = api.app.state.services.fleet
    api.http.post(AGENTS, json={**SPEC, "heartbeat_interval_s": 0.001})

    def status():
        return api.http.get(f"{AGENTS}/a-1/status").json()["status"]

    told = [status()]
    api.http.post(f"{AGENTS}/a-1/start")
    told.append(status())
    running(fleet)
    told.append(status())
    while status() == "running":
        fleet.monitor(beat_up_s=3600)
    told.append(status())
    running(fleet)
    fleet.exited("a-1", 3)
    told.append(status())
    assert api.http.get(f"{AGENTS}/a-1").json()["meta"]["exit_code"] == 3
    assert api.http.post(f"{AGENTS}/a-1/stop").json()["result"]["state"] == "stopped", "which acknowledges the error"
    assert told == ["stopped", "starting", "running", "inactive", "error"]


def test_summaries_are_told_word_for_word(api, fleet):
    running(fleet)
    fleet.add_summary("a-1", '{"z": 1,  "a": [1.0, 2]}', start=1.0, end=2.0, count=2)
    (summary,) = api.http.get(f"{AGENTS}/a-1/summaries").json()
    assert (summary["document"], summary["count"]) == ('{"z": 1,  "a": [1.0, 2]}', 2)


@pytest.mark.req("S2-26")
def test_the_log_of_an_agent_is_the_tail_of_its_file(open_api, tmp_path):
    api = open_api(log_directory=tmp_path)
    running(api.app.state.services.fleet)
    assert api.http.get(f"{AGENTS}/a-1/logs").json() == {"lines": []}
    (tmp_path / "a-1.log").write_text("".join(f'{{"ts": "{n}", "message": "m{n}"}}\n' for n in range(9)))
    assert [line["message"] for line in api.http.get(f"{AGENTS}/a-1/logs", params={"lines": 2}).json()["lines"]] == ["m7", "m8"]
    assert api.http.get(f"{AGENTS}/a-1/logs", params={"lines": "abc"}).status_code == 400


def test_a_rolling_restart_is_a_run_of_which_there_is_one_for_each_type(api, fleet):
    rolling = "/api/v1/agent-types/echo/rolling-restart"
    refused(api.http.post(rolling), 404, "not_found")
    running(fleet)
    refused(api.http.get(rolling), 404, "not_found")
    assert api.http.post(rolling, json={"at_a_time": 0}).status_code == 400
    begun = api.http.post(rolling, json={"at_a_time": 2, "reason": "new version"})
    assert (begun.status_code, begun.json()["workflow_id"], begun.headers["Location"]) == (202, "rolling:echo", rolling)
    refused(api.http.post(rolling), 409, "workflow_exists")
    assert api.http.post("/api/v1/workflows/rolling:echo/terminate", json={"reason": "enough"}).status_code == 200
    ended = api.http.get(rolling).json()
    assert (ended["status"], ended["run_id"]) == ("terminated", begun.json()["run_id"])
    assert [(entry.action, entry.target, entry.outcome) for entry in api.audit()][1] == (
        "agent.rolling_restart",
        "type:echo",
        "workflow_exists",
    )


@pytest.mark.req("S2-03")
def test_a_viewer_looks_an_operator_controls_an_admin_changes(guarded_api):
    viewer, operator, admin = (guarded_api.token(role, role.value) for role in (Role.VIEWER, Role.OPERATOR, Role.ADMIN))
    assert guarded_api.http.post(AGENTS, json=SPEC, headers=operator).status_code == 403
    assert guarded_api.http.post(AGENTS, json=SPEC, headers=admin).status_code == 201
    assert guarded_api.http.get(AGENTS, headers=viewer).status_code == 200
    assert guarded_api.http.post(f"{AGENTS}/a-1/start", headers=viewer).status_code == 403
    assert guarded_api.http.post(f"{AGENTS}/a-1/start", headers=operator).status_code == 202
    assert guarded_api.http.delete(f"{AGENTS}/a-1", headers=operator).status_code == 403
    acts = [(entry.actor, entry.action, entry.outcome) for entry in guarded_api.audit()][::-1]
    assert acts == [
        ("token:operator", "agent.add", "forbidden"),
        ("token:admin", "agent.add", "ok"),
        ("token:viewer", "agent.start", "forbidden"),
        ("token:operator", "agent.start", "ok"),
        ("token:operator", "agent.delete", "forbidden"),
    ]


@pytest.mark.req("S1-28")
def test_metrics_count_agents_by_state(api, fleet):
    running(fleet)
    api.http.post(AGENTS, json={"id": "b", "type": "echo"})
    text = api.http.get("/metrics").text
    assert 'orchestrator_agents{status="running",type="echo"} 1.0' in text
    assert 'orchestrator_agents{status="stopped",type="echo"} 1.0' in text


@pytest.mark.req("DC-35")
def test_without_a_broker_agents_are_read_and_what_is_told_waits_in_the_store(api, fleet):
    running(fleet)
    assert api.http.get(f"{AGENTS}/a-1").status_code == 200
    assert api.http.post(f"{AGENTS}/a-1/stop").status_code == 202
    with api.store.transaction(readonly=True) as tx:
        assert control.dead_letters(tx) == []
