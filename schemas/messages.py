"""What processes say to each other about agents: one envelope, its payloads, commands and answers; law: unknown keys are refused.

Everything between processes is JSON of these models, whatever carries it: Celery, a topic exchange, HTTP. What crosses a border is
validated here first, and what does not fit is a dead letter.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer

from schemas.codes import HTTP_STATUS as HTTP_STATUS  # noqa: PLC0414 - codes are words of messages too; `errors` alone wants nothing but them
from schemas.codes import ErrorCode as ErrorCode  # noqa: PLC0414 - as above

Json = Any

WORK_TYPE_CHARS_MAX = 200


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("must say its time zone, as in 2026-11-25T10:00:00Z")
    return value.astimezone(UTC)


def _rfc3339(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


Timestamp = Annotated[datetime, AfterValidator(_aware), PlainSerializer(_rfc3339, when_used="json")]
"""RFC 3339 in UTC."""


class Message(BaseModel):
    """The base of all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


# --- work ------------------------------------------------------------------------------------------------------------------


class Requirements(Message):
    """What an agent's machine must have free for a work."""

    min_free_mem_mb: float | None = Field(None, ge=0)
    gpu_vram_mb: float | None = Field(None, ge=0)
    max_load: float | None = Field(None, gt=0, description="one-minute load average per core")


class WorkRequest(Message):
    """Something an agent is to do."""

    type: Literal["work_request"] = "work_request"
    work_type: str = Field("", max_length=WORK_TYPE_CHARS_MAX, description="one of the agent's capabilities; empty: its only or first one")
    parameters: dict[str, Json] = Field(default_factory=dict)
    timeout_s: float | None = Field(None, gt=0, le=7 * 86400, description="for one attempt")
    attempts_max: int | None = Field(None, ge=1, le=1000, description="how often it may be tried when it raises; none: 1")
    requirements: Requirements = Requirements()


class WorkError(Message):
    """Why a work did not succeed."""

    code: str
    message: str
    details: Json = None
    retryable: bool = False


class WorkResources(Message):
    """What a work cost."""

    cpu_percent: float = 0.0
    memory_percent: float = 0.0
    rss_mb: float = 0.0
    duration_ms: float = 0.0


class WorkResult(Message):
    """What became of a work; exit_code 0 is success."""

    type: Literal["work_result"] = "work_result"
    agent_id: str = ""
    work_type: str = ""
    status: Literal["success", "error"] = "success"
    exit_code: int = 0
    output: Json = None
    error: WorkError | None = None
    resources: WorkResources = WorkResources()
    cached: bool = False
    started_at: Timestamp | None = None
    completed_at: Timestamp | None = None
    trace_id: UUID | None = None
    request_id: UUID | None = None


# --- what agents tell --------------------------------------------------------------------------------------------------------


class Resources(Message):
    """Vital signs of an agent's machine and process, as its host measured them."""

    cpu_percent: float = 0.0
    memory_percent: float = 0.0
    free_mem_mb: float = 0.0
    load: float = Field(0.0, description="one-minute load average per core")
    rss_mb: float = 0.0
    gpu_vram_available_mb: float = 0.0
    gpu_vram_total_mb: float = 0.0


class StatusUpdate(Message):
    """A heartbeat."""

    type: Literal["status_update"] = "status_update"
    agent_id: str
    agent_type: str = ""
    status: str
    current_work: tuple[str, ...] = ()
    seq: int = Field(0, ge=0)
    metrics: dict[str, Json] = Field(default_factory=dict, description="cpu, mem, queue, latency_ms: the agent's own")
    resources: Resources = Resources()
    metadata: dict[str, Json] = Field(default_factory=dict)


class SummaryReport(Message):
    """What an agent gathered since its last flush; `data` is passed on untouched."""

    type: Literal["summary"] = "summary"
    agent_id: str
    data: Json


class Ack(Message):
    """A command has arrived, or is done."""

    type: Literal["ack"] = "ack"
    ack_command: str
    state: Literal["accepted", "done"] = "done"


class ErrorReport(Message):
    """Something went wrong in an agent."""

    type: Literal["error"] = "error"
    message: str
    code: str = ""
    details: Json = None


# --- commands ----------------------------------------------------------------------------------------------------------------


class CommandName(StrEnum):
    """What an agent can be told."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    STATUS = "status"
    PAUSE = "pause"
    RESUME = "resume"
    FLUSH = "flush"
    SHUTDOWN = "shutdown"
    SEQUENCE = "sequence"
    SCALE = "scale"
    HEALTH = "health"
    METRICS = "metrics"
    LOGS = "logs"


class CommandParams(Message):
    """Parameters of commands; nothing that would let a caller choose what is executed."""

    sequence: tuple[Literal["stop", "flush", "shutdown", "pause", "resume"], ...] = ()
    drain_timeout_s: float | None = Field(None, ge=0, le=86400)
    delta: int | None = Field(None, ge=-1000, le=1000)
    lines: int | None = Field(None, ge=1, le=10_000)
    reason: str = Field("", max_length=500)


class Command(Message):
    """An agent command as it travels."""

    type: Literal["command"] = "command"
    command: CommandName
    agent_id: str
    params: CommandParams = CommandParams()
    timestamp: Timestamp | None = None


class ErrorBody(Message):
    """A refusal, for machines and for people."""

    code: ErrorCode
    message: str
    details: Json = None


class CommandResponse(Message):
    """The answer to a command."""

    type: Literal["response"] = "response"
    status: Literal["success", "error"] = "success"
    command: str = ""
    agent_id: str = ""
    result: dict[str, Json] = Field(default_factory=dict)
    error: ErrorBody | None = None
    timestamp: Timestamp | None = None


# --- the envelope ------------------------------------------------------------------------------------------------------------

Payload = Annotated[
    WorkRequest | WorkResult | StatusUpdate | SummaryReport | Ack | ErrorReport | Command | CommandResponse,
    Field(discriminator="type"),
]


class MessageEnvelope(Message):
    """What surrounds every message: who, to whom, about what, and under which key it counts once."""

    protocol_version: Literal["1.0"] = "1.0"
    message_id: UUID
    from_agent: str = Field("manager", max_length=100)
    to_agent: str | None = Field(None, max_length=100, description="none: any agent of `agent_type`")
    agent_type: str = Field("", max_length=100)
    trace_id: UUID
    request_id: UUID = Field(description="the idempotency key")
    traceparent: str | None = Field(None, max_length=200, description="W3C Trace Context")
    correlation_id: UUID | None = Field(None, description="the message that this one answers")
    timestamp: Timestamp
    priority: int = Field(5, ge=0, le=9)
    session_key: str | None = Field(None, max_length=1000)
    expires_at: Timestamp | None = None
    attempt: int = Field(1, ge=1)
    payload: Payload
