"""What an envelope must be to become a work: one refusal for each rule, and each names its field."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator.clock import SYSTEM
from schemas.messages import MessageEnvelope
from workers.intake import Unfit, checked
from workers.letters import garbage, is_message

NOW = "2026-11-25T10:00:00.123Z"


def envelope(**changed: Any) -> dict[str, Any]:
    whole = {
        "protocol_version": "1.0",
        "message_id": SYSTEM.fresh_id(),
        "from_agent": "manager",
        "to_agent": None,
        "agent_type": "echo",
        "trace_id": SYSTEM.fresh_id(),
        "request_id": SYSTEM.fresh_id(),
        "timestamp": NOW,
        "priority": 5,
        "payload": {"type": "work_request", "work_type": "echo", "parameters": {"x": 1}},
    }
    return {name: value for name, value in {**whole, **changed}.items() if value is not LEFT_OUT}


LEFT_OUT = object()


@pytest.mark.req("S3-10")
def test_a_whole_envelope_is_taken():
    found = checked(envelope(), queue="work.echo")
    assert found.payload.parameters == {"x": 1}  # type: ignore[union-attr] # a work request
    assert found.timestamp == datetime(2026, 11, 25, 10, 0, 0, 123000, tzinfo=UTC)
    assert checked(envelope(to_agent="e-1"), queue="agent.e-1").to_agent == "e-1"


@pytest.mark.req("S3-10", "S3-11")
@pytest.mark.parametrize(
    "changed, field",
    [
        ({"protocol_version": "2.0"}, "protocol_version"),
        ({"message_id": "seventeen"}, "message_id"),
        ({"request_id": LEFT_OUT}, "request_id"),
        ({"trace_id": LEFT_OUT}, "trace_id"),
        ({"timestamp": "2026-11-25T10:00:00"}, "timestamp"),
        ({"priority": 10}, "priority"),
        ({"priority": -1}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"attempt": 0}, "attempt"),
        ({"agent_type": ""}, "agent_type"),
        ({"agent_type": "other"}, "agent_type"),
        ({"payload": LEFT_OUT}, "payload"),
        ({"payload": {"type": "dance"}}, "payload"),
        ({"payload": {"type": "ack", "ack_command": "stop"}}, "payload.type"),
        ({"payload": {"type": "work_request", "parameters": 5}}, "payload.work_request.parameters"),
        ({"payload": {"type": "work_request", "work_typ": "echo"}}, "payload.work_request.work_typ"),
        ({"payload": {"type": "work_request", "timeout_s": -1}}, "payload.work_request.timeout_s"),
        ({"surprise": 1}, "surprise"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_each_rule_that_an_envelope_breaks_is_told_by_its_field(changed, field):
    with pytest.raises(Unfit) as unfit:
        checked(envelope(**changed), queue="work.echo")
    assert str(unfit.value).startswith(field)


def test_an_envelope_for_one_agent_does_not_belong_into_the_queue_of_another():
    with pytest.raises(Unfit, match=r"^to_agent"):
        checked(envelope(to_agent="e-2"), queue="agent.e-1")


@pytest.mark.parametrize("document", [None, 5, "text", [], [1], {}, {"envelope": {}}])
def test_what_is_no_envelope_at_all_is_told(document):
    with pytest.raises(Unfit):
        checked(document)


@pytest.mark.req("S3-25")
def test_an_envelope_is_the_same_after_a_journey():
    found = MessageEnvelope.model_validate(envelope())
    assert MessageEnvelope.model_validate_json(found.model_dump_json()) == found


# --- what is no message ------------------------------------------------------------------------------------------------------------

MESSAGE = {
    "body": "W10=",
    "content-type": "application/json",
    "headers": {},
    "properties": {"body_encoding": "base64", "delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": "q"}},
}


def test_a_message_is_told_from_garbage():
    assert is_message(MESSAGE)
    assert is_message(garbage("anything", "q"))


@pytest.mark.req("S3-12")
@pytest.mark.parametrize(
    "raw",
    [
        "garbage",
        5,
        None,
        [],
        {},
        {"properties": 5},
        {"properties": {}},
        {**MESSAGE, "body": "not base64!"},
        {**MESSAGE, "body": 5},
        {**MESSAGE, "headers": [1]},
        {**MESSAGE, "properties": {**MESSAGE["properties"], "delivery_tag": 5}},  # type: ignore[dict-item] # what garbage is
        {**MESSAGE, "properties": {**MESSAGE["properties"], "delivery_info": None}},  # type: ignore[dict-item] # as above
        {**MESSAGE, "properties": {**MESSAGE["properties"], "body_encoding": "rot13"}},  # type: ignore[dict-item] # as above
    ],
)
def test_garbage_is_told_from_a_message(raw):
    assert not is_message(raw)
