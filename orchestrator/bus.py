"""The fleet on a topic exchange: what arrives there, and what is answered; law: the same service as HTTP, every message checked, every act audited.

| key | what |
|---|---|
| agent.manager.command, agent.<id>.command | an envelope around a Command, or the four fields of one; answered on ….response |
| agent.manager.query, agent.<id>.query | the same, for questions: status, health, metrics |
| agent.status, agent.metrics | heartbeats of agents, in and out |

Nothing here knows a broker: `workers.bus` brings messages and takes answers away.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import orjson
from pydantic import ValidationError

from orchestrator.auditing import audited, code_of
from orchestrator.clock import Clock, utc
from orchestrator.errors import FleetError, OrchestratorError
from orchestrator.fleet import Fleet
from orchestrator.store import Store
from schemas.agents import Agent, Heartbeat
from schemas.codes import ErrorCode
from schemas.history import Json
from schemas.messages import Command, CommandName, CommandResponse, ErrorBody, Message, MessageEnvelope, Resources, StatusUpdate

M = TypeVar("M", bound=Message)

EXCHANGE = "orchestrator.bus"
QUEUE = "orchestrator.bus"
BINDINGS = ("agent.#.command", "agent.#.query", "agent.status", "agent.metrics")
STATUS_KEY, METRICS_KEY = "agent.status", "agent.metrics"
RESULTS_KEY = "orchestrator.results"  # where others expect status updates: bind a queue of that name to keep them
MANAGER = "manager"
QUESTIONS = frozenset({CommandName.STATUS, CommandName.HEALTH, CommandName.METRICS})
ANSWERS_MAX = 1000  # remembered, so that a message that comes twice counts once
BODY_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Answer:
    """What is to be published, and where; `letter` is why the message itself is to be set aside."""

    key: str = ""
    body: Mapping[str, Json] = field(default_factory=dict)
    letter: str = ""
    code: ErrorCode = ErrorCode.INVALID_ENVELOPE


class Bus:
    """Answers messages. One at a time, from one thread."""

    def __init__(self, fleet: Fleet, store: Store, clock: Clock) -> None:
        self._fleet = fleet
        self._store = store
        self._clock = clock
        self._answers: OrderedDict[UUID, Answer] = OrderedDict()

    def receive(self, key: str, body: bytes) -> Answer | None:
        """What a message brings about; None: nothing is to be answered. Raises DatabaseUnavailable: it must come again."""
        given: Any = None
        try:
            given = _object(body)
            if key in {STATUS_KEY, METRICS_KEY}:
                self._heard(_envelope(given))
                return None
            return self._told(key, given)
        except FleetError as error:
            return self._refused(key, given, error)

    def _told(self, key: str, given: Mapping[str, Any]) -> Answer:
        bare = "payload" not in given
        envelope = None if bare else _envelope(given)
        command = _command(given) if envelope is None else envelope.payload
        if not isinstance(command, Command):
            raise FleetError(f"{key} takes commands, not {command.type}", code=ErrorCode.INVALID_ENVELOPE)
        if envelope is not None and envelope.request_id in self._answers:
            return self._answers[envelope.request_id]
        addressee = key.removeprefix("agent.").rpartition(".")[0]
        if addressee not in {MANAGER, command.agent_id}:
            raise FleetError(f"{key} takes no commands for {command.agent_id!r}", code=ErrorCode.INVALID_ENVELOPE)
        if envelope is not None and envelope.expires_at is not None and envelope.expires_at.timestamp() < self._clock.now():
            raise FleetError(f"the command expired at {envelope.expires_at.isoformat()}", code=ErrorCode.INVALID_ENVELOPE)
        answer = Answer(f"agent.{addressee}.response", self._around(envelope, self._carried_out(key, command, envelope)))
        if envelope is not None:
            self._answers[envelope.request_id] = answer
            while len(self._answers) > ANSWERS_MAX:
                self._answers.popitem(last=False)
        return answer

    def _carried_out(self, key: str, command: Command, envelope: MessageEnvelope | None) -> CommandResponse:
        asks = key.endswith(".query")
        name = command.command
        try:
            if asks != (name in QUESTIONS):
                hint = "is a question; ask on a key that ends with .query" if name in QUESTIONS else "is an order; give it on …command"
                raise FleetError(f"{name} {hint}", code=ErrorCode.UNKNOWN_COMMAND)
            if asks:
                return self._response(command, _standing(self._fleet.get(command.agent_id)))
            actor = f"bus:{envelope.from_agent if envelope else 'unknown'}"
            trace_id = envelope.trace_id.hex if envelope else ""
            params = command.params.model_dump(exclude_defaults=True, mode="json")
            with audited(self._store, actor=actor, action=f"agent.{name}", target=f"agent:{command.agent_id}", params=params):
                done = self._fleet.command(command.agent_id, name, command.params, actor=actor, trace_id=trace_id)
            return done.model_copy(update={"timestamp": utc(self._clock.now())})
        except OrchestratorError as error:
            if code_of(error) is ErrorCode.DATABASE_UNAVAILABLE:
                raise
            return self._response(command, {}, ErrorBody(code=code_of(error), message=error.message))

    def _refused(self, key: str, given: Any, error: FleetError) -> Answer:  # noqa: ANN401 - any JSON
        """An answer to whom one can be given, and the reason to set the message aside."""
        if key in {STATUS_KEY, METRICS_KEY} or not isinstance(given, dict):
            return Answer(letter=error.message, code=error.code)
        payload = given.get("payload")
        inner: Mapping[str, Any] = payload if isinstance(payload, dict) else given
        response = CommandResponse(
            status="error",
            command=str(inner.get("command", ""))[:100],
            agent_id=str(inner.get("agent_id", ""))[:100],
            error=ErrorBody(code=error.code, message=error.message),
            timestamp=utc(self._clock.now()),
        )
        addressee = key.removeprefix("agent.").rpartition(".")[0]
        body = _plain(response)
        known = {name: given[name] for name in ("request_id", "trace_id", "message_id") if isinstance(given.get(name), str)}
        if "payload" in given:
            body = {"payload": body, "request_id": known.get("request_id"), "correlation_id": known.get("message_id")}
        return Answer(f"agent.{addressee}.response", body, letter=error.message, code=error.code)

    def _heard(self, envelope: MessageEnvelope) -> None:
        """A sign of life. What it says of its own state is believed where it can be true, and else noted."""
        update = envelope.payload
        if not isinstance(update, StatusUpdate):
            raise FleetError(f"{STATUS_KEY} takes status updates, not {update.type}", code=ErrorCode.INVALID_ENVELOPE)
        if envelope.from_agent != update.agent_id:
            raise FleetError(f"{envelope.from_agent!r} speaks for {update.agent_id!r}", code=ErrorCode.INVALID_ENVELOPE)
        self._fleet.get(update.agent_id)
        beat = Heartbeat(
            update.agent_id,
            0.0,
            update.seq,
            update.status[:50],
            update.current_work,
            update.metrics,
            update.resources.model_dump(exclude_unset=True),
        )
        self._fleet.record_heartbeats([beat])
        if update.status in ENDS:
            self._fleet.exited(update.agent_id, ENDS[update.status], reason=str(update.metadata.get("reason") or "as it says")[:500])

    def _around(self, envelope: MessageEnvelope | None, response: CommandResponse) -> Mapping[str, Json]:
        """The answer as whoever asked speaks: bare, or in an envelope."""
        if envelope is None:
            return _plain(response)
        answer = MessageEnvelope(
            message_id=UUID(self._clock.fresh_id()),
            from_agent=MANAGER,
            to_agent=envelope.from_agent,
            agent_type=envelope.agent_type,
            trace_id=envelope.trace_id,
            request_id=envelope.request_id,
            traceparent=envelope.traceparent,
            correlation_id=envelope.message_id,
            timestamp=utc(self._clock.now()),
            payload=response,
        )
        return answer.model_dump(mode="json") | {"payload": _plain(response)}

    def _response(self, command: Command, result: Mapping[str, Json], error: ErrorBody | None = None) -> CommandResponse:
        return CommandResponse(
            status="error" if error else "success",
            command=command.command.value,
            agent_id=command.agent_id,
            result=dict(result),
            error=error,
            timestamp=utc(self._clock.now()),
        )


ENDS: Mapping[str, int] = {"stopped": 0, "error": 1}
"""What an agent may say of its own end, as the exit code of its process."""


def heartbeat_of(agent: Agent, *, clock: Clock) -> Mapping[str, Json]:
    """The last heartbeat of an agent, as others on the bus see it."""
    request_id = UUID(clock.fresh_id())
    known = {name: value for name, value in agent.last_resources.items() if name in Resources.model_fields}
    envelope = MessageEnvelope(
        message_id=UUID(clock.fresh_id()),
        from_agent=agent.id,
        to_agent=MANAGER,
        agent_type=agent.spec.type,
        trace_id=request_id,
        request_id=request_id,
        timestamp=utc(agent.last_heartbeat_at or 0.0),
        payload=StatusUpdate(
            agent_id=agent.id,
            agent_type=agent.spec.type,
            status=agent.status.value,
            current_work=agent.current_work,
            metrics=agent.last_metrics,
            resources=Resources(**known),
        ),
    )
    return envelope.model_dump(mode="json")


def _standing(agent: Agent) -> Mapping[str, Json]:
    return {
        "status": agent.status.value,
        "desired": agent.desired.value,
        "health": agent.health.value,
        "registered": agent.registered,
        "current_work": list(agent.current_work),
        "last_heartbeat": None if agent.last_heartbeat_at is None else utc(agent.last_heartbeat_at).isoformat(),
        "metrics": agent.last_metrics,
        "resources": agent.last_resources,
    }


def _plain(response: CommandResponse) -> dict[str, Json]:
    """As JSON; exactly one of `result` and `error` is there."""
    told: dict[str, Json] = response.model_dump(mode="json")
    return told | ({"result": None} if response.error is not None else {})


def _object(body: bytes) -> Any:  # noqa: ANN401 - any JSON
    if len(body) > BODY_BYTES_MAX:
        raise FleetError(f"the message has {len(body):,} bytes; at most {BODY_BYTES_MAX:,} are read", code=ErrorCode.PAYLOAD_TOO_LARGE)
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise FleetError(f"the message is no JSON: {error}", code=ErrorCode.INVALID_ENVELOPE) from None
    if not isinstance(found, dict):
        raise FleetError("the message is no JSON object", code=ErrorCode.INVALID_ENVELOPE)
    return found


def _envelope(given: Mapping[str, Any]) -> MessageEnvelope:
    return _checked(MessageEnvelope, given)


def _command(given: Mapping[str, Any]) -> Command:
    return _checked(Command, given)


def _checked(kind: type[M], given: Mapping[str, Any]) -> M:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        inner = given.get("payload", given)
        named = inner.get("command") if isinstance(inner, dict) else None
        unknown = place.endswith("command") and named is not None and named not in list(CommandName)
        code = ErrorCode.UNKNOWN_COMMAND if unknown else ErrorCode.INVALID_ENVELOPE
        raise FleetError(f"{place}: {first['msg']}", code=code) from None
