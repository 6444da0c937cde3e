"""The tables of the engine, as Alembic compares them with a database; law: hot tables stay narrow, and only migrations create or change them.

Times are seconds since the epoch by the database's clock, documents are JSON text, so that both databases hold the same values.
"""

from typing import Any, ClassVar

from sqlalchemy import BigInteger, Boolean, Float, Index, Integer, Text, text
from sqlmodel import Field, SQLModel

BigId = BigInteger().with_variant(Integer, "sqlite")  # SQLite's autoincrement wants INTEGER
CLUSTERED: dict[str, Any] = {"sqlite_with_rowid": False}  # one tree instead of two where the key is text

DIRECTED = {"runs_ready", "activities_queued"}  # indexes with a descending column


def comparable_on_sqlite(_item: object, name: str | None, kind: str, _reflected: bool, _other: object) -> bool:
    """What a comparison of tables and an SQLite file may look at: it does not tell the direction of an index."""
    return not (kind == "index" and name in DIRECTED)


def partial(name: str, *columns: Any, where: str, unique: bool = False) -> Index:  # noqa: ANN401 - names and SQL expressions
    """An index over some of the rows."""
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


class RunTable(SQLModel, table=True):
    """One row a run: what claims and fences look at."""

    __tablename__ = "runs"
    __table_args__: ClassVar[Any] = (
        partial("runs_open", "workflow_id", where="status = 'running'", unique=True),
        # With the operators of patterns PostgreSQL finds all ids that begin alike, whatever its locale.
        Index("runs_by_workflow", "workflow_id", "started_at", postgresql_ops={"workflow_id": "text_pattern_ops"}),
        partial("runs_ended_badly", "started_at", "run_id", where="status NOT IN ('running', 'completed', 'continued_as_new')"),
        partial("runs_ready", "queue", text("priority DESC"), "ready_at", where="ready"),
        partial("runs_owned", "owner", where="owner IS NOT NULL"),
        Index("runs_by_start", "started_at", "run_id"),
        partial("runs_by_parent", "parent_run_id", "started_at", where="parent_run_id IS NOT NULL"),
        partial("runs_stuck", "queue", where="turn_failures > 0"),
        CLUSTERED,
    )

    run_id: str = Field(sa_type=Text, primary_key=True)
    workflow_id: str = Field(sa_type=Text)
    type: str = Field(sa_type=Text)
    queue: str = Field(sa_type=Text)
    status: str = Field(sa_type=Text)
    priority: int = Field(sa_type=Integer)
    epoch: int = Field(sa_type=Integer)
    turn: int = Field(sa_type=Integer)
    ready: bool = Field(sa_type=Boolean)
    ready_at: float = Field(sa_type=Float(53))
    owner: str | None = Field(sa_type=Text)
    turn_failures: int = Field(sa_type=Integer)
    started_at: float = Field(sa_type=Float(53))
    closed_at: float | None = Field(sa_type=Float(53))
    attempt: int = Field(sa_type=Integer)
    history_events: int = Field(sa_type=Integer)
    deadline_at: float | None = Field(sa_type=Float(53))
    parent_id: str | None = Field(sa_type=Text)
    parent_run_id: str | None = Field(sa_type=Text)
    continued_from: str | None = Field(sa_type=Text)
    first_run_id: str = Field(sa_type=Text)


class RunPayloadTable(SQLModel, table=True):
    """What people want to know of a run and no claim needs; a run without any of it has no row."""

    __tablename__ = "run_payloads"
    __table_args__: ClassVar[Any] = (CLUSTERED,)

    run_id: str = Field(sa_type=Text, primary_key=True)
    memo: str | None = Field(sa_type=Text)
    search_attributes: str | None = Field(sa_type=Text)
    result: str | None = Field(sa_type=Text)
    failure: str | None = Field(sa_type=Text)
    stuck: str | None = Field(sa_type=Text)
    continued_as: str | None = Field(sa_type=Text)


class TurnTable(SQLModel, table=True):
    """The history: append-only, one document a turn."""

    __tablename__ = "turns"
    __table_args__: ClassVar[Any] = (CLUSTERED,)

    run_id: str = Field(sa_type=Text, primary_key=True)
    turn: int = Field(sa_type=Integer, primary_key=True, sa_column_kwargs={"autoincrement": False})
    at: float = Field(sa_type=Float(53))
    flags: int = Field(sa_type=Integer)
    worker: str = Field(sa_type=Text)
    build: str = Field(sa_type=Text)
    events: str = Field(sa_type=Text)


class InboxTable(SQLModel, table=True):
    """What has arrived for a run and no turn has consumed."""

    __tablename__ = "inbox"
    __table_args__: ClassVar[Any] = (
        Index("inbox_by_run", "run_id", "id"),
        partial("inbox_once", "run_id", "dedup", where="dedup IS NOT NULL", unique=True),
        {"sqlite_autoincrement": True},  # ids never come back: a consumed id must not name a new arrival
    )

    id: int | None = Field(default=None, sa_type=BigId, primary_key=True)
    run_id: str = Field(sa_type=Text)
    kind: str = Field(sa_type=Text)
    event: str = Field(sa_type=Text)
    dedup: str | None = Field(sa_type=Text)


class ActivityTable(SQLModel, table=True):
    """Unresolved activities."""

    __tablename__ = "activities"
    __table_args__: ClassVar[Any] = (
        partial("activities_queued", "queue", text("priority DESC"), "due_at", where="state = 'queued'"),
        partial("activities_due", "due_at", where="state = 'queued'"),
        partial("activities_deadline", "deadline_at", where="deadline_at IS NOT NULL"),
        partial("activities_worker", "worker", "run_id", "seq", where="worker IS NOT NULL"),
        CLUSTERED,
    )

    run_id: str = Field(sa_type=Text, primary_key=True)
    seq: int = Field(sa_type=Integer, primary_key=True, sa_column_kwargs={"autoincrement": False})
    attempt: int = Field(sa_type=Integer)
    state: str = Field(sa_type=Text)
    task: bool = Field(sa_type=Boolean)
    type: str = Field(sa_type=Text)
    queue: str = Field(sa_type=Text)
    priority: int = Field(sa_type=Integer)
    run_queue: str = Field(sa_type=Text)
    workflow_id: str = Field(sa_type=Text)
    workflow_type: str = Field(sa_type=Text)
    scheduled: str = Field(sa_type=Text)
    scheduled_at: float = Field(sa_type=Float(53))
    started_at: float | None = Field(sa_type=Float(53))
    due_at: float = Field(sa_type=Float(53))
    deadline_at: float | None = Field(sa_type=Float(53))
    schedule_to_start_s: float | None = Field(sa_type=Float(53))
    start_to_close_s: float | None = Field(sa_type=Float(53))
    close_by: float | None = Field(sa_type=Float(53))  # scheduled_at + schedule_to_close_s
    heartbeat_s: float | None = Field(sa_type=Float(53))
    worker: str | None = Field(sa_type=Text)
    heartbeat_at: float | None = Field(sa_type=Float(53))
    heartbeat_details: str | None = Field(sa_type=Text)
    last_failure: str | None = Field(sa_type=Text)
    losses: int = Field(sa_type=Integer)
    publishes: int = Field(sa_type=Integer)
    cancel_requested: bool = Field(sa_type=Boolean)
    detached: bool = Field(sa_type=Boolean)


class ChildWorkflowTable(SQLModel, table=True):
    """Child workflows that have not ended, and whose parent has not closed or whose policy is still to be applied."""

    __tablename__ = "child_workflows"
    __table_args__: ClassVar[Any] = (
        Index("child_workflows_by_first_run", "first_run_id", unique=True),
        partial("child_workflows_orphaned", "orphaned_at", where="orphaned_at IS NOT NULL"),
        CLUSTERED,
    )

    run_id: str = Field(sa_type=Text, primary_key=True)  # the parent's
    seq: int = Field(sa_type=Integer, primary_key=True, sa_column_kwargs={"autoincrement": False})
    workflow_id: str = Field(sa_type=Text)
    first_run_id: str = Field(sa_type=Text)
    parent_close: str = Field(sa_type=Text)
    orphaned_at: float | None = Field(sa_type=Float(53))  # when the parent closed


class TimerTable(SQLModel, table=True):
    """Every other thing that must happen to a run at a time: `timer` of its code, `run_timeout`, `ready` when a delay or backoff ends."""

    __tablename__ = "timers"
    __table_args__: ClassVar[Any] = (Index("timers_due", "fire_at"), CLUSTERED)

    run_id: str = Field(sa_type=Text, primary_key=True)
    kind: str = Field(sa_type=Text, primary_key=True)
    seq: int = Field(sa_type=Integer, primary_key=True, sa_column_kwargs={"autoincrement": False})
    fire_at: float = Field(sa_type=Float(53))


class WorkerTable(SQLModel, table=True):
    """One row a worker process; its lease is the right to everything it has claimed."""

    __tablename__ = "workers"
    __table_args__: ClassVar[Any] = (CLUSTERED,)

    worker_id: str = Field(sa_type=Text, primary_key=True)
    node: str = Field(sa_type=Text)
    host: str = Field(sa_type=Text)
    boot_id: str = Field(sa_type=Text)
    pid: int = Field(sa_type=Integer)
    pid_started_at: float = Field(sa_type=Float(53))
    queues: str = Field(sa_type=Text)
    build: str = Field(sa_type=Text)
    expires_at: float = Field(sa_type=Float(53))
    stopping: bool = Field(sa_type=Boolean)


class LeaseTable(SQLModel, table=True):
    """Who may do what only one may do."""

    __tablename__ = "leases"
    __table_args__: ClassVar[Any] = (CLUSTERED,)

    name: str = Field(sa_type=Text, primary_key=True)
    holder: str = Field(sa_type=Text)
    expires_at: float = Field(sa_type=Float(53))
    epoch: int = Field(sa_type=Integer)


class QueryTable(SQLModel, table=True):
    """Questions that wait for a worker, and their answers until the asker has read them."""

    __tablename__ = "queries"
    __table_args__: ClassVar[Any] = (
        partial("queries_open", "queue", "asked_at", where="answered_at IS NULL"),
        CLUSTERED,
    )

    id: str = Field(sa_type=Text, primary_key=True)
    run_id: str = Field(sa_type=Text)
    queue: str = Field(sa_type=Text)
    type: str = Field(sa_type=Text)
    name: str = Field(sa_type=Text)
    args: str = Field(sa_type=Text)
    asked_at: float = Field(sa_type=Float(53))
    answer: str | None = Field(sa_type=Text)
    failure: str | None = Field(sa_type=Text)
    answered_at: float | None = Field(sa_type=Float(53))


class DeadLetterTable(SQLModel, table=True):
    """What was set aside as poison."""

    __tablename__ = "dead_letters"
    __table_args__: ClassVar[Any] = (Index("dead_letters_by_time", "at"), CLUSTERED)

    id: str = Field(sa_type=Text, primary_key=True)
    kind: str = Field(sa_type=Text)
    reason: str = Field(sa_type=Text)
    at: float = Field(sa_type=Float(53))
    run_id: str | None = Field(sa_type=Text)
    seq: int | None = Field(sa_type=Integer)
    document: str = Field(sa_type=Text)


class BeatEntryTable(SQLModel, table=True):
    """When each entry of Celery's own beat schedule ran last."""

    __tablename__ = "beat_entries"
    __table_args__: ClassVar[Any] = (CLUSTERED,)

    name: str = Field(sa_type=Text, primary_key=True)
    last_run_at: float | None = Field(sa_type=Float(53))
    total_run_count: int = Field(sa_type=Integer)
