"""Work over HTTP: accepted or refused in one decision, once a request id, with the result or a receipt."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest

from orchestrator.store import works
from schemas.agents import AgentSpec, Heartbeat
from schemas.messages import WorkError, WorkResult

WORK = "/api/v1/work"
AGENTS = "/api/v1/agents"
SERVICES = "/api/agent-services"


@pytest.fixture
def fleet(api):
    return api.app.state.services.fleet


@pytest.fixture
def agent(fleet):
    return fleet.ready(AgentSpec(id="a-1", type="echo"), node="w@test", pid=1, pid_started_at=1.0, capabilities={"echo": "1"})


def finish(api, request_id, **result):
    """An agent's part."""
    with api.store.transaction() as tx:
        works.finish(tx, request_id, WorkResult(agent_id="a-1", request_id=UUID(request_id), **result))


@pytest.mark.req("S3-32", "DC-13")
def test_a_work_is_accepted_asked_for_and_done(api, agent):
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    answer = api.http.post(WORK, json={"agent_type": "echo", "work_type": "echo", "parameters": {"x": 1}}, headers=trace)
    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
    assert answer.json()["trace_id"].replace("-", "") == "0af7651916cd43dd8448eb211c80319c"
    address = answer.headers["location"]
    assert api.http.get(address, params={"wait": 0.05}).json()["result"] is None
    finish(api, answer.json()["request_id"], output={"x": 1})
    done = api.http.get(address).json()
    assert (done["status"], done["result"]["output"], done["result"]["exit_code"]) == ("success", {"x": 1}, 0)
    assert api.audit()[0].target == "type:echo"


@pytest.mark.req("DC-11")
def test_a_request_id_counts_once_however_many_ask_at_once(api, agent):
    key = str(uuid4())
    body = {"agent_type": "echo", "parameters": {"x": 1}}
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: api.http.post(WORK, json=body, headers={"Idempotency-Key": key}), range(20)))
    assert {answer.status_code for answer in answers} == {202}
    assert {answer.json()["request_id"] for answer in answers} == {key}
    assert len({answer.json()["accepted_at"] for answer in answers}) == 1
    other = api.http.post(WORK, json={**body, "parameters": {"x": 2}}, headers={"Idempotency-Key": key})
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_conflict")
    finish(api, key, output=7)
    again = api.http.post(WORK, json=body, headers={"Idempotency-Key": key})
    assert (again.status_code, again.json()["output"]) == (200, 7)


@pytest.mark.req("S1-14")
def test_an_execution_waits_and_gives_a_receipt_if_it_takes_too_long(open_api):
    api = open_api(execute_wait_s=0.05)
    api.app.state.services.fleet.ready(AgentSpec(id="a-1", type="echo"), node="w", pid=1, pid_started_at=1.0, capabilities={})
    for path in (f"{AGENTS}/a-1/execute", f"{SERVICES}/a-1/execute"):
        for wait in ({}, {"wait": 0}):
            answer = api.http.post(path, json={"parameters": {}}, params=wait)
            assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
            assert api.http.get(answer.headers["location"]).status_code == 200


@pytest.mark.parametrize(
    "error, status",
    [
        (None, 200),
        (WorkError(code="execution_failed", message="it broke"), 500),
        (WorkError(code="unknown_work_type", message="no such thing"), 400),
        (WorkError(code="agent_unavailable", message="gone"), 503),
        (WorkError(code="something of its own", message="as it says"), 500),
    ],
)
def test_the_outcome_of_a_work_is_told_by_its_status(api, agent, error, status):
    key = str(uuid4())
    headers = {"Idempotency-Key": key}
    api.http.post(f"{AGENTS}/a-1/execute", json={"parameters": {}}, params={"wait": 0}, headers=headers)
    finish(api, key, status="error" if error else "success", exit_code=1 if error else 0, error=error)
    answer = api.http.post(f"{AGENTS}/a-1/execute", json={"parameters": {}}, headers=headers)
    assert answer.status_code == status
    result = WorkResult.model_validate_json(answer.content)
    assert result.error == error


@pytest.mark.req("S1-12", "S1-13")
def test_who_takes_no_work_says_why(api, fleet, agent):
    run = lambda id_="a-1": api.http.post(f"{SERVICES}/{id_}/execute", json={"parameters": {}}, params={"wait": 0})  # noqa: E731 - a sentence below
    assert run().status_code == 202
    assert (run("nobody").status_code, run("nobody").json()["error"]["code"]) == (404, "agent_not_found")
    api.http.post(f"{AGENTS}/a-1/stop")
    assert (run().status_code, run().json()["error"]["code"]) == (409, "agent_stopping")
    fleet.add(AgentSpec(id="b", type="echo"))
    assert (run("b").status_code, run("b").json()["error"]["code"]) == (503, "agent_unavailable")


@pytest.mark.req("S3-30")
def test_a_work_goes_where_there_is_room_for_it(api, fleet):
    for number, free in enumerate((0.0, 8000.0)):
        fleet.ready(AgentSpec(id=f"a-{number}", type="gpu"), node="w", pid=1, pid_started_at=1.0, capabilities={})
        fleet.record_heartbeats([Heartbeat(f"a-{number}", 0.0, resources={"gpu_vram_available_mb": free})])
    for _ in range(5):
        answer = api.http.post(WORK, json={"agent_type": "gpu", "requirements": {"gpu_vram_mb": 4000}})
        assert answer.json()["agent_id"] == "a-1"
    full = api.http.post(WORK, json={"agent_type": "gpu", "requirements": {"gpu_vram_mb": 16_000}})
    assert (full.status_code, full.json()["error"]["code"]) == (503, "no_capacity")


@pytest.mark.parametrize(
    "body, headers",
    [
        ({}, {}),
        ({"agent_type": "unknown"}, {}),
        ({"agent_type": "echo"}, {"Idempotency-Key": "not-a-uuid"}),
        ({"agent_type": "echo", "parameters": []}, {}),
        ({"agent_type": "echo", "timeout_s": 0}, {}),
        ({"agent_type": "echo", "requirements": {"disk": 5}}, {}),
        ({"agent_type": "echo", "requirements": {"gpu_vram_mb": "4"}}, {}),
        ({"agent_type": "echo", "executable": "/bin/sh"}, {}),
    ],
)
def test_a_work_that_makes_no_sense_is_400(api, agent, body, headers):
    assert api.http.post(WORK, json=body, headers=headers).status_code == 400


def test_an_unknown_work_is_404(api):
    answer = api.http.get(f"{WORK}/{uuid4()}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert api.http.get(f"{WORK}/17").status_code == 400


@pytest.mark.req("S1-23")
def test_every_execution_is_either_accepted_before_a_stop_or_refused_after_it(api, agent):
    def run(number):
        if number == 100:
            return api.http.post(f"{AGENTS}/a-1/stop")
        return api.http.post(f"{AGENTS}/a-1/execute", json={"parameters": {"n": number}}, params={"wait": 0})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(run, range(201)))
    accepted = [answer.json()["request_id"] for number, answer in enumerate(answers) if answer.status_code == 202 and number != 100]
    refused = [answer for answer in answers if answer.status_code != 202]
    assert {(answer.status_code, answer.json()["error"]["code"]) for answer in refused} <= {(409, "agent_stopping")}
    assert len(set(accepted)) + len(refused) == 200
    stopped_at = api.http.get(f"{AGENTS}/a-1/events").json()[0]["at"]
    assert all(api.http.get(f"{WORK}/{key}").json()["accepted_at"] <= stopped_at for key in accepted)
