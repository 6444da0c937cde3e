"""The tables of the fleet, beside those of the engine (`tables`); law: what beats often is narrow and stands apart from what changes rarely."""

from typing import Any, ClassVar

from sqlalchemy import Boolean, Float, Index, Integer, Text
from sqlmodel import Field, SQLModel

from orchestrator.store.tables import CLUSTERED, BigId, partial


class AgentTable(SQLModel, table=True):
    """What an agent is, where it stands, what it shall be."""

    __tablename__ = "agents"
    __table_args__: ClassVar[Any] = (
        Index("agents_by_type", "type", "status"),
        partial("agents_by_node", "node", where="node <> ''"),
        CLUSTERED,
    )

    agent_id: str = Field(sa_type=Text, primary_key=True)
    type: str = Field(sa_type=Text)
    kind: str = Field(sa_type=Text)
    spec: str = Field(sa_type=Text)
    status: str = Field(sa_type=Text)
    desired: str = Field(sa_type=Text)
    version: int = Field(sa_type=Integer)
    registered: bool = Field(sa_type=Boolean)
    registered_at: float | None = Field(sa_type=Float(53))
    created_at: float = Field(sa_type=Float(53))
    reason: str = Field(sa_type=Text)
    node: str = Field(sa_type=Text)
    keeper: str = Field(sa_type=Text)
    pid: int | None = Field(sa_type=Integer)
    pid_started_at: float | None = Field(sa_type=Float(53))
    service_url: str = Field(sa_type=Text)
    discovery: str = Field(sa_type=Text)
    capabilities: str = Field(sa_type=Text)
    restarts: int = Field(sa_type=Integer)
    drain_deadline_at: float | None = Field(sa_type=Float(53))
    started_at: float | None = Field(sa_type=Float(53))
    meta: str = Field(sa_type=Text)


class AgentVitalsTable(SQLModel, table=True):
    """How an agent was when it last spoke: written with every heartbeat, many in one statement, and never indexed."""

    __tablename__ = "agent_vitals"
    __table_args__: ClassVar[Any] = (CLUSTERED,)

    agent_id: str = Field(sa_type=Text, primary_key=True)
    last_heartbeat_at: float | None = Field(sa_type=Float(53))
    seq: int = Field(sa_type=Integer)
    current_work: str = Field(sa_type=Text)
    metrics: str = Field(sa_type=Text)
    resources: str = Field(sa_type=Text)
    last_flush_at: float | None = Field(sa_type=Float(53))
    last_summary_at: float | None = Field(sa_type=Float(53))
    flush_timeouts: int = Field(sa_type=Integer)
    flush_overdue: bool = Field(sa_type=Boolean)


class AgentEventTable(SQLModel, table=True):
    """What happened to agents; appended."""

    __tablename__ = "agent_events"
    __table_args__: ClassVar[Any] = (Index("agent_events_by_agent", "agent_id", "id"), {"sqlite_autoincrement": True})

    id: int | None = Field(default=None, sa_type=BigId, primary_key=True)
    agent_id: str = Field(sa_type=Text)
    at: float = Field(sa_type=Float(53))
    trigger: str = Field(sa_type=Text)
    before: str | None = Field(sa_type=Text)
    after: str | None = Field(sa_type=Text)
    reason: str = Field(sa_type=Text)
    meta: str = Field(sa_type=Text)
    trace_id: str = Field(sa_type=Text)


class HeartbeatTable(SQLModel, table=True):
    """Signs of life, as long as they are kept."""

    __tablename__ = "heartbeats"
    __table_args__: ClassVar[Any] = (CLUSTERED,)

    agent_id: str = Field(sa_type=Text, primary_key=True)
    at: float = Field(sa_type=Float(53), primary_key=True)
    seq: int = Field(sa_type=Integer)
    status: str = Field(sa_type=Text)
    current_work: str = Field(sa_type=Text)
    metrics: str = Field(sa_type=Text)
    resources: str = Field(sa_type=Text)


class SummaryTable(SQLModel, table=True):
    """What agents gathered; `document` is their own text."""

    __tablename__ = "summaries"
    __table_args__: ClassVar[Any] = (Index("summaries_by_agent", "agent_id", "at"), CLUSTERED)

    id: str = Field(sa_type=Text, primary_key=True)
    agent_id: str = Field(sa_type=Text)
    at: float = Field(sa_type=Float(53))
    start: float | None = Field(sa_type=Float(53))
    end: float | None = Field(sa_type=Float(53))
    count: int | None = Field(sa_type=Integer)
    document: str = Field(sa_type=Text)


class AgentCommandTable(SQLModel, table=True):
    """What agents were told, and what came of it."""

    __tablename__ = "agent_commands"
    __table_args__: ClassVar[Any] = (Index("agent_commands_by_agent", "agent_id", "at"), CLUSTERED)

    id: str = Field(sa_type=Text, primary_key=True)
    agent_id: str = Field(sa_type=Text)
    command: str = Field(sa_type=Text)
    params: str = Field(sa_type=Text)
    actor: str = Field(sa_type=Text)
    at: float = Field(sa_type=Float(53))
    state: str = Field(sa_type=Text)
    result: str = Field(sa_type=Text)
    error: str = Field(sa_type=Text)
    message: str = Field(sa_type=Text)
    expires_at: float | None = Field(sa_type=Float(53))
    trace_id: str = Field(sa_type=Text)


class WorkTable(SQLModel, table=True):
    """Works by their idempotency key: accepted, and later their result."""

    __tablename__ = "works"
    __table_args__: ClassVar[Any] = (
        partial("works_open", "agent_id", where="completed_at IS NULL"),
        partial("works_done", "completed_at", where="completed_at IS NOT NULL"),
        CLUSTERED,
    )

    request_id: str = Field(sa_type=Text, primary_key=True)
    agent_id: str = Field(sa_type=Text)  # of whom it was asked; empty: any of the type
    agent_type: str = Field(sa_type=Text)
    work_type: str = Field(sa_type=Text)
    fingerprint: str = Field(sa_type=Text)  # the same key with another body is a mistake
    trace_id: str = Field(sa_type=Text)
    actor: str = Field(sa_type=Text)
    accepted_at: float = Field(sa_type=Float(53))
    started_at: float | None = Field(sa_type=Float(53))
    completed_at: float | None = Field(sa_type=Float(53))
    executed_by: str = Field(sa_type=Text)
    executions: int = Field(sa_type=Integer)  # how often it was begun
    status: str | None = Field(sa_type=Text)
    exit_code: int | None = Field(sa_type=Integer)
    result: str | None = Field(sa_type=Text)


class AuditTable(SQLModel, table=True):
    """Who did what; appended."""

    __tablename__ = "audit_log"
    __table_args__: ClassVar[Any] = (Index("audit_log_by_target", "target", "id"), {"sqlite_autoincrement": True})

    id: int | None = Field(default=None, sa_type=BigId, primary_key=True)
    at: float = Field(sa_type=Float(53))
    actor: str = Field(sa_type=Text)
    action: str = Field(sa_type=Text)
    target: str = Field(sa_type=Text)
    outcome: str = Field(sa_type=Text)
    params: str = Field(sa_type=Text)
    trace_id: str = Field(sa_type=Text)


class ApiTokenTable(SQLModel, table=True):
    """Keys to the API, of which only hashes are kept."""

    __tablename__ = "api_tokens"
    __table_args__: ClassVar[Any] = (Index("api_tokens_by_hash", "hash", unique=True), CLUSTERED)

    id: str = Field(sa_type=Text, primary_key=True)
    name: str = Field(sa_type=Text)
    role: str = Field(sa_type=Text)
    hash: str = Field(sa_type=Text)
    created_at: float = Field(sa_type=Float(53))
    expires_at: float | None = Field(sa_type=Float(53))
    revoked_at: float | None = Field(sa_type=Float(53))
    last_used_at: float | None = Field(sa_type=Float(53))
