"""The whole way: the API as a process, agents as processes, a real broker; one drives the fleet by HTTP alone."""

from __future__ import annotations

from uuid import uuid4

import pytest

from schemas.agents import AgentStatus
from tests.api.serving import served
from tests.e2e.agent_site import AgentSite
from tests.e2e.processes import broker_of, site, wait_until

AGENTS = "/api/v1/agents"


@pytest.fixture
def place(valkey, sqlite_url, tmp_path):
    with site(AgentSite, tmp_path, sqlite_url, broker_of(valkey)) as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.req("S1-02", "S1-12", "S1-40", "S2-01", "S2-03", "DC-13")
def test_an_agent_is_asked_paused_resumed_and_stopped_by_http_alone(place):
    place.worker(queues="fleet")
    worker = place.agent("e-1")
    with served(place.home, database_url=place.settings.database_url, broker_url=place.broker_url) as server:
        http = server.http

        def run(**options):
            return http.post(f"{AGENTS}/e-1/execute", json={"work_type": "echo", "parameters": {"x": 1}}, **options)

        trace = "0af7651916cd43dd8448eb211c80319c"
        done = run(headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01", "Idempotency-Key": str(uuid4())})
        assert (done.status_code, done.json()["status"], done.json()["agent_id"]) == (200, "success", "e-1")
        assert done.json()["trace_id"].replace("-", "") == trace
        assert http.post(f"{AGENTS}/e-1/pause").json()["result"]["state"] == "paused"
        assert (run().status_code, run().json()["error"]["code"]) == (409, "agent_paused")
        assert http.post(f"{AGENTS}/e-1/resume").status_code == 200
        assert run().status_code == 200
        assert "unknown_work_type" in http.post(f"{AGENTS}/e-1/execute", json={"work_type": "fly", "parameters": {}}).text
        assert http.post(f"{AGENTS}/e-1/stop", json={"drain_timeout_s": 20}).json()["result"]["state"] == "stopping"
        wait_until(lambda: http.get(f"{AGENTS}/e-1/status").json()["status"] == AgentStatus.STOPPED, "it has stopped")
        assert worker.process.wait(20) == 0, worker.text
        assert run().status_code == 503
        acts = [entry["action"] for entry in http.get("/api/v1/audit").json()["entries"]]
        assert acts.count("agent.pause") == acts.count("agent.resume") == acts.count("agent.stop") == 1
