"""The way between a broker's topic exchange and the fleet; law: a message is forgotten when it is answered or set aside, never before.

A thread of the workers that consume the queue `fleet`, with a connection of its own: a slow command must not hold up the worker. One of
these workers, whoever has the lease, also tells the heartbeats of agents to whoever listens.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery, bootsteps
from celery.concurrency.prefork import TaskPool as PreforkPool
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.entity import binding
from kombu.mixins import ConsumerMixin

from orchestrator.bus import BINDINGS, EXCHANGE, METRICS_KEY, QUEUE, RESULTS_KEY, STATUS_KEY, Answer, Bus, heartbeat_of
from orchestrator.celery import Orchestrator, orchestrator_of
from orchestrator.errors import DatabaseUnavailable
from orchestrator.fleet import Fleet
from orchestrator.store import control
from schemas.agents import Agent, AgentFilter
from schemas.history import Json
from schemas.runs import DeadLetter

log = logging.getLogger("orchestrator.bus")

RELAYED = "orchestrator_relayed"  # header of what we publish ourselves
LEASE = "bus"
LEASE_S = 15.0
TELL_EVERY_S = 2.0
AGENTS_MAX = 1000
STOP_S = 5.0
RETRY_S = 1.0

TOPIC = Exchange(EXCHANGE, type="topic", durable=True)


def queue() -> Queue:
    """Where messages to the fleet wait."""
    return Queue(QUEUE, bindings=[binding(TOPIC, routing_key=key) for key in BINDINGS], durable=True)


class Listener(ConsumerMixin):
    """Consumes the bus, answers, and comes back when the broker does."""

    def __init__(self, orchestrator: Orchestrator, connection: Connection) -> None:
        settings = orchestrator.settings
        self.connection = connection
        self._orchestrator = orchestrator
        self._fleet = Fleet(settings, store=orchestrator.store, bell=orchestrator.broker, clock=orchestrator.clock)
        self._bus = Bus(self._fleet, orchestrator.store, orchestrator.clock)
        self._teller = Teller(orchestrator, self._fleet)
        self._level = logging.INFO if settings.console_heartbeats else logging.DEBUG

    def get_consumers(self, Consumer: Callable[..., Consumer], channel: Any) -> list[Any]:  # noqa: ANN401, N803 - kombu's signature
        """One consumer, one message at a time."""
        return [Consumer(queues=[queue()], on_message=self.on_message, accept=["json"], prefetch_count=1)]

    def on_message(self, message: Any) -> None:  # noqa: ANN401 - kombu's
        """Answer a message, or set it aside, then let the broker forget it."""
        key = str((message.delivery_info or {}).get("routing_key") or "")
        if (message.headers or {}).get(RELAYED):
            message.ack()
            return
        body = message.body if isinstance(message.body, bytes) else str(message.body).encode("utf-8", "replace")
        try:
            answer = self._bus.receive(key, body)
            if answer is not None and answer.letter:
                self._set_aside(message, key, body, answer)
        except DatabaseUnavailable as error:
            log.warning("a message of the bus waits: %s", error.message)
            self._orchestrator.clock.sleep(RETRY_S)
            message.requeue()
            return
        if answer is not None and answer.key:
            self.publish(answer.key, answer.body, correlation_id=message.properties.get("correlation_id"))
        message.ack()

    def on_iteration(self) -> None:
        """Between messages: tell what there is to tell."""
        for agent in self._teller.due():
            body = heartbeat_of(agent, clock=self._orchestrator.clock)
            log.log(self._level, "status of agent %s is told, trace %s", agent.id, body["trace_id"])
            for key in (STATUS_KEY, METRICS_KEY, RESULTS_KEY):
                self.publish(key, body)

    def on_connection_error(self, exc: BaseException, interval: float) -> None:
        """The broker is away; the mixin tries again."""
        log.warning("the bus has lost its broker and tries again in %s s: %s", interval, exc)

    def close(self) -> None:
        """End soon."""
        self.should_stop = True

    def publish(self, key: str, body: Mapping[str, Json], *, correlation_id: str | None = None) -> None:
        """Tell whoever listens to this key."""
        with self.connection.channel() as channel:
            producer = Producer(channel, exchange=TOPIC, auto_declare=True)
            producer.publish(dict(body), routing_key=key, serializer="json", headers={RELAYED: True}, correlation_id=correlation_id)

    def _set_aside(self, message: Any, key: str, body: bytes, answer: Answer) -> None:  # noqa: ANN401 - kombu's
        orchestrator = self._orchestrator
        document = {
            "code": answer.code.value,
            "routing_key": key,
            "content_type": str(message.content_type or ""),
            "body": body[: 64 * 1024].decode("utf-8", "replace"),
        }
        letter = DeadLetter(orchestrator.clock.fresh_id(), "message", answer.letter, 0.0, None, None, document)
        with orchestrator.store.transaction(purpose="letters.add") as tx:
            control.add_dead_letter(tx, letter)


class Teller:
    """Finds the agents that have been heard of since it looked last; only one worker of the fleet does."""

    def __init__(self, orchestrator: Orchestrator, fleet: Fleet) -> None:
        self._orchestrator = orchestrator
        self._fleet = fleet
        self._holder = orchestrator.clock.fresh_id()
        self._next_at = 0.0
        self._heard_at: float | None = None

    def due(self) -> list[Agent]:
        """Those that are to be told of now."""
        clock = self._orchestrator.clock
        if clock.monotonic() < self._next_at:
            return []
        self._next_at = clock.monotonic() + TELL_EVERY_S
        try:
            with self._orchestrator.store.transaction(purpose="bus.lease") as tx:
                mine, now = control.take_lease(tx, LEASE, self._holder, LEASE_S), tx.now()
            if not mine:
                self._heard_at = None
                return []
            since = now if self._heard_at is None else self._heard_at
            found = [agent for agent in self._fleet.list_agents(AgentFilter(limit=AGENTS_MAX)) if (agent.last_heartbeat_at or 0.0) > since]
        except DatabaseUnavailable:
            return []
        self._heard_at = max([since, *(agent.last_heartbeat_at or 0.0 for agent in found)])
        return found


class BusStep(bootsteps.StartStopStep):
    """The listener as a part of a worker of the fleet, where the settings want it."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
        self._listener: Listener | None = None
        self._thread: threading.Thread | None = None

    def include_if(self, worker: Any) -> bool:  # noqa: ANN401 - as above
        """Not in a worker that forks, nor where nobody wants it."""
        return orchestrator_of(worker.app).settings.bus and not issubclass(worker.pool_cls, PreforkPool)

    def start(self, worker: Any) -> None:  # noqa: ANN401 - as above
        """Listen, if this worker serves the fleet."""
        app: Celery = worker.app
        orchestrator = orchestrator_of(app)
        if orchestrator.settings.fleet_queue not in app.amqp.queues.consume_from:
            return
        self._listener = Listener(orchestrator, app.connection_for_write())
        self._thread = threading.Thread(target=self._listener.run, name="orchestrator-bus", daemon=True)
        self._thread.start()

    def stop(self, worker: Any) -> None:  # noqa: ANN401 - as above
        """Finish the message at hand."""
        if self._listener is not None and self._thread is not None:
            self._listener.close()
            self._thread.join(STOP_S)
