"""Every setting with its unit, default and reason; law: a frozen snapshot, read once, passed down. Loading is `orchestrator.settings`."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """What a deployment can choose. Environment variables are ORCHESTRATOR_ and the name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # --- where things are
    home: Path = Field(Path(".orchestrator"), description="folder of the embedded stack: SQLite file, broker's files, logs")
    database_url: str = Field("", description="sqlite:///file or postgresql+psycopg://user@host/name; empty: a SQLite file in `home`")
    broker_url: str = Field("", description="redis://, redis+socket://, amqp://; empty: the embedded broker of `home`")
    broker_binary: str = Field("", description="a valkey-server or redis-server to embed instead of the one that came with the package")
    include: tuple[str, ...] = Field((), description="modules with workflows, activities and Celery tasks that workers import")
    default_queue: str = Field("default", description="queue of workflows that name none")
    build: str = Field("", description="name of the deployed version; recorded with every turn")

    # --- leases and sweeps, seconds
    lease_s: float = Field(15.0, gt=0, description="a worker that is silent for this long is taken for dead")
    lease_beat_s: float = Field(4.0, gt=0, description="how often a worker extends its lease; three missed ones are within the lease")
    neighbours_s: float = Field(1.0, gt=0, description="how often a worker looks for dead processes on its own host")
    poll_s: float = Field(1.0, gt=0, description="how often a worker looks for work that no message told it of")
    heartbeat_flush_s: float = Field(0.5, gt=0, description="how often signs of life of activities are written, all in one statement")
    beat_lease_s: float = Field(5.0, gt=0, description="how long the other beats wait for the active one")
    tick_s: float = Field(0.25, gt=0, description="longest pause between two ticks of beat")
    forgotten_s: float = Field(1.0, gt=0, description="work that waits for longer than this is rung for again")
    turn_seconds_max: float = Field(2.0, gt=0, description="workflow code that does not yield for this long fails its turn")
    drain_s: float = Field(30.0, ge=0, description="how long a stopping worker waits for its running activities")
    question_s: float = Field(60.0, gt=0, description="how long an unanswered query is kept")

    # --- limits
    payload_bytes_max: int = Field(2 * 1024 * 1024, gt=0, description="one argument, result or signal, as JSON")
    claim_batch_max: int = Field(128, ge=1, description="runs claimed in one transaction")
    inbox_max: int = Field(1_000, ge=1, description="arrivals that one turn consumes")
    instances_max: int = Field(10_000, ge=0, description="runs kept in memory between turns")
    eager_s: float = Field(0.25, ge=0, description="a worker takes on eager activities for at most this many seconds of its threads")
    due_batch_max: int = Field(1_000, ge=1, description="due timers, timeouts and recoveries handled in one transaction")

    # --- the fleet
    fleet_queue: str = Field("fleet", description="queue of the workflows that supervise agents; agent hosts and managers consume it")
    heartbeat_timeout_s: float = Field(60.0, gt=0, description="an agent that is silent for this long, or for two intervals, is inactive")
    registry_ttl_s: float = Field(30.0, gt=0, description="one that is silent for this long, or for two intervals, leaves the registry")
    agent_drain_s: float = Field(30.0, ge=0, description="how long a stopping agent may finish its work; its spec may say otherwise")
    terminate_grace_s: float = Field(5.0, ge=0, description="between asking a process to end and killing it")
    start_timeout_s: float = Field(30.0, gt=0, description="how long a started agent may take until it is ready")
    flush_timeout_s: float = Field(10.0, gt=0, description="an agent that owes a summary for longer than this is degraded")
    restarts_max: int = Field(5, ge=0, description="restarts of a crashing agent within restart_window_s; then it stays in error")
    restart_window_s: float = Field(300.0, gt=0, description="an agent that ran for this long has recovered: its restarts count anew")
    remote_control_s: float = Field(2.0, gt=0, description="how long an agent's host may take to answer a command")
    execute_wait_s: float = Field(30.0, gt=0, description="how long a caller waits for a work before it gets a receipt instead")
    idempotency_cache_max: int = Field(1000, ge=1, description="results of works that an agent remembers by itself")
    idempotency_cache_s: float = Field(300.0, gt=0, description="for how long it does; the store remembers for idempotency_retention_s")
    idempotency_retention_s: float = Field(86_400.0, gt=0, description="how long the result of a work is kept")
    heartbeat_retention_s: float = Field(86_400.0, gt=0, description="how long heartbeats are kept")
    log_directory: Path | None = Field(None, description="folder of the agents' logs and of their event files; none: `logs` in home")

    # --- optimisations; each can be switched off, and the simulation does
    cache: bool = Field(True, description="keep instances between turns; off: replay the history at every turn")
    eager: bool = Field(True, description="run activities where the turn ran; off: every activity goes through its queue")
    ring_window_s: float = Field(0.002, ge=0, description="rings for one queue within this time are one message")
