"""What requests and answers about the fleet look like; law: as `bodies`, and nothing lets a caller choose what an agent executes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import orjson
from fastapi import Path
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from orchestrator.api.bodies import Asked, Moment, Told, Whole, whole
from schemas.agents import ID_PATTERN, Agent, AgentCommand, AgentEvent, AgentSpec, AgentStatus, Summary, Work
from schemas.history import Json
from schemas.messages import Requirements, WorkResult

WORK_S_MAX = 7 * 86400
DRAIN_S_MAX = 86_400
TEXT_CHARACTERS_MAX = 2_000
URL_PATTERN = r"^https?://[A-Za-z0-9.\-_\[\]:]+(?:/[A-Za-z0-9._~\-/]*)?$"

AgentId = Annotated[str, Path(pattern=ID_PATTERN, description="the agent")]
Id = Annotated[str, Field(pattern=ID_PATTERN)]
Count = Annotated[int, Field(ge=1, le=1000), BeforeValidator(whole)]
Version = Annotated[int, Field(ge=1, lt=2**31), BeforeValidator(whole)]
Text = Annotated[str, Field(max_length=500)]


def exactly(model: type[BaseModel]) -> Any:  # noqa: ANN401 - an annotation
    """The model, read as strictly as from JSON: no number that is written as text, no other word for true."""

    def read(value: object) -> object:
        try:
            return model.model_validate_json(orjson.dumps(value), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            message = str(first["msg"]).removeprefix("Value error, ")
            # Braces would be taken for places to fill in.
            raise PydanticCustomError("body", "{told}", {"told": f"{place}: {message}" if place else message}) from None

    return Annotated[model, BeforeValidator(read)]


# --- what is asked --------------------------------------------------------------------------------------------------------------


class AgentChanges(Asked):
    """What may be changed of an agent. What it executes and where it stands are not among it."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "Planner", "heartbeat_interval_s": 5.0, "version": 3}]})

    name: str | None = Field(None, max_length=200)
    description: str | None = Field(None, max_length=2000)
    enabled: bool | None = None
    concurrency: Count | None = None
    heartbeat_interval_s: float | None = Field(None, gt=0, le=86400)
    flush_interval_s: float | None = Field(None, gt=0, le=86400)
    drain_timeout_s: float | None = Field(None, ge=0, le=86400)
    metadata: dict[str, Json] | None = None
    version: Version | None = Field(None, description="change it only if it has this version still")


class Why(Asked):
    """Why; it is kept with what happens."""

    reason: Text = ""


class Draining(Why):
    """How long it may take to finish what it has."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"drain_timeout_s": 30, "reason": "new version"}]})

    drain_timeout_s: float | None = Field(None, ge=0, le=DRAIN_S_MAX)


class Scaling(Why):
    """How many works more, or fewer, at once."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"delta": 2}]})

    delta: Whole = Field(ge=-1000, le=1000)


class Sequence(Why):
    """Commands to a child, in this order."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"sequence": ["stop", "flush", "shutdown"]}]})

    sequence: list[Literal["stop", "flush", "shutdown", "pause", "resume"]] = Field(min_length=1, max_length=100)


class WorkBody(Asked):
    """What an agent is to do."""

    parameters: dict[str, Json] = Field(default_factory=dict)
    work_type: str = Field("", max_length=200, description="one of its capabilities; empty: its only or first one")
    timeout_s: float | None = Field(None, gt=0, le=WORK_S_MAX, description="for one attempt")
    attempts_max: Count | None = None
    requirements: exactly(Requirements) = Requirements()  # type: ignore[valid-type] # made by a function
    priority: Whole = Field(5, ge=0, le=9)


class WorkOrder(WorkBody):
    """A work for one agent, or for any of a type that has what it requires."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"agent_type": "echo", "work_type": "echo", "parameters": {"text": "hello"}}]}
    )

    agent_type: Id | None = None
    agent_id: Id | None = None


class Execute(WorkBody):
    """A work for the agent of the address."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"work_type": "echo", "parameters": {"text": "hello"}}]})

    parameters: dict[str, Json]


# --- the façade of services ----------------------------------------------------------------------------------------------------


class Registration(Asked):
    """A service says where it answers."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": "planner", "serviceUrl": "http://127.0.0.1:8100", "metadata": {"name": "Planner"}}]}
    )

    id: Id
    serviceUrl: str = Field(max_length=2000, pattern=URL_PATTERN)  # noqa: N815 - the word of its callers
    metadata: dict[str, Json] = Field({}, max_length=100)


class Registered(Told):
    """It is known, for as long as it says that it lives."""

    id: str
    registered_at: Moment | None
    ttlSeconds: float  # noqa: N815 - the word of its callers


class SignOfLife(Asked):
    """A service says that it lives."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": "planner", "metrics": {"cpu": 0.03, "mem": 42.1}}]})

    id: Id
    status: str = Field("", max_length=50)
    current_task: str | None = Field(None, max_length=200)
    metrics: dict[str, Json] = Field({}, max_length=100)


class Unregistration(Asked):
    """A service says that it goes."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": "planner"}]})

    id: Id


class Unregistered(Told):
    """It is not in the registry any more; what happened to it stays known."""

    id: str
    registered: Literal[False] = False


class Action(Asked):
    """What a service is to do."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"action": "pause"}]})

    action: Literal["pause", "resume", "stop", "restart", "start", "flush"]


class ServiceView(Told):
    """A service in the registry."""

    id: str
    name: str
    serviceUrl: str  # noqa: N815 - the word of its callers
    metadata: dict[str, Json]
    status: str
    draining: bool
    registered: bool
    registered_at: Moment | None
    last_heartbeat: Moment | None
    discovery: str

    @classmethod
    def of(cls, agent: Agent, service_url: str) -> Self:
        """The view of an agent."""
        return cls(
            id=agent.id,
            name=agent.spec.title,
            serviceUrl=service_url,
            metadata=agent.spec.metadata,
            status=agent.status,
            draining=agent.status is AgentStatus.STOPPING,
            registered=agent.registered,
            registered_at=agent.registered_at,
            last_heartbeat=agent.last_heartbeat_at,
            discovery=agent.discovery,
        )


# --- what is told --------------------------------------------------------------------------------------------------------------


class AgentStanding(Told):
    """Where an agent stands."""

    agent_id: str
    status: AgentStatus
    draining: bool
    desired: str
    registered: bool
    health: str
    reason: str
    current_task: str | None = Field(description="the first of `current_work`")
    current_work: list[str] = Field(description="request ids")
    last_heartbeat: Moment | None
    drain_deadline: Moment | None
    resources: dict[str, Json] = Field(description="as its host measured them with the last heartbeat")
    metrics: dict[str, Json] = Field(description="its own, of the last heartbeat")
    restarts: int
    meta: dict[str, Json]

    @classmethod
    def of(cls, agent: Agent) -> Self:
        """The standing of an agent."""
        return cls(**standing(agent))


class AgentView(AgentStanding):
    """An agent: what it is, where it stands, what it shall be."""

    type: str
    kind: str
    name: str
    version: int = Field(description="raised by every change")
    discovery: str
    node: str
    pid: int | None
    service_url: str
    capabilities: dict[str, Json]
    created_at: Moment
    registered_at: Moment | None
    started_at: Moment | None
    last_flush: Moment | None
    last_summary: Moment | None
    flush_timeouts: int
    spec: AgentSpec

    @classmethod
    def of(cls, agent: Agent) -> Self:
        """The view of an agent."""
        return cls(
            **standing(agent),
            type=agent.spec.type,
            kind=agent.spec.kind,
            name=agent.spec.title,
            version=agent.version,
            discovery=agent.discovery,
            node=agent.node,
            pid=agent.pid,
            service_url=agent.service_url,
            capabilities=agent.capabilities,
            created_at=agent.created_at,
            registered_at=agent.registered_at,
            started_at=agent.started_at,
            last_flush=agent.last_flush_at,
            last_summary=agent.last_summary_at,
            flush_timeouts=agent.flush_timeouts,
            spec=agent.spec,
        )


class HealthOfAgent(Told):
    """How an agent does."""

    status: Literal["healthy", "degraded", "unknown"]
    agent_id: str = ""
    agent_status: str = ""
    registered: bool = False
    last_heartbeat: Moment | None = None


class EventView(Told):
    """Something that happened to an agent."""

    id: str
    agent_id: str
    at: Moment
    trigger: str
    before: str | None
    after: str | None
    reason: str
    meta: dict[str, Json]
    trace_id: str

    @classmethod
    def of(cls, event: AgentEvent) -> Self:
        """The view of an event."""
        return cls.model_validate(event)


class SummaryView(Told):
    """What an agent gathered; `document` is its own text, unchanged."""

    id: str
    agent_id: str
    at: Moment
    start: float | None
    end: float | None
    count: int | None
    document: str

    @classmethod
    def of(cls, summary: Summary) -> Self:
        """The view of a summary."""
        return cls.model_validate(summary)


class CommandView(Told):
    """What an agent was told, and what came of it."""

    id: str
    agent_id: str
    command: str
    params: dict[str, Json]
    actor: str
    at: Moment
    state: str
    result: dict[str, Json]
    error: str
    message: str
    trace_id: str

    @classmethod
    def of(cls, command: AgentCommand) -> Self:
        """The view of a command."""
        return cls.model_validate(command)


class WorkView(Told):
    """A work: accepted, and perhaps done."""

    request_id: UUID
    agent_type: str
    agent_id: str
    work_type: str
    status: Literal["accepted", "running", "success", "error"]
    actor: str
    trace_id: str
    accepted_at: Moment
    started_at: Moment | None
    completed_at: Moment | None
    executed_by: str
    executions: int
    result: WorkResult | None

    @classmethod
    def of(cls, work: Work) -> Self:
        """The view of a work."""
        begun: Literal["accepted", "running"] = "accepted" if work.started_at is None else "running"
        return cls(
            request_id=UUID(work.request_id),
            agent_type=work.agent_type,
            agent_id=work.agent_id,
            work_type=work.work_type,
            status=begun if work.result is None else work.result.status,
            actor=work.actor,
            trace_id=work.trace_id,
            accepted_at=work.accepted_at,
            started_at=work.started_at,
            completed_at=work.completed_at,
            executed_by=work.executed_by,
            executions=work.executions,
            result=work.result,
        )


def standing(agent: Agent) -> Mapping[str, Any]:
    """The fields of AgentStanding."""
    return {
        "agent_id": agent.id,
        "status": agent.status,
        "draining": agent.status is AgentStatus.STOPPING,
        "desired": agent.desired,
        "registered": agent.registered,
        "health": agent.health,
        "reason": agent.reason,
        "current_task": next(iter(agent.current_work), None),
        "current_work": list(agent.current_work),
        "last_heartbeat": agent.last_heartbeat_at,
        "drain_deadline": agent.drain_deadline_at,
        "resources": agent.last_resources,
        "metrics": agent.last_metrics,
        "restarts": agent.restarts,
        "meta": agent.meta,
    }
