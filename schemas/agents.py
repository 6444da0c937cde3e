"""The fleet as records: what an agent is, where it stands, what it did; law: values only, strict, and the same words everywhere.

`AgentSpec` is what people write down, `Agent` what the store knows. Times are seconds since the epoch (UTC) by the database's clock.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from schemas.messages import WorkResult

Json = Any

ID_PATTERN = r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$"
"""Ids and types become parts of queue names, node names and file names: letters, digits, `.`, `_`, `-`, at most 100."""


class AgentKind(StrEnum):
    """How an agent runs."""

    NATIVE = "native"  # a Celery worker with an Agent class in it
    CHILD = "child"  # a process that speaks JSON lines over its pipes to the worker that hosts it
    HTTP = "http"  # a service of its own


class AgentStatus(StrEnum):
    """Where an agent stands; `orchestrator.core.machines` has the table of what leads where."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"  # draining: takes nothing more, finishes what it has
    STOPPED = "stopped"
    ERROR = "error"
    INACTIVE = "inactive"  # silent for too long


class DesiredState(StrEnum):
    """What its operator wants an agent to be; applied again whenever it comes back."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class Health(StrEnum):
    """How an agent does, apart from where it stands."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNKNOWN = "unknown"


class RestartMode(StrEnum):
    """How a restart replaces the process."""

    AUTO = "auto"  # execv where the platform and the way it was started allow it, else respawn
    EXECV = "execv"
    RESPAWN = "respawn"


class AgentSpec(BaseModel):
    """What an agent is, as its operator wrote it down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=ID_PATTERN, description="unique in the fleet")
    type: str = Field(pattern=ID_PATTERN, description="class of work; its queue is work.<type>")
    kind: AgentKind = Field(AgentKind.NATIVE, description="native, child or http")
    name: str = Field("", max_length=200, description="for people; the id if empty")
    description: str = Field("", max_length=2000, description="what it does, for people")
    version: str = Field("", max_length=100, description="of the agent, for people")
    enabled: bool = Field(default=True, description="start it when the fleet starts")
    executable: str = Field("", description="program of a child or of a service; `python` means the running interpreter")
    args: tuple[str, ...] = Field((), description="its arguments; never given to a shell")
    entry_point: str = Field("", description="native: `module:Class`; http: a script to run with the running interpreter")
    host: str = Field("", description="node name of the agent host that is to run it; empty: any")
    port: int | None = Field(None, ge=1, le=65535, description="of its HTTP adapter or service; none: an ephemeral one")
    service_url: str = Field("", description="http: where the service answers; found by registration if empty")
    concurrency: int = Field(1, ge=1, le=1000, description="works at once")
    heartbeat_interval_s: float = Field(15.0, gt=0, le=86400, description="between two signs of life")
    flush_interval_s: float = Field(60.0, gt=0, le=86400, description="between two summaries")
    drain_timeout_s: float | None = Field(None, ge=0, le=86400, description="none: that of the settings")
    restart_mode: RestartMode = Field(RestartMode.AUTO, description="how a restart replaces its process: auto, execv or respawn")
    metadata: dict[str, Json] = Field(default_factory=dict, description="whatever its operator wants to see again")

    @field_validator("args", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError("must be a list of arguments, not one string: nothing splits it")  # noqa: TRY004 - what pydantic turns into a message
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _runnable(self) -> AgentSpec:
        if self.kind is AgentKind.CHILD and not self.executable:
            raise ValueError(f"agent {self.id!r} is a child, so it needs an executable")
        return self

    @property
    def title(self) -> str:
        """The name for people."""
        return self.name or self.id


@dataclass(frozen=True, slots=True)
class Agent:
    """One member of the fleet as the store knows it."""

    spec: AgentSpec
    status: AgentStatus
    desired: DesiredState
    version: int  # raised by every change of state: who decides on an older one decides nothing
    registered: bool = False  # heard of lately
    registered_at: float | None = None
    created_at: float = 0.0
    health: Health = Health.UNKNOWN
    reason: str = ""  # why it stands where it stands
    node: str = ""  # Celery node name of the worker that hosts it
    keeper: str = ""  # node name of the agent host that started its process, and sees it end
    pid: int | None = None
    pid_started_at: float | None = None
    service_url: str = ""
    discovery: str = "config"  # config, package, registration, or api
    capabilities: dict[str, Json] = field(default_factory=dict)
    current_work: tuple[str, ...] = ()  # request ids
    last_heartbeat_at: float | None = None
    last_metrics: dict[str, Json] = field(default_factory=dict)  # as the agent reported them
    last_resources: dict[str, Json] = field(default_factory=dict)  # as its host measured them
    last_flush_at: float | None = None  # asked for
    last_summary_at: float | None = None
    flush_timeouts: int = 0
    restarts: int = 0  # since it last ran well
    drain_deadline_at: float | None = None
    meta: dict[str, Json] = field(default_factory=dict)  # of the last change: exit_code, last_seen, forced
    started_at: float | None = None

    @property
    def id(self) -> str:
        """The id of its spec."""
        return self.spec.id


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """Something that happened to an agent; a change of state if `before` and `after` differ."""

    id: str
    agent_id: str
    at: float
    trigger: str
    before: AgentStatus | None = None
    after: AgentStatus | None = None
    reason: str = ""
    meta: dict[str, Json] = field(default_factory=dict)
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """A sign of life of an agent; health, never added up."""

    agent_id: str
    at: float
    seq: int = 0
    status: str = ""
    current_work: tuple[str, ...] = ()
    metrics: dict[str, Json] = field(default_factory=dict)  # cpu, mem, queue, latency_ms: the agent's own
    resources: dict[str, Json] = field(default_factory=dict)  # `schemas.messages.Resources`, as its host measured them


@dataclass(frozen=True, slots=True)
class Summary:
    """What an agent gathered between two flushes; `document` is its own text, unchanged."""

    id: str
    agent_id: str
    at: float
    document: str
    start: float | None = None
    end: float | None = None
    count: int | None = None


class CommandState(StrEnum):
    """What has become of an agent command."""

    PENDING = "pending"
    RUNNING = "running"  # its supervisor acts on it
    DONE = "done"
    FAILED = "failed"
    EXPIRED = "expired"  # nobody acted in time; nobody will


@dataclass(frozen=True, slots=True)
class AgentCommand:
    """What an operator or a schedule told an agent."""

    id: str
    agent_id: str
    command: str
    params: dict[str, Json]
    actor: str
    at: float
    state: CommandState = CommandState.PENDING
    result: dict[str, Json] = field(default_factory=dict)
    error: str = ""  # a code of `schemas.messages.ErrorCode`
    message: str = ""
    expires_at: float | None = None
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class Work:
    """Something an agent was asked to do, known by its request id; `result` once it is done."""

    request_id: str
    agent_type: str
    agent_id: str = ""  # of whom it was asked; empty: any of the type
    work_type: str = ""
    fingerprint: str = ""  # of all that was asked: the same id with another fingerprint is a mistake
    trace_id: str = ""
    actor: str = ""
    accepted_at: float = 0.0
    started_at: float | None = None
    completed_at: float | None = None
    executed_by: str = ""  # the agent that began it last
    executions: int = 0  # how often it was begun; more than once after a crash or a retry
    result: WorkResult | None = None


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who did what, and whether it was allowed; appended, never changed."""

    id: str
    at: float
    actor: str
    action: str
    target: str
    outcome: str  # ok, or the code of the refusal
    params: dict[str, Json] = field(default_factory=dict)
    trace_id: str = ""


@dataclass(frozen=True, slots=True)
class AgentFilter:
    """Which agents to list; empty means all."""

    status: AgentStatus | None = None
    type: str | None = None
    registered: bool | None = None
    limit: int = 100
    offset: int = 0
