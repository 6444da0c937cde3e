"""Every setting with its unit, default and reason; law: a frozen snapshot, read once, passed down. Loading is `orchestrator.settings`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from schemas.agents import RestartMode

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"]

_PASSWORD = re.compile(r"(?<=://)([^/@\s]*):[^/\s]*(?=@)")


def masked(value: Any) -> Any:  # noqa: ANN401 - any value of a setting
    """A value as it may be shown: secrets and the passwords in URLs are stars."""
    if isinstance(value, SecretStr):
        return str(value)
    return _PASSWORD.sub(r"\1:***", value) if isinstance(value, str) else value


class Settings(BaseModel):
    """What a deployment can choose. Environment variables are ORCHESTRATOR_ and the name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # --- where things are
    config: tuple[Path, ...] = Field((), description="configuration files; what the environment says wins over them")
    environment: Literal["development", "production"] = Field(
        "development", description="production refuses what is only good for trying out"
    )
    home: Path = Field(Path(".orchestrator"), description="folder of the embedded stack: SQLite file, broker's files, logs")
    database_url: str = Field("", description="sqlite:///file or postgresql+psycopg://user@host/name; empty: a SQLite file in `home`")
    broker_url: str = Field("", description="redis://, redis+socket://, amqp://; empty: the embedded broker of `home`")
    broker_binary: str = Field("", description="a valkey-server or redis-server to embed instead of the one that came with the package")
    include: tuple[str, ...] = Field((), description="modules with workflows, activities and Celery tasks that workers import")
    default_queue: str = Field("default", description="queue of workflows that name none")
    result_backend: str = Field("", description="Celery result backend of our own application; empty: none, results live in histories")
    business_database_url: str = Field("", description="database of your own records, see `orchestrator.business`; empty: the same as ours")
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
    republish_s: float = Field(
        5.0, gt=0, description="a Celery task whose message nobody has taken is sent again after this, then twice this, …"
    )
    republish_max_s: float = Field(300.0, gt=0, description="longest time between two such messages")
    turn_seconds_max: float = Field(2.0, gt=0, description="workflow code that does not yield for this long fails its turn")
    drain_s: float = Field(30.0, ge=0, description="how long a stopping worker waits for its running activities")
    question_s: float = Field(60.0, gt=0, description="how long an unanswered query is kept")

    # --- connections
    database_pool_size: int = Field(8, ge=1, description="connections that a process keeps open to the database")
    database_max_overflow: int = Field(56, ge=0, description="connections that it opens beyond those when it is busy")
    visibility_timeout_s: float = Field(
        3600.0, gt=0, description="Redis: an unacknowledged Celery task is given to another worker after this long"
    )
    restore_interval_s: float = Field(
        10.0, gt=0, description="Redis: a worker looks for such tasks at every restore_throttle-th tick of this length"
    )
    restore_throttle: int = Field(1, ge=1, description="Redis: see restore_interval_s")

    # --- limits
    payload_bytes_max: int = Field(2 * 1024 * 1024, gt=0, description="one argument, result or signal, as JSON")
    claim_batch_max: int = Field(128, ge=1, description="runs claimed in one transaction")
    inbox_max: int = Field(1_000, ge=1, description="arrivals that one turn consumes")
    instances_max: int = Field(10_000, ge=0, description="runs kept in memory between turns")
    eager_s: float = Field(0.25, ge=0, description="a worker takes on eager activities for at most this many seconds of its threads")
    due_batch_max: int = Field(1_000, ge=1, description="due timers, timeouts and recoveries handled in one transaction")

    # --- the agent of this worker
    agent_id: str = Field("", description="id of the agent that a worker hosts; `orchestrator agent run` sets it")
    agent_type: str = Field("", description="its type")
    agent_port: int | None = Field(None, ge=0, le=65535, description="port of its HTTP adapter, 0 for any free one; none: that of its spec")
    agent_logged: bool = Field(False, description="whoever started the worker keeps its output as the agent's log; it writes none itself")

    # --- the fleet
    fleet_queue: str = Field("fleet", description="queue of the workflows that supervise agents; agent hosts and managers consume it")
    bus: bool = Field(False, description="workers of the fleet also answer, and tell heartbeats, on the topic exchange orchestrator.bus")
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
    restart_mode: RestartMode = Field(RestartMode.AUTO, description="of agents whose spec names none")
    drain_override_s: float | None = Field(None, ge=0, description="drain time of every agent, whatever its spec says")
    host_tick_s: float = Field(0.1, gt=0, description="how often an agent host looks whether a draining agent has finished")
    discovery_interval_s: float = Field(300.0, gt=0, description="how often the folders of agent packages are looked through")
    monitoring_interval_s: float = Field(10.0, gt=0, description="how often beat looks for silent agents")
    cleanup_interval_s: float = Field(3600.0, gt=0, description="how often beat removes what is older than its retention")
    package_folders: tuple[Path, ...] = Field((), description="folders of agent packages, besides the one that came with us")
    package_skip: tuple[str, ...] = Field(("__pycache__", "_template", "test"), description="names of folders that are no agent packages")
    package_enabled: tuple[str, ...] = Field((), description="ids of agents of the packages that came with us that are to be started")
    deterministic_ports: bool = Field(False, description="give an agent without a port the one of its place, from agent_port_base on")
    agent_port_base: int = Field(8100, ge=1, le=65535, description="first of the deterministic ports")
    agent_secrets: tuple[str, ...] = Field(
        (), description="environment variables that the processes of agents get although they look like secrets"
    )
    console_heartbeats: bool = Field(False, description="whoever writes heartbeats logs each of them as well")
    log_level: LogLevel = Field("INFO", description="of agent hosts and the processes that they start")
    log_directory: Path | None = Field(None, description="folder of the agents' logs and of their event files; none: `logs` in home")

    # --- the management API and who may use it
    api_name: str = Field("orchestrator-api", min_length=1, max_length=100, description="what /health calls the service")
    api_version: str = Field("", max_length=100, description="what it calls its version; empty: that of the package")
    api_host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; one that others reach needs auth_mode token or jwt in production"
    )
    api_port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    api_log_level: LogLevel = Field("INFO", description="of the management API")
    manager_name: str = Field(
        "orchestrator-manager", min_length=1, max_length=100, description="what whoever speaks to services calls itself (User-Agent)"
    )
    manager_url: str = Field("", description="where agents reach the management API; empty: api_port on this machine")
    auth_mode: Literal["none", "token", "jwt"] = Field("none", description="what callers of the management API must show")
    manager_token: SecretStr = Field(
        SecretStr(""), description="what X-Manager-Token must be: the present token, then older ones that still count"
    )
    jwt_secret: SecretStr = Field(SecretStr(""), description="key that signs tokens of people")
    jwt_ttl_s: float = Field(900.0, gt=0, description="how long such a token is good for")

    # --- optimisations; each can be switched off, and the simulation does
    cache: bool = Field(True, description="keep instances between turns; off: replay the history at every turn")
    eager: bool = Field(True, description="run activities where the turn ran; off: every activity goes through its queue")
    quick_claims: bool = Field(True, description="an idle worker claims by a statement of its own, without waiting for the disk")
    hints: bool = Field(True, description="PostgreSQL tells an idle worker of a new run before the broker does; off: the broker alone")
    own_timers: bool = Field(
        True, description="a worker fires timers of runs that it has in memory within their turn; off: as all others are"
    )
    group_commits: bool = Field(True, description="signals that threads of one process send at once share a commit; off: each has its own")
    calm_collector: bool = Field(
        True,
        description="a worker keeps what it has loaded out of Python's garbage collections and has fewer of them; off: as Python does it",
    )
    ring_window_s: float = Field(0.002, ge=0, description="rings for one queue within this time are one message")

    @field_validator("log_level", "api_log_level", mode="before")
    @classmethod
    def _capitals(cls, value: object) -> object:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        if self.registry_ttl_s > self.heartbeat_timeout_s:
            raise ValueError(
                f"registry_ttl_s ({self.registry_ttl_s:g}) must not be longer than heartbeat_timeout_s ({self.heartbeat_timeout_s:g}): "
                "an agent leaves the registry before it counts as inactive"
            )
        return self

    @property
    def manager_tokens(self) -> tuple[str, ...]:
        """The tokens that count, the present one first; none: no token is asked for."""
        return tuple(token.strip() for token in self.manager_token.get_secret_value().split(",") if token.strip())

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """What repr and str show; no secret."""
        return [(name, masked(value)) for name, value in super().__repr_args__()]
