"""The bus with real workers, on each broker: a raw client of kombu commands the fleet, hears it, and cannot break it."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
from kombu import Connection, Exchange, Queue
from kombu.exceptions import OperationalError

from orchestrator.clock import SYSTEM
from orchestrator.fleet import Fleet
from schemas.agents import AgentSpec, Heartbeat
from tests.e2e.processes import Shop, broker_of, site, wait_until

TOPIC = Exchange("orchestrator.bus", type="topic", durable=True)


class Console:
    """A client that knows kombu and the routing keys, and nothing of ours."""

    def __init__(self, url: str) -> None:
        self.connection = Connection(url)
        self.channel = self.connection.channel()
        self.heard: list[tuple[str, dict[str, Any]]] = []

    def hears(self, *keys: str) -> None:
        queues = [Queue(f"console-{uuid4()}", TOPIC, routing_key=key, exclusive=True, auto_delete=True) for key in keys]
        consumer = self.connection.Consumer(queues, channel=self.channel, on_message=self._hear, no_ack=True)
        consumer.consume()

    def _hear(self, message) -> None:
        self.heard.append((message.delivery_info["routing_key"], message.decode()))

    def tell(self, key: str, body, **options) -> None:
        with self.connection.channel() as channel:
            producer = self.connection.Producer(channel, exchange=TOPIC)
            producer.publish(body, routing_key=key, **({"serializer": "json"} | options))

    def await_answer(self, key: str, fits, before=lambda: None) -> dict[str, Any]:
        def found():
            before()
            with suppress(TimeoutError, OSError, OperationalError):
                self.connection.drain_events(timeout=0.1)
            return [body for at, body in self.heard if at == key and fits(body)]

        first: dict[str, Any] = wait_until(found, f"an answer on {key}")[0]
        return first


def command(name, agent_id, **params):
    about = {name: str(uuid4()) for name in ("message_id", "request_id", "trace_id")}
    payload = {"type": "command", "command": name, "agent_id": agent_id, "params": params}
    return about | {"from_agent": "console", "timestamp": datetime.now(UTC).isoformat(), "payload": payload}


@pytest.fixture(params=["valkey", pytest.param("rabbitmq", marks=pytest.mark.slow)])
def shop(request, sqlite_url, tmp_path):
    server = request.getfixturevalue(request.param)
    broker = broker_of(server) if request.param == "valkey" else server.url
    with site(Shop, tmp_path, sqlite_url, broker) as opened:
        yield opened


@pytest.mark.req("S2-27", "S2-28", "S3-06", "S3-11")
def test_a_raw_client_commands_the_fleet_and_hears_it(shop):
    with Fleet(shop.settings, store=shop.store) as fleet:
        fleet.ready(AgentSpec(id="a.1", type="echo"), node="nobody@test", pid=1, pid_started_at=1.0, capabilities={})
        worker = shop.worker(queues="fleet", bus=True, console_heartbeats=True)
        console = Console(shop.broker_url)
        console.hears("agent.manager.response", "agent.a.1.response", "agent.status", "agent.metrics", "orchestrator.results")
        try:
            question = command("status", "a.1")

            def asked(body):
                return body["request_id"] == question["request_id"]

            # Again and again: the worker may not have bound its queue yet, and a topic exchange keeps nothing.
            answer = console.await_answer("agent.manager.response", asked, before=lambda: console.tell("agent.manager.query", question))
            assert answer["payload"]["result"]["desired"] == "running"
            console.tell("agent.manager.command", "no json at all", serializer="raw", content_type="text/plain", content_encoding="utf-8")
            console.tell("agent.status", {"half": "an envelope"})
            wait_until(lambda: len(shop.dead_letters()) >= 2, "both are set aside")
            order = command("stop", "a.1", drain_timeout_s=60)
            console.tell("agent.a.1.command", order)
            answer = console.await_answer("agent.a.1.response", lambda body: body["request_id"] == order["request_id"])
            assert answer["payload"]["result"]["state"] == "stopping"
            fleet.ready(AgentSpec(id="b", type="echo"), node="nobody@test", pid=2, pid_started_at=1.0, capabilities={})

            def beat():
                fleet.record_heartbeats([Heartbeat("b", 0.0, 1, "running", (), {"cpu": SYSTEM.random()})])

            for key in ("agent.status", "agent.metrics"):
                console.await_answer(key, lambda body: body.get("from_agent") == "b", before=beat)
            update = console.await_answer("orchestrator.results", lambda body: body.get("from_agent") == "b")
            assert update["payload"]["resources"].keys() >= {"cpu_percent", "memory_percent", "gpu_vram_available_mb", "gpu_vram_total_mb"}
            assert str(UUID(update["trace_id"])) in worker.text, "it is in the log under the same trace"
            assert UUID(update["request_id"])
            assert worker.alive, worker.text
        finally:
            console.connection.close()
