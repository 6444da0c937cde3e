"""The fleet on a bus: commands and questions in an envelope or bare, answered by request id, once; what does not fit is refused and set aside."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from orchestrator.bus import ANSWERS_MAX, Bus, heartbeat_of
from orchestrator.clock import SYSTEM
from orchestrator.store import audit
from schemas.access import AuditFilter
from schemas.agents import AgentSpec, Heartbeat
from schemas.messages import CommandResponse, MessageEnvelope

COMMAND = "agent.manager.command"
QUERY = "agent.manager.query"


@pytest.fixture
def bus(fleet, store):
    fleet.ready(AgentSpec(id="a-1", type="echo"), node="w@test", pid=1, pid_started_at=1.0, capabilities={})
    return Bus(fleet, store, SYSTEM)


def enveloped(payload, **more):
    about = {"message_id": str(uuid4()), "request_id": str(uuid4()), "trace_id": str(uuid4()), "from_agent": "console"}
    return about | {"timestamp": datetime.now(UTC).isoformat(), "payload": payload} | more


def command(name="stop", agent_id="a-1", **params):
    return {"type": "command", "command": name, "agent_id": agent_id, "params": params}


def receive(bus, key, message):
    return bus.receive(key, json.dumps(message).encode() if not isinstance(message, bytes) else message)


def acts(store):
    with store.transaction(readonly=True) as tx:
        return [(entry.actor, entry.action, entry.outcome) for entry in audit.entries(tx, AuditFilter())]


@pytest.mark.req("S2-27", "S2-28")
@pytest.mark.parametrize("whom", ["manager", "a-1"])
def test_a_command_is_answered_where_it_came_from_by_its_request_id(bus, store, whom):
    message = enveloped(command(drain_timeout_s=5))
    answer = receive(bus, f"agent.{whom}.command", message)
    assert (answer.key, answer.letter) == (f"agent.{whom}.response", "")
    envelope = MessageEnvelope.model_validate(dict(answer.body) | {"payload": answer.body["payload"] | {"result": {}}})
    assert (str(envelope.request_id), str(envelope.correlation_id)) == (message["request_id"], message["message_id"])
    assert (str(envelope.trace_id), envelope.to_agent) == (message["trace_id"], "console")
    assert answer.body["payload"]["result"]["state"] == "stopping"
    assert acts(store) == [("bus:console", "agent.stop", "ok")]


@pytest.mark.req("S2-09", "S2-10")
def test_the_four_fields_of_a_command_are_understood_bare(bus):
    answer = receive(bus, COMMAND, {"command": "stop", "agent_id": "a-1", "params": {}, "timestamp": "2026-11-25T10:00:00Z"})
    response = CommandResponse.model_validate(answer.body)
    assert (response.status, response.command, response.agent_id, response.error) == ("success", "stop", "a-1", None)
    assert response.timestamp is not None


@pytest.mark.req("S2-27")
def test_a_question_is_answered_and_is_no_act(bus, fleet, store):
    fleet.record_heartbeats([Heartbeat("a-1", 0.0, 1, "running", ("r",), {"cpu": 0.5})])
    answer = receive(bus, QUERY, enveloped(command("status")))
    assert answer.key == "agent.manager.response"
    assert answer.body["payload"]["result"]["current_work"] == ["r"]
    assert acts(store) == []


def test_what_cannot_be_done_is_an_answer_with_the_code_of_everywhere(bus, store):
    for message, code in (
        (command("stop", "nobody"), "agent_not_found"),
        (command("resume"), None),
        (command("start"), "invalid_transition"),
        (command("pause"), "rc_timeout"),
        (command("status"), "unknown_command"),
    ):
        answer = receive(bus, COMMAND, enveloped(message))
        payload = answer.body["payload"]
        assert answer.letter == ""
        assert (payload["error"] or {}).get("code") == code
        assert (payload["result"] is None) == (code is not None)
    assert ("bus:console", "agent.pause", "rc_timeout") in acts(store)


@pytest.mark.req("S2-44", "S3-12")
@pytest.mark.parametrize(
    "message, code",
    [
        (b"no json", "invalid_envelope"),
        (b"[1, 2]", "invalid_envelope"),
        (b'"\xff"', "invalid_envelope"),
        (b" " * 1_100_000, "payload_too_large"),
        ({"command": "fly", "agent_id": "a-1", "params": {}}, "unknown_command"),
        (enveloped(command("fly")), "unknown_command"),
        (enveloped(command(), protocol_version="2.0"), "invalid_envelope"),
        (enveloped(command(), colour="red"), "invalid_envelope"),
        (enveloped(command(executable="/bin/sh")), "invalid_envelope"),
        (enveloped({"type": "ack", "ack_command": "stop"}), "invalid_envelope"),
        (enveloped(command(), expires_at=(datetime.now(UTC) - timedelta(hours=1)).isoformat()), "invalid_envelope"),
        (enveloped(command(), request_id="17"), "invalid_envelope"),
    ],
)
def test_what_does_not_fit_is_refused_and_set_aside(bus, fleet, message, code):
    answer = receive(bus, COMMAND, message)
    assert answer.code == code
    assert answer.letter
    if isinstance(message, dict):
        payload = answer.body.get("payload", answer.body)
        assert (payload["status"], payload["error"]["code"], payload["result"]) == ("error", code, None)
        assert answer.body.get("request_id", None) == message.get("request_id")
    else:
        assert answer.key == ""
    assert fleet.get("a-1").status == "running"


def test_an_address_takes_no_commands_for_others(bus, fleet):
    fleet.ready(AgentSpec(id="b", type="echo"), node="w@test", pid=2, pid_started_at=1.0, capabilities={})
    answer = receive(bus, "agent.b.command", enveloped(command("stop", "a-1")))
    assert answer.letter
    assert fleet.get("a-1").status == "running"


def test_a_message_that_comes_twice_counts_once(bus, fleet, store):
    message = enveloped(command("restart"))
    first, second = (receive(bus, COMMAND, message) for _ in range(2))
    assert first == second
    assert len(acts(store)) == 1
    for _ in range(ANSWERS_MAX + 10):
        receive(bus, QUERY, enveloped(command("status")))
    assert len(bus._answers) == ANSWERS_MAX


@pytest.mark.req("S2-28")
def test_a_heartbeat_on_the_bus_is_a_heartbeat_and_looks_as_those_that_we_tell(bus, fleet):
    fleet.record_heartbeats([Heartbeat("a-1", 0.0, 3, "running", ("r",), {"cpu": 0.5}, {"cpu_percent": 9.0, "strange": 1})])
    told = heartbeat_of(fleet.get("a-1"), clock=SYSTEM)
    assert told["payload"]["metrics"] == {"cpu": 0.5}
    assert receive(bus, "agent.status", dict(told) | {"payload": told["payload"] | {"metrics": {"cpu": 0.7}}}) is None
    assert fleet.get("a-1").last_metrics == {"cpu": 0.7}


@pytest.mark.req("S2-37")
@pytest.mark.parametrize("said, stands", [("running", "running"), ("stopped", "stopped"), ("error", "error"), ("tired", "running")])
def test_what_an_agent_says_of_its_end_is_believed(bus, fleet, said, stands):
    update = {"type": "status_update", "agent_id": "a-1", "status": said, "metadata": {"reason": "out of memory"}}
    assert receive(bus, "agent.status", enveloped(update, from_agent="a-1")) is None
    assert fleet.get("a-1").status == stands


@pytest.mark.parametrize(
    "message",
    [
        enveloped({"type": "status_update", "agent_id": "a-1", "status": "stopped"}, from_agent="somebody else"),
        enveloped({"type": "status_update", "agent_id": "nobody", "status": "running"}, from_agent="nobody"),
        enveloped(command()),
    ],
)
def test_nobody_speaks_for_another(bus, fleet, message):
    answer = receive(bus, "agent.status", message)
    assert (answer.key, bool(answer.letter)) == ("", True)
    assert fleet.get("a-1").status == "running"
