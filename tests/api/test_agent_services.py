"""Services of others: they register, live, are called through us with their own status codes, and go; told by curl alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.servers import free_ports
from schemas.agents import AgentSpec
from tests.api.dummy_service import dummy_service

SERVICES = "/api/agent-services"
AGENTS = "/api/v1/agents"


@pytest.fixture
def dummy():
    with dummy_service() as made:
        yield made


@pytest.fixture
def fleet(api):
    return api.app.state.services.fleet


def register(api, url, id_="planner", **metadata):
    answer = api.http.post(f"{SERVICES}/register", json={"id": id_, "serviceUrl": url, "metadata": metadata})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(api):
    return [service["id"] for service in api.http.get(SERVICES).json()]


@pytest.mark.req("S1-15", "S1-31")
def test_a_service_registers_as_often_as_it_likes_and_is_listed(api, dummy):
    for _ in range(2):
        told = register(api, dummy.url, name="Planner", type="planner")
        assert (told["id"], told["ttlSeconds"]) == ("planner", 30.0)
        assert told["registered_at"].endswith("Z")
    (service,) = api.http.get(SERVICES).json()
    assert (service["name"], service["serviceUrl"], service["status"]) == ("Planner", dummy.url, "running")
    assert (service["discovery"], service["metadata"]["type"], service["draining"]) == ("registration", "planner", False)
    assert [agent["kind"] for agent in api.http.get(AGENTS).json()] == ["http"]


@pytest.mark.req("S1-15")
@pytest.mark.parametrize(
    "body",
    [
        {"id": "planner"},
        {"serviceUrl": "http://127.0.0.1:1"},
        {"id": "a b", "serviceUrl": "http://127.0.0.1:1"},
        {"id": "planner", "serviceUrl": "file:///etc/passwd"},
        {"id": "planner", "serviceUrl": "http://me:secret@127.0.0.1:1"},
        {"id": "planner", "serviceUrl": "http://127.0.0.1:1?x=1"},
        {"id": "planner", "serviceUrl": "http://127.0.0.1:1", "metadata": []},
        {"id": "planner", "serviceUrl": "http://127.0.0.1:1", "metadata": {"type": "a b"}},
    ],
)
def test_a_registration_that_is_not_whole_is_400(api, body):
    assert api.http.post(f"{SERVICES}/register", json=body).status_code == 400
    assert ids(api) == []


@pytest.mark.req("S1-16")
def test_a_heartbeat_keeps_a_service_and_an_unknown_one_is_told_to_register(api, dummy):
    answer = api.http.post(f"{SERVICES}/heartbeat", json={"id": "planner"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "agent_not_found")
    register(api, dummy.url)
    assert api.http.get(SERVICES).json()[0]["last_heartbeat"] is None
    body = {"id": "planner", "status": "running", "current_task": "t-1", "metrics": {"cpu": 0.5}}
    assert api.http.post(f"{SERVICES}/heartbeat", json=body).status_code == 200
    assert api.http.get(SERVICES).json()[0]["last_heartbeat"] is not None
    standing = api.http.get(f"{SERVICES}/planner/status").json()
    assert (standing["current_task"], standing["metrics"]) == ("t-1", {"cpu": 0.5})


@pytest.mark.req("S1-22", "S2-08")
def test_a_service_that_goes_leaves_the_list_and_its_history_stays(api, dummy):
    register(api, dummy.url)
    assert api.http.post(f"{SERVICES}/unregister", json={"id": "planner"}).json() == {"id": "planner", "registered": False}
    assert ids(api) == []
    assert api.http.post(f"{SERVICES}/unregister", json={"id": "planner"}).status_code == 200
    assert api.http.post(f"{SERVICES}/unregister", json={"id": "nobody"}).status_code == 404
    shown = api.http.get(f"{AGENTS}/planner").json()
    assert (shown["registered"], shown["status"]) == (False, "stopped")
    register(api, dummy.url)
    assert ids(api) == ["planner"]


@pytest.mark.req("S1-21", "S1-47")
def test_a_service_that_drains_stays_listed_and_takes_nothing(api, dummy, fleet):
    register(api, dummy.url)
    answer = api.http.post(f"{SERVICES}/planner/action", json={"action": "stop"})
    assert (answer.status_code, answer.json()["result"]["state"]) == (202, "stopping")
    (service,) = api.http.get(SERVICES).json()
    assert (service["status"], service["draining"]) == ("stopping", True)
    refused = api.http.post(f"{SERVICES}/planner/execute", json={"parameters": {}})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "agent_stopping")
    assert dummy.asked == []
    assert api.http.post(f"{SERVICES}/unregister", json={"id": "planner"}).status_code == 200
    assert api.http.get(f"{AGENTS}/planner").json()["status"] == "stopped"


@pytest.mark.req("S1-24")
def test_who_registers_shows_the_manager_token(open_api, dummy):
    api = open_api(manager_token="m")
    body = {"id": "planner", "serviceUrl": dummy.url}
    for act in ("register", "heartbeat", "unregister"):
        for headers in ({}, {"X-Manager-Token": "wrong"}):
            assert api.http.post(f"{SERVICES}/{act}", json=body, headers=headers).status_code == 401
    assert api.http.post(f"{SERVICES}/register", json=body, headers={"X-Manager-Token": "m"}).status_code == 200
    assert api.http.get(SERVICES).status_code == 200, "without auth_mode looking is open on this machine"
    api.http.post(f"{SERVICES}/planner/execute", json={"parameters": {}})
    assert dummy.asked[-1][2]["X-Manager-Token"] == "m", "the service can tell its manager from others"


@pytest.mark.req("S1-02", "S1-03", "S1-40")
def test_a_work_is_forwarded_and_answered(api, dummy):
    register(api, dummy.url)
    key = str(uuid4())
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = api.http.post(
        f"{SERVICES}/planner/execute", json={"parameters": {"x": 1}}, headers={"Idempotency-Key": key, "traceparent": trace}
    )
    assert (answer.status_code, answer.json()) == (200, {"echo": "hello"})
    method, path, headers, body = dummy.asked[-1]
    assert (method, path, body) == ("POST", "/execute", {"parameters": {"x": 1}, "request_id": key})
    assert headers["Idempotency-Key"] == key
    assert headers["traceparent"].split("-")[1] == "0af7651916cd43dd8448eb211c80319c"
    assert api.http.post(f"{AGENTS}/planner/execute", json={"parameters": {}}).status_code == 200
    assert api.http.post(f"{SERVICES}/planner/execute", json={}).status_code == 400


def test_a_work_that_nobody_would_do_is_not_accepted(api, dummy):
    register(api, dummy.url)
    for path, body, wait in (
        (f"{SERVICES}/planner/execute", {"parameters": {}}, {"wait": 0}),
        ("/api/v1/work", {"agent_id": "planner"}, {}),
    ):
        answer = api.http.post(path, json=body, params=wait)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_capacity")
    assert dummy.asked == []


@pytest.mark.req("S1-14")
@pytest.mark.parametrize("status", [400, 401, 404, 409, 418, 500, 503])
def test_the_status_and_the_body_of_a_service_are_passed_on(api, dummy, status):
    register(api, dummy.url)
    dummy.answers["/execute"] = (status, {"error": {"code": "mine", "message": "as I say", "details": [1]}})
    answer = api.http.post(f"{SERVICES}/planner/execute", json={"parameters": {}})
    assert (answer.status_code, answer.json()) == (status, {"error": {"code": "mine", "message": "as I say", "details": [1]}})
    assert api.audit()[0].outcome == f"status_{status}"


def test_what_is_no_json_is_passed_on_as_json(api, dummy):
    register(api, dummy.url)
    dummy.answers["/execute"] = (500, b"Traceback \xff")
    answer = api.http.post(f"{SERVICES}/planner/execute", json={"parameters": {}})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"output": "Traceback \ufffd"}


def test_an_answer_without_end_is_cut_off(api, dummy, monkeypatch):
    monkeypatch.setattr("orchestrator.api.proxy.ANSWER_BYTES_MAX", 1000)
    register(api, dummy.url)
    dummy.answers["/execute"] = (200, b"1" * 5000)
    answer = api.http.post(f"{SERVICES}/planner/execute", json={"parameters": {}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "execution_failed")


@pytest.mark.req("S1-13")
def test_a_service_that_is_gone_or_hangs_is_503_in_time(open_api, dummy):
    api = open_api(execute_wait_s=0.2)
    (port,) = free_ports(1)
    register(api, f"http://127.0.0.1:{port}", "gone")
    register(api, dummy.url)
    dummy.released.clear()
    for id_ in ("gone", "planner"):
        began = SYSTEM.monotonic()
        answer = api.http.post(f"{SERVICES}/{id_}/execute", json={"parameters": {}})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "agent_unavailable")
        assert answer.headers["retry-after"]
        assert SYSTEM.monotonic() - began < 5
    assert api.http.get(f"{SERVICES}/gone/info").status_code == 503


@pytest.mark.req("S2-43")
def test_a_hanging_service_holds_up_nobody_else(api, dummy):
    register(api, dummy.url)
    dummy.released.clear()
    with ThreadPoolExecutor(80) as pool:
        waiting = [pool.submit(api.http.post, f"{SERVICES}/planner/execute", json={"parameters": {}}) for _ in range(70)]
        times = []
        for _ in range(20):
            began = SYSTEM.monotonic()
            assert api.http.get(f"{SERVICES}/planner/status").status_code == 200
            times.append(SYSTEM.monotonic() - began)
        dummy.released.set()
        statuses = {answer.result().status_code for answer in waiting}
    assert statuses <= {200, 503}
    assert sorted(times)[18] < 1.0, "nineteen of twenty"


@pytest.mark.req("S1-17", "S1-44")
def test_a_service_that_never_managed_to_register_is_reached_at_its_port(api, dummy, fleet):
    fleet.adopt([AgentSpec(id="planner", type="planner", kind="http", port=dummy.port)], discovery="config")
    (service,) = api.http.get(SERVICES).json()
    assert (service["discovery"], service["registered"], service["serviceUrl"]) == ("config", False, dummy.url)
    assert api.http.post(f"{SERVICES}/planner/execute", json={"parameters": {}}).json() == {"echo": "hello"}
    assert api.http.get(f"{SERVICES}/planner/info").json()["defaultModel"] == "m-1"


@pytest.mark.req("S1-34")
def test_info_and_logs_are_those_of_the_service(api, dummy):
    register(api, dummy.url)
    assert api.http.get(f"{SERVICES}/planner/info").json()["name"] == "Planner"
    assert [line["message"] for line in api.http.get(f"{SERVICES}/planner/logs", params={"lines": 1}).json()["lines"]] == ["two"]
    assert dummy.asked[-1][1] == "/logs?lines=1"
    dummy.answers["/logs"] = (200, ["not what was agreed"])
    assert api.http.get(f"{SERVICES}/planner/logs").status_code == 503


def test_an_agent_of_our_own_is_a_service_too(api, fleet):
    spec = AgentSpec(id="a-1", type="echo", metadata={"defaultModel": "m-2"}, version="7")
    fleet.ready(spec, node="w@test", pid=1, pid_started_at=1.0, capabilities={"echo": "1"})
    assert ids(api) == ["a-1"]
    about = api.http.get(f"{SERVICES}/a-1/info").json()
    assert (about["defaultModel"], about["capabilities"], about["version"]) == ("m-2", {"echo": "1"}, "7")
    taken = api.http.post(f"{SERVICES}/register", json={"id": "a-1", "serviceUrl": "http://127.0.0.1:1"})
    assert (taken.status_code, taken.json()["error"]["code"]) == (409, "agent_exists")


@pytest.mark.req("S2-09")
def test_an_action_that_does_not_exist_is_400(api, dummy):
    register(api, dummy.url)
    assert api.http.post(f"{SERVICES}/planner/action", json={"action": "fly"}).status_code == 400
    assert api.http.post(f"{SERVICES}/nobody/action", json={"action": "stop"}).status_code == 404
    assert api.http.post(f"{SERVICES}/planner/action", json={"action": "start"}).status_code == 409
