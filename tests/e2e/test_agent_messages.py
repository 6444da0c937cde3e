"""What arrives on the queues of agents from outside: envelopes become works, all else dead letters, and the agent lives."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from kombu import Connection, Exchange, Producer

from orchestrator.clock import SYSTEM
from orchestrator.dispatch import dead_letter_queue
from schemas.runs import DeadLetter
from tests.agents.test_intake import LEFT_OUT, envelope
from tests.e2e.agent_site import AgentSite
from tests.e2e.processes import broker_of, redis_of, site, wait_until

TASK = "orchestrator.agent_work"


@pytest.fixture
def place(valkey: Any, sqlite_url: str, tmp_path: Path) -> Iterator[AgentSite]:
    """SQLite and the embedded broker."""
    with site(AgentSite, tmp_path, sqlite_url, broker_of(valkey)) as opened:
        yield opened


@pytest.fixture(params=["valkey", "rabbitmq"])
def anywhere(request: pytest.FixtureRequest, sqlite_url: str, tmp_path: Path) -> Iterator[AgentSite]:
    """SQLite, and each broker."""
    url = request.getfixturevalue("rabbitmq_url") if request.param == "rabbitmq" else broker_of(request.getfixturevalue("valkey"))
    with site(AgentSite, tmp_path, sqlite_url, url) as opened:
        yield opened


def send(place: AgentSite, document: Any, queue: str, **options: Any) -> None:
    place.asker.send_task(TASK, kwargs={"envelope": document}, queue=queue, retry=True, **options)


def letters(place: AgentSite, count: int) -> list[DeadLetter]:
    found: list[DeadLetter] = wait_until(lambda: len(place.dead_letters()) >= count and place.dead_letters(), f"{count} dead letters")
    assert len(found) == count
    return found


def serves(place: AgentSite) -> None:
    assert place.do(agent_type="echo", still="here").output == {"still": "here"}


@pytest.mark.req("S3-13", "S3-17")
def test_an_envelope_is_a_work_like_any_other(anywhere: AgentSite):
    queue = f"e-{SYSTEM.fresh_id()[-6:]}"
    worker = anywhere.agent(queue)
    for_type, for_one = envelope(), envelope(to_agent=queue, priority=9)
    send(anywhere, for_type, "work.echo")
    send(anywhere, for_one, f"agent.{queue}")
    for document in (for_type, for_one, for_one):
        wait_until(partial(known, anywhere, document["request_id"]), "it is accepted")
        result = anywhere.result(document["request_id"])
        assert (result.output, str(result.trace_id)) == ({"x": 1}, document["trace_id"])
    assert worker.alive


def known(place: AgentSite, request_id: str) -> bool:
    with place.store.transaction(readonly=True) as tx:
        return bool(tx.run("SELECT 1 FROM works WHERE request_id = :id", id=request_id))


@pytest.mark.req("DC-11", "S3-15")
def test_an_envelope_that_comes_twice_is_done_once(place: AgentSite):
    place.agent("n-1", "noting")
    document = envelope(agent_type="noting", payload={"type": "work_request", "work_type": "note"})
    for _ in range(3):
        send(place, document, "work.noting")
    wait_until(lambda: known(place, document["request_id"]), "it is accepted")
    assert place.result(document["request_id"]).status == "success"
    again = envelope(agent_type="noting", request_id=document["request_id"], payload={"type": "work_request", "work_type": "other"})
    send(place, again, "work.noting")
    assert letters(place, 1)[0].document["code"] == "idempotency_conflict"
    assert len(place.notes("begin", document["request_id"])) == 1


@pytest.mark.req("S3-13")
def test_an_envelope_is_accepted_at_once_while_the_agent_is_busy(place: AgentSite):
    place.agent("n-1", "noting")
    running = place.ask("n-1", work_type="gate", gate="g")
    place.await_begun(running)
    document = envelope(agent_type="noting", payload={"type": "work_request", "work_type": "note"})
    send(place, document, "work.noting")
    wait_until(lambda: known(place, document["request_id"]), "it is accepted", 2.0)
    place.open_gate("g")
    assert place.result(document["request_id"]).status == "success"


@pytest.mark.req("S3-10", "S3-11", "DC-33")
def test_each_envelope_that_does_not_fit_is_a_dead_letter_that_names_the_field(anywhere: AgentSite):
    worker = anywhere.agent("e-1")
    wrong = {
        "protocol_version": envelope(protocol_version="0.9"),
        "request_id": envelope(request_id=LEFT_OUT),
        "priority": envelope(priority=11),
        "agent_type": envelope(agent_type="other"),
        "payload.type": envelope(payload={"type": "ack", "ack_command": "stop"}),
        "expires_at": envelope(expires_at="2020-01-01T00:00:00Z"),
        "to_agent": envelope(to_agent="nobody"),
        "envelope": 17,
    }
    for document in wrong.values():
        send(anywhere, document, "work.echo")
    reasons = [letter.reason for letter in letters(anywhere, len(wrong))]
    for field in wrong:
        assert any(reason.startswith(f"{field}:") for reason in reasons), (field, reasons)
    serves(anywhere)
    assert worker.alive


@pytest.mark.req("S3-12", "DC-33")
def test_a_message_that_is_pickled_oversized_unreadable_or_unknown_is_a_dead_letter(anywhere: AgentSite):
    worker = anywhere.agent("e-1", "echo", payload_bytes_max=100_000)
    send(anywhere, envelope(), "work.echo", serializer="pickle")
    send(anywhere, envelope(payload={"type": "work_request", "parameters": {"x": "y" * 200_000}}), "work.echo")
    anywhere.asker.send_task("no.such.task", queue="work.echo")
    headers = {"task": TASK, "id": SYSTEM.fresh_id(), "lang": "py"}
    with anywhere.asker.connection_for_write() as connection:
        producer = Producer(connection)
        route = (
            {"exchange": "", "routing_key": "work.echo"}
            if anywhere.broker_url.startswith("amqp")
            else {"exchange": Exchange("work.echo"), "routing_key": "work.echo"}
        )
        for body, kind in (
            (b"{not json", "application/json"),
            (b"[1, 2]", "application/json"),
            (b'{"a": 1}', "application/json"),
            (b"\xff\xfe", "application/json"),
        ):
            producer.publish(body, headers=headers, content_type=kind, content_encoding="utf-8", **route)
        producer.publish(b"hello", content_type="text/plain", content_encoding="utf-8", **route)
        producer.publish(b"[]", headers={"task": "no.such.task"}, content_type="application/json", content_encoding="utf-8", **route)
        producer.publish(
            b"[]",
            headers={"task": "celery.accumulate", "id": 5, "lang": 7},
            content_type="application/x-python-serialize",
            content_encoding="binary",
            **route,
        )
    found = letters(anywhere, 10)
    codes = [letter.document["code"] for letter in found]
    assert codes.count("payload_too_large") == 1
    assert any("'application/x-python-serialize' is not accepted" in letter.reason for letter in found)
    assert sum("no.such.task" in letter.reason for letter in found) == 2
    serves(anywhere)
    assert worker.alive


@pytest.mark.req("S3-12")
def test_bytes_in_a_list_of_redis_that_are_no_message_are_dead_letters(place: AgentSite):
    worker = place.agent("e-1")
    server = redis_of(place.broker_url)
    properties = {"delivery_tag": "t", "delivery_info": {"exchange": "", "routing_key": "work.echo"}, "body_encoding": "base64"}
    message = {"body": base64.b64encode(b"[]").decode(), "content-type": "application/json", "headers": None, "properties": properties}
    garbage = [b"garbage", b"\xff\x00\xfe", b"", b"5", b"[]", b"{}", b'{"body": 1}', b'[{}, "a", "b"]']
    garbage += [json.dumps({**message, "body": "!"}).encode(), json.dumps({**message, "properties": 5}).encode()]
    for raw in garbage:
        server.lpush("work.echo", raw)
    found = letters(place, len(garbage))
    assert {letter.document["queue"] for letter in found} == {"work.echo"}
    server.lpush("work.echo", json.dumps({**message, "headers": [1]}).encode())
    letters(place, len(garbage) + 1)
    wait_until(lambda: server.hlen("unacked") == 0, "nothing is left unacknowledged")
    serves(place)
    assert worker.alive


@pytest.mark.req("S3-11")
@pytest.mark.parametrize("point", ["letters.add:before_commit", "letters.add:after_commit"])
def test_a_worker_that_dies_as_it_sets_a_message_aside_loses_it_not(rabbitmq_url, sqlite_url, tmp_path, point):
    with site(AgentSite, tmp_path, sqlite_url, rabbitmq_url) as place:
        doomed = place.agent("e-1", doom=point)
        send(place, envelope(priority=99), "work.echo")
        wait_until(lambda: not doomed.alive, "it has died")
        place.agent("e-1")
        wait_until(place.dead_letters, "a dead letter")
        serves(place)


@pytest.mark.req("S3-11")
def test_rabbitmq_puts_what_is_rejected_into_its_own_dead_letter_queue_as_well(rabbitmq_url, sqlite_url, tmp_path):
    with site(AgentSite, tmp_path, sqlite_url, rabbitmq_url) as place:
        place.agent("e-1")
        with Connection(rabbitmq_url) as connection:
            queue = dead_letter_queue().bind(connection.default_channel)
            queue.purge()
            document = envelope(priority=99)
            send(place, document, "work.echo")
            letters(place, 1)
            message = wait_until(lambda: queue.get(no_ack=True), "it is in the dead letter queue")
            assert document["message_id"] in str(message.payload)
