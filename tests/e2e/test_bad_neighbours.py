"""Agents and callers that misbehave: each is told what is wrong, it is on record, and everyone else keeps working."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from schemas.agents import AgentStatus
from tests.agents.test_intake import envelope
from tests.api.serving import served
from tests.e2e.agent_site import AgentSite
from tests.e2e.processes import broker_of, site, wait_until
from tests.fleet_laws import check_fleet_laws
from tests.workers.child_kit import HEARTBEAT, OBEDIENT

pytestmark = pytest.mark.slow

AGENTS = "/api/v1/agents"
SERVICES = "/api/agent-services"
ALIVE_MAX_S = 40.0
FOREVER = "\nimport time\nwhile True: time.sleep(1)"
SAY = "import os, signal, sys\ndef say(line): print(line, flush=True)\n"
STUBBORN = f"{SAY}signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('{HEARTBEAT}'){FOREVER}"
FLOOD = f"{SAY}say('{HEARTBEAT}')\nwhile True: os.write(1, b'chatter\\n' * 8192)"
LIAR = f"{SAY}say('{HEARTBEAT}')\nsay('{HEARTBEAT[:-1]},\"agent_id\":\"good\"}}'){FOREVER}"


class Stand:
    """A fleet with two agents that behave, driven by HTTP as an operator drives it."""

    def __init__(self, place: AgentSite, http: httpx.Client) -> None:
        self.place, self.http = place, http

    def child(self, agent_id: str, program: str, **fields: Any) -> None:
        script = self.place.home / f"{agent_id}.py"
        script.write_text(program)
        spec = {"id": agent_id, "type": agent_id, "kind": "child", "executable": sys.executable, "args": [str(script)], **fields}
        assert self.http.post(AGENTS, json=spec).status_code == 201
        self.http.post(f"{AGENTS}/{agent_id}/start")

    def await_status(self, agent_id: str, *wanted: AgentStatus) -> dict[str, Any]:
        self.place.await_status(agent_id, *wanted, max_s=ALIVE_MAX_S)
        return dict(self.http.get(f"{AGENTS}/{agent_id}").json())

    def refused(self, answer: httpx.Response, status: int, code: str, *words: str) -> None:
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
        assert all(word in answer.text for word in words), answer.text

    def on_record(self, action: str, outcome: str) -> None:
        entries = self.http.get("/api/v1/audit", params={"limit": 500}).json()["entries"]
        assert (action, outcome) in {(entry["action"], entry["outcome"]) for entry in entries}, entries

    def others_work(self) -> None:
        """The child gives its summary, and the other agent does a work."""
        assert self.http.post(f"{AGENTS}/good/flush").status_code == 200
        done = self.http.post(f"{AGENTS}/echo-1/execute", json={"work_type": "echo", "parameters": {"x": 1}})
        assert (done.status_code, done.json()["output"]) == (200, {"x": 1})


@pytest.fixture(scope="module")
def stand(valkey: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("stand")
    place_of = site(AgentSite, folder, f"sqlite:///{folder / 'test.db'}", broker_of(valkey), agent_drain_s=1.0, terminate_grace_s=1.0)
    with place_of as place:
        place.beat()
        place.worker(queues="fleet")
        place.agent("echo-1")
        urls = {"database_url": place.settings.database_url, "broker_url": place.broker_url}
        with served(place.home, **urls, agent_drain_s=1.0) as server:
            opened = Stand(place, server.http)
            opened.child("good", OBEDIENT)
            opened.await_status("good", AgentStatus.RUNNING)
            yield opened
        check_fleet_laws(place.store)


@pytest.fixture(autouse=True)
def others_keep_working(stand: Stand) -> Iterator[None]:
    """Whatever a test does."""
    yield
    stand.others_work()


def test_orders_that_make_no_sense_are_refused_by_name_and_on_record(stand: Stand):
    stand.refused(stand.http.post(f"{AGENTS}/ghost/pause"), 404, "agent_not_found", "ghost")
    stand.on_record("agent.pause", "agent_not_found")
    stand.refused(stand.http.post(f"{AGENTS}/good/resume", json={"fly": True}), 400, "invalid_request", "fly")
    stand.on_record("agent.resume", "invalid_request")
    stand.http.post(AGENTS, json={"id": "still", "type": "echo"})
    stand.refused(stand.http.post(f"{AGENTS}/still/resume"), 409, "invalid_transition", "stopped")
    stand.on_record("agent.resume", "invalid_transition")
    assert stand.http.post(f"{AGENTS}/good/fly").status_code == 404
    stand.refused(stand.http.post(f"{AGENTS}/good/sequence", json={"sequence": ["fly"]}), 400, "invalid_request", "sequence.0", "'pause'")
    stand.on_record("agent.sequence", "invalid_request")


def test_a_misspelt_key_is_named_and_nothing_is_entered(stand: Stand):
    answer = stand.http.post(AGENTS, json={"id": "typo", "type": "echo", "heartbeat_intervall_s": 5})
    stand.refused(answer, 400, "invalid_request", "heartbeat_intervall_s")
    stand.refused(stand.http.get(f"{AGENTS}/typo"), 404, "agent_not_found")


def test_a_work_that_is_too_large_is_refused_before_it_is_read_on(stand: Stand):
    body = {"work_type": "echo", "parameters": {"x": "a" * 20_000_000}}
    stand.refused(stand.http.post(f"{AGENTS}/echo-1/execute", json=body), 413, "payload_too_large")


def test_envelopes_that_do_not_fit_are_dead_letters_with_the_reason(stand: Stand):
    wrong = {"protocol_version": envelope(protocol_version="9.9"), "priority": envelope(priority=99), "envelope": "no envelope at all"}
    for document in wrong.values():
        stand.place.asker.send_task("orchestrator.agent_work", kwargs={"envelope": document}, queue="work.echo")

    def reasons() -> str:
        return " ".join(letter["reason"] for letter in stand.http.get("/api/v1/dead-letters").json()["dead_letters"])

    wait_until(lambda: all(word in reasons() for word in wrong), "each is set aside")


def test_an_executable_that_is_not_there_is_an_error_that_names_it(stand: Stand):
    stand.http.post(AGENTS, json={"id": "lost", "type": "lost", "kind": "child", "executable": "nowhere-to-be-found"})
    stand.http.post(f"{AGENTS}/lost/start")
    assert "'nowhere-to-be-found' was not found" in stand.await_status("lost", AgentStatus.ERROR)["reason"]
    stand.on_record("agent.start", "ok")


def test_a_child_that_ignores_sigterm_is_killed_after_its_grace(stand: Stand):
    stand.child("stubborn", STUBBORN)
    stand.await_status("stubborn", AgentStatus.RUNNING)
    stand.http.post(f"{AGENTS}/stubborn/stop")
    stopped = stand.await_status("stubborn", AgentStatus.STOPPED)
    assert (stopped["meta"]["exit_code"], stopped["meta"]["forced"]) == (-9, True)
    stand.on_record("agent.stop", "ok")


def test_a_child_that_floods_its_output_holds_nobody_up(stand: Stand):
    stand.child("flood", FLOOD)
    stand.await_status("flood", AgentStatus.RUNNING)
    for _ in range(5):
        stand.others_work()
    stand.http.post(f"{AGENTS}/flood/stop")
    stand.await_status("flood", AgentStatus.STOPPED)


def test_an_agent_that_lies_about_its_id_is_not_believed(stand: Stand):
    stand.child("liar", LIAR)
    stand.await_status("liar", AgentStatus.RUNNING)

    def set_aside() -> list[dict[str, Any]]:
        letters = stand.http.get("/api/v1/dead-letters").json()["dead_letters"]
        return [letter for letter in letters if "it says that it is 'good'" in letter["reason"]]

    (letter,) = wait_until(set_aside, "its line is set aside")
    assert letter["document"]["agent_id"] == "liar"
    for act, body in (("register", {"serviceUrl": "http://127.0.0.1:1"}), ("heartbeat", {}), ("unregister", {})):
        stand.refused(stand.http.post(f"{SERVICES}/{act}", json={"id": "good", **body}), 409, "agent_exists", "good")
    assert stand.http.get(f"{AGENTS}/good").json()["status"] == "running"
