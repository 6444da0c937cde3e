"""The HTTP face of an agent that runs: every answer is JSON, with the code that the table says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from orchestrator.clock import SYSTEM
from schemas.agents import AgentStatus
from tests.e2e.agent_site import AgentSite, AgentWorker
from tests.e2e.processes import broker_of, site, wait_until

TOKEN, OLD = "present-token", "former-token"


@pytest.fixture
def place(valkey: Any, sqlite_url: str, tmp_path: Path) -> Iterator[AgentSite]:
    """SQLite and the embedded broker."""
    with site(AgentSite, tmp_path, sqlite_url, broker_of(valkey)) as opened:
        yield opened


def face(place: AgentSite, agent_id: str, **options: Any) -> httpx.Client:
    return httpx.Client(base_url=place.fleet.get(agent_id).service_url, timeout=20, **options)


@pytest.fixture
def noting(place: AgentSite) -> AgentWorker:
    return place.agent("n-1", "noting", "--port", "0", execute_wait_s=2.0)


def code(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/json"
    return str(answer.json()["error"]["code"])


@pytest.mark.req("S1-05", "S1-06", "S1-08", "S1-29")
def test_an_agent_tells_what_it_is_and_does_while_its_slots_are_all_busy(place: AgentSite, noting):
    with face(place, "n-1") as http:
        assert http.get("/status").json()["current_task"] is None
        assert 'task_running{agent="n-1",type="noting"} 0' in http.get("/metrics").text
        running = place.ask("n-1", work_type="gate", gate="g")
        place.await_begun(running)
        began = SYSTEM.monotonic()
        assert (http.get("/health").status_code, http.get("/health").json()) == (200, {"status": "ok"})
        assert SYSTEM.monotonic() - began < 1.0
        assert http.get("/status").json()["current_task"] == {"request_id": running, "work_type": "gate"}
        assert 'task_running{agent="n-1",type="noting"} 1' in http.get("/metrics").text
        assert {"id", "name", "defaultModel", "metadata", "capabilities", "version"} <= http.get("/info").json().keys()
        place.open_gate("g")
        place.result(running)
        wait_until(lambda: http.get("/status").json()["current_task"] is None, "it is done")
        assert 'tasks_total{agent="n-1",type="noting"} 1' in http.get("/metrics").text


@pytest.mark.req("S1-07", "S1-11")
def test_a_work_by_http_is_answered_with_its_result_or_a_receipt(place: AgentSite, noting):
    with face(place, "n-1") as http:
        done = http.post("/execute", json={"parameters": {"x": 1}})
        assert (done.status_code, done.json()["output"]) == (200, {"by": "n-1", "x": 1})
        request_id = done.json()["request_id"]
        again = http.post("/execute", json={"parameters": {"x": 1}, "request_id": request_id})
        assert (again.status_code, again.json()["cached"]) == (200, True)
        other = http.post("/execute", json={"parameters": {"x": 2}, "request_id": request_id})
        assert (other.status_code, code(other)) == (409, "idempotency_conflict")
        slow = http.post("/execute", json={"parameters": {"gate": "g"}, "work_type": "gate"})
        assert (slow.status_code, slow.json()["status"]) == (202, "accepted")
        place.open_gate("g")
        assert place.result(slow.json()["request_id"]).status == "success"
        failed = http.post("/execute", json={"parameters": {"times": 9}, "work_type": "flaky"})
        assert (failed.status_code, failed.json()["error"]["code"], failed.json()["exit_code"]) == (500, "execution_failed", 1)
        unknown = http.post("/execute", json={"parameters": {}, "work_type": "dance"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (400, "unknown_work_type")


@pytest.mark.req("S1-07", "S1-09", "S1-10", "S1-11", "S1-36")
def test_what_an_agent_cannot_understand_is_told_as_json(place: AgentSite, noting):
    with face(place, "n-1") as http:
        bodies: list[object] = [{}, {"parameters": 5}, {"parameters": {}, "executable": "sh"}, []]
        for body in bodies:
            assert code(http.post("/execute", json=body)) == "invalid_request"
        assert code(http.post("/execute", content=b"{not json")) == "invalid_request"
        fly = http.post("/action", json={"action": "fly"})
        assert (fly.status_code, code(fly)) == (400, "unknown_command")
        for extra in ({"executable": "sh"}, {"env": {"A": "b"}}):
            assert http.post("/action", json={"action": "restart", **extra}).status_code == 400
        assert http.get("/logs", params={"lines": "abc"}).status_code == 400
        assert http.get("/logs", params={"lines": "0"}).status_code == 400
        assert len(http.get("/logs", params={"lines": "2"}).json()["lines"]) == 2
        nowhere, wrong = http.get("/nowhere"), http.get("/execute")
        assert (nowhere.status_code, code(nowhere), wrong.status_code, code(wrong)) == (404, "not_found", 405, "invalid_request")


@pytest.mark.req("S1-09", "S1-12")
def test_an_agent_pauses_resumes_restarts_and_stops_when_it_is_told_by_http(place: AgentSite, noting: AgentWorker):
    with face(place, "n-1") as http:
        paused = http.post("/action", json={"action": "pause"})
        assert (paused.status_code, paused.json()["result"]) == (200, {"state": "paused", "changed": True})
        assert place.status("n-1") is AgentStatus.PAUSED
        refused = http.post("/execute", json={"parameters": {}})
        assert (refused.status_code, code(refused)) == (409, "agent_paused")
        assert http.post("/action", json={"action": "pause"}).json()["result"]["changed"] is False
        assert http.post("/action", json={"action": "resume"}).status_code == 200
        assert http.post("/execute", json={"parameters": {}}).status_code == 200
        before = place.fleet.get("n-1").started_at
        assert http.post("/action", json={"action": "restart"}).status_code == 202
    wait_until(lambda: place.status("n-1") is AgentStatus.RUNNING and place.fleet.get("n-1").started_at != before, "it is back")
    with face(place, "n-1") as http:
        running = place.ask("n-1", work_type="gate", gate="g")
        place.await_begun(running)
        assert http.post("/action", json={"action": "stop"}).status_code == 202
        refused = http.post("/execute", json={"parameters": {}})
        assert (refused.status_code, code(refused)) == (409, "agent_stopping")
        assert http.get("/status").json()["draining"] is True
        place.open_gate("g")
    assert noting.process.wait(20) == 0
    assert place.result(running).status == "success"
    assert place.status("n-1") is AgentStatus.STOPPED


@pytest.mark.req("S1-24")
def test_a_token_is_asked_for_where_one_is_set_and_two_count_during_a_rotation(place: AgentSite):
    place.agent("e-1", "echo", "--port", "0", manager_token=f"{TOKEN},{OLD}")
    body = {"parameters": {"x": 1}}
    with face(place, "e-1") as http:
        assert http.get("/health").status_code == http.get("/info").status_code == http.get("/metrics").status_code == 200
        for headers in ({}, {"X-Manager-Token": "wrong"}):
            assert code(http.post("/execute", json=body, headers=headers)) == "unauthorized"
            assert http.post("/action", json={"action": "pause"}, headers=headers).status_code == 401
            assert http.get("/logs", headers=headers).status_code == 401
        for token in (TOKEN, OLD):
            assert http.post("/execute", json=body, headers={"X-Manager-Token": token}).status_code == 200


@pytest.mark.req("S1-01")
def test_two_agents_have_two_processes_and_two_ports_and_one_outlives_the_other(place: AgentSite):
    first, second = place.agent("e-1", "echo", "--port", "0"), place.agent("e-2", "echo", "--port", "0")
    assert first.process.pid != second.process.pid
    with face(place, "e-1") as one, face(place, "e-2") as two:
        assert one.base_url != two.base_url
        first.kill()
        with pytest.raises(httpx.ConnectError):
            one.get("/health")
        assert two.get("/health").json() == {"status": "ok"}


def test_a_port_that_is_taken_is_told_and_the_agent_does_not_start(place: AgentSite):
    place.agent("e-1", "echo", "--port", "0")
    port = place.fleet.get("e-1").service_url.rpartition(":")[2]
    worker = place.agent("e-2", "echo", "--port", port, wait=False)
    assert worker.process.wait(30) == 1
    assert "Address already in use" in worker.text
