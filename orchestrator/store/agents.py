"""Agents as rows: what they are, where they stand; law: a state changes in one place, under the row's lock, as `core.machines` allows.

`change` is that place: it reads the row under a lock, asks the table, and writes the state, its version and an event in the caller's
transaction. Locks are taken in one order: agents by id, then runs. What beats often is in `store.vitals`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.core import machines
from orchestrator.core.machines import Trigger
from orchestrator.errors import AgentNotFound, FleetError
from orchestrator.store import documents
from orchestrator.store.transaction import Row, Transaction
from schemas.agents import Agent, AgentEvent, AgentFilter, AgentSpec, AgentStatus, DesiredState, Health
from schemas.messages import ErrorCode

AGENTS_PAGE_MAX = 1000
EVENTS_PAGE_MAX = 1000

_COLUMNS = """
a.agent_id, a.spec, a.status, a.desired, a.version, a.registered, a.registered_at, a.created_at, a.reason, a.node, a.keeper, a.pid, a.pid_started_at,
a.service_url, a.discovery, a.capabilities, a.restarts, a.drain_deadline_at, a.started_at, a.meta, v.last_heartbeat_at, v.current_work,
v.metrics, v.resources, v.last_flush_at, v.last_summary_at, v.flush_timeouts, v.flush_overdue
"""
_FROM = "FROM agents a LEFT JOIN agent_vitals v ON v.agent_id = a.agent_id"
_ADD = """
INSERT INTO agents (agent_id, type, kind, spec, status, desired, version, registered, created_at, reason, node, keeper, service_url, discovery,
                    capabilities, restarts, meta)
VALUES (:agent_id, :type, :kind, :spec, 'stopped', :desired, 1, false, {now}, '', '', '', :service_url, :discovery, :capabilities, 0, :meta)
ON CONFLICT DO NOTHING RETURNING agent_id
"""
_LOCK = "SELECT 1 FROM agents WHERE {in agent_id :ids} ORDER BY agent_id {lock}"
_GET = f"SELECT {_COLUMNS} {_FROM} WHERE {{in a.agent_id :ids}} ORDER BY a.agent_id"
_LIST = f"""
SELECT {_COLUMNS} {_FROM}
WHERE (:status = '' OR a.status = :status) AND (:type = '' OR a.type = :type) AND (:any_registered OR a.registered = :registered)
ORDER BY a.agent_id LIMIT :limit OFFSET :offset
"""
_ON_NODE = f"SELECT {_COLUMNS} {_FROM} WHERE a.node = :node ORDER BY a.agent_id"
_CHANGE = """
UPDATE agents SET status = :status, desired = :desired, version = version + 1, reason = :reason, meta = :meta, registered = :registered,
    registered_at = CASE WHEN :registered AND NOT registered THEN {now} ELSE registered_at END, node = :node, keeper = :keeper, pid = :pid,
    pid_started_at = :pid_started_at, service_url = :service_url, capabilities = :capabilities, restarts = :restarts,
    drain_deadline_at = {now} + :drain_s, started_at = CASE WHEN :started THEN {now} ELSE started_at END
WHERE agent_id = :agent_id
"""
_EVENT = """
INSERT INTO agent_events (agent_id, at, trigger, before, after, reason, meta, trace_id)
VALUES (:agent_id, {now}, :trigger, :before, :after, :reason, :meta, :trace_id)
"""
_EVENTS = """
SELECT id, agent_id, at, trigger, before, after, reason, meta, trace_id FROM agent_events
WHERE agent_id = :agent_id AND id < :before_id ORDER BY id DESC LIMIT :limit
"""
_EVENTS_AFTER = """
SELECT id, agent_id, at, trigger, before, after, reason, meta, trace_id FROM agent_events WHERE id > :after_id ORDER BY id LIMIT :limit
"""
_SPEC = "UPDATE agents SET spec = :spec, type = :type, kind = :kind, version = version + 1 WHERE agent_id = :agent_id"
_SILENT = f"""
SELECT {_COLUMNS} {_FROM}
WHERE (a.registered OR a.status IN ('starting', 'running', 'paused'))
  AND coalesce(v.last_heartbeat_at, a.registered_at, a.created_at) <= {{now}} - :silent_s ORDER BY a.agent_id LIMIT :limit
"""
_ABANDONED = f"""
SELECT {_COLUMNS} {_FROM}
WHERE a.node <> '' AND a.status IN ('running', 'paused', 'stopping', 'inactive')
  AND NOT EXISTS (SELECT 1 FROM workers w WHERE w.node = a.node AND w.expires_at > {{now}}) ORDER BY a.agent_id LIMIT :limit
"""  # noqa: S608 - columns of our own
_PLACE = """
UPDATE agents SET keeper = :keeper, node = :node, pid = :pid, pid_started_at = :pid_started_at, version = version + 1,
    started_at = CASE WHEN pid = :pid AND pid_started_at = :pid_started_at THEN started_at ELSE {now} END
WHERE agent_id = :agent_id
"""
_REGISTER = "UPDATE agents SET registered = true, registered_at = {now}, version = version + 1 WHERE agent_id = :agent_id"
_UNWILLINGLY_STILL = f"""
SELECT {_COLUMNS} {_FROM} WHERE a.status IN ('stopped', 'error') AND a.desired <> 'stopped' ORDER BY a.agent_id LIMIT :limit
"""
_UNREGISTER = "UPDATE agents SET registered = false, version = version + 1 WHERE {in agent_id :ids} AND registered RETURNING agent_id"
_PRUNE_EVENTS = "DELETE FROM agent_events WHERE at <= {now} - :older_than_s RETURNING id"

LAST_ID = 2**62


@dataclass(frozen=True, slots=True)
class Update:
    """What a change of state writes besides the state; what is None stays."""

    reason: str = ""
    meta: Mapping[str, Any] | None = None
    desired: DesiredState | None = None
    registered: bool | None = None
    node: str | None = None
    keeper: str | None = None
    pid: int | None = None
    pid_started_at: float | None = None
    service_url: str | None = None
    capabilities: Mapping[str, Any] | None = None
    restarts: int | None = None
    drain_s: float | None = None  # from now; not None only while draining
    started: bool = False  # its process has begun now
    trace_id: str = ""


def add(tx: Transaction, spec: AgentSpec, *, desired: DesiredState, discovery: str, capabilities: Mapping[str, Any] | None = None) -> bool:
    """Enter an agent, stopped; False if the id is taken."""
    added = tx.run(
        _ADD,
        agent_id=spec.id,
        type=spec.type,
        kind=spec.kind.value,
        spec=spec.model_dump_json(),
        desired=desired.value,
        service_url=spec.service_url,
        discovery=discovery,
        capabilities=documents.dump(dict(capabilities or {})),
        meta="{}",
    )
    if added:
        note(tx, spec.id, "added", reason=discovery)
    return bool(added)


def get(tx: Transaction, agent_id: str, *, lock: bool = False) -> Agent | None:
    """One agent; with `lock` nobody else changes its state before this transaction ends."""
    return next(iter(get_many(tx, [agent_id], lock=lock)), None)


def get_many(tx: Transaction, agent_ids: Sequence[str], *, lock: bool = False) -> list[Agent]:
    """Those of these agents that exist, by id."""
    if lock and tx.dialect != "sqlite":
        tx.send(_LOCK, ids=list(agent_ids))  # a statement of its own: locking and reading at once would read what was there before the wait
    return [_agent(row) for row in tx.run(_GET, ids=list(agent_ids))]


def need(tx: Transaction, agent_id: str, *, lock: bool = False) -> Agent:
    """As `get`; raises AgentNotFound."""
    found = get(tx, agent_id, lock=lock)
    if found is None:
        raise AgentNotFound(agent_id)
    return found


def list_agents(tx: Transaction, wanted: AgentFilter) -> list[Agent]:
    """The agents that a filter admits, by id."""
    rows = tx.run(
        _LIST,
        status=wanted.status.value if wanted.status else "",
        type=wanted.type or "",
        any_registered=wanted.registered is None,
        registered=bool(wanted.registered),
        limit=min(wanted.limit, AGENTS_PAGE_MAX),
        offset=wanted.offset,
    )
    return [_agent(row) for row in rows]


def on_node(tx: Transaction, node: str) -> list[Agent]:
    """The agents that a worker hosts, by id."""
    return [_agent(row) for row in tx.run(_ON_NODE, node=node)]


def change(tx: Transaction, agent: Agent, trigger: Trigger, update: Update) -> Agent:
    """Apply a trigger to an agent that this transaction has locked; return it as it is now. Raises IllegalTransition and writes nothing."""
    desired = update.desired or agent.desired
    status = machines.after(agent.status, trigger, desired)
    meta = agent.meta if update.meta is None else dict(update.meta)
    tx.run(
        _CHANGE,
        agent_id=agent.id,
        status=status.value,
        desired=desired.value,
        reason=update.reason,
        meta=documents.dump(meta),
        registered=_kept(update.registered, agent.registered),
        node=_kept(update.node, agent.node),
        keeper=_kept(update.keeper, agent.keeper),
        pid=_kept(update.pid, agent.pid),
        pid_started_at=_kept(update.pid_started_at, agent.pid_started_at),
        service_url=_kept(update.service_url, agent.service_url),
        capabilities=documents.dump(agent.capabilities if update.capabilities is None else dict(update.capabilities)),
        restarts=_kept(update.restarts, agent.restarts),
        drain_s=update.drain_s,
        started=update.started,
    )
    note(tx, agent.id, trigger.value, before=agent.status, after=status, reason=update.reason, meta=meta, trace_id=update.trace_id)
    return need(tx, agent.id)


def note(
    tx: Transaction,
    agent_id: str,
    trigger: str,
    *,
    before: AgentStatus | None = None,
    after: AgentStatus | None = None,
    reason: str = "",
    meta: Mapping[str, Any] | None = None,
    trace_id: str = "",
) -> None:
    """Append something that happened to an agent."""
    tx.send(
        _EVENT,
        agent_id=agent_id,
        trigger=trigger,
        before=before.value if before else None,
        after=after.value if after else None,
        reason=reason,
        meta=documents.dump(dict(meta or {})),
        trace_id=trace_id,
    )


def respecify(tx: Transaction, agent: Agent, spec: AgentSpec, *, version: int | None) -> Agent:
    """Give a locked agent another spec; raises FleetError if it has changed since `version`."""
    if version is not None and version != agent.version:
        message = f"agent {agent.id!r} has changed meanwhile (version {agent.version}, not {version}). Read it again, then change it."
        raise FleetError(message, code=ErrorCode.VERSION_CONFLICT)
    tx.run(_SPEC, agent_id=agent.id, spec=spec.model_dump_json(), type=spec.type, kind=spec.kind.value)
    note(tx, agent.id, "changed")
    return need(tx, agent.id)


def remove(tx: Transaction, agent_id: str) -> None:
    """Forget a locked agent; its events, summaries and works stay."""
    tx.run("DELETE FROM agent_vitals WHERE agent_id = :agent_id", agent_id=agent_id)
    tx.run("DELETE FROM agents WHERE agent_id = :agent_id", agent_id=agent_id)
    note(tx, agent_id, "removed")


def silent(tx: Transaction, *, silent_s: float, limit: int) -> list[Agent]:
    """Agents that should be heard of and were not for that long."""
    return [_agent(row) for row in tx.run(_SILENT, silent_s=silent_s, limit=limit)]


def abandoned(tx: Transaction, *, limit: int) -> list[Agent]:
    """Agents whose worker is gone: no lease of its node stands any more. One that is starting has a deadline of its own."""
    return [_agent(row) for row in tx.run(_ABANDONED, limit=limit)]


def unwillingly_still(tx: Transaction, *, limit: int) -> list[Agent]:
    """Agents that stand still although their operator wants them to run, or to be paused."""
    return [_agent(row) for row in tx.run(_UNWILLINGLY_STILL, limit=limit)]


def place(tx: Transaction, agent_id: str, *, keeper: str, node: str, pid: int, pid_started_at: float) -> None:
    """Note where the process of a locked agent was started; if it has said so itself, it has said when."""
    tx.run(_PLACE, agent_id=agent_id, keeper=keeper, node=node, pid=pid, pid_started_at=float(pid_started_at))


def host(tx: Transaction, agent_id: str, node: str) -> None:
    """Note which worker hosts a locked agent; empty: none."""
    tx.run("UPDATE agents SET node = :node WHERE agent_id = :agent_id", agent_id=agent_id, node=node)


def remark(tx: Transaction, agent_id: str, meta: Mapping[str, Any]) -> None:
    """Write beside a locked agent's state what is being done about it."""
    tx.run("UPDATE agents SET meta = :meta WHERE agent_id = :agent_id", agent_id=agent_id, meta=documents.dump(dict(meta)))


def register(tx: Transaction, agent_id: str) -> None:
    """A locked agent is heard of again."""
    tx.run(_REGISTER, agent_id=agent_id)
    note(tx, agent_id, "registered")


def unregister(tx: Transaction, agent_ids: Iterable[str]) -> set[str]:
    """Take agents out of the registry; they stay in the fleet. Return those that were in it."""
    gone = {agent_id for (agent_id,) in tx.run(_UNREGISTER, ids=list(agent_ids))}
    for agent_id in sorted(gone):
        note(tx, agent_id, "unregistered")
    return gone


def events(tx: Transaction, agent_id: str, *, limit: int = 100, before_id: int = LAST_ID) -> list[AgentEvent]:
    """What happened to an agent, newest first; the page before the event `before_id`."""
    return [_event(row) for row in tx.run(_EVENTS, agent_id=agent_id, before_id=before_id, limit=min(limit, EVENTS_PAGE_MAX))]


def events_after(tx: Transaction, after_id: int, *, limit: int = 100) -> list[AgentEvent]:
    """What happened in the fleet since the event `after_id`, oldest first."""
    return [_event(row) for row in tx.run(_EVENTS_AFTER, after_id=after_id, limit=min(limit, EVENTS_PAGE_MAX))]


def last_event_id(tx: Transaction) -> int:
    """The id of the latest event; 0 if there is none."""
    found: int = tx.run("SELECT coalesce(max(id), 0) FROM agent_events")[0][0]
    return found


def prune_events(tx: Transaction, older_than_s: float) -> int:
    """Forget events from longer ago than that; return how many."""
    return len(tx.run(_PRUNE_EVENTS, older_than_s=older_than_s))


def _kept(new: Any, old: Any) -> Any:  # noqa: ANN401 - any column
    return old if new is None else new


def _event(row: Row) -> AgentEvent:
    id_, agent_id, at, trigger, before, after, reason, meta, trace_id = row
    return AgentEvent(
        str(id_),
        agent_id,
        at,
        trigger,
        AgentStatus(before) if before else None,
        AgentStatus(after) if after else None,
        reason,
        documents.load(meta),
        trace_id,
    )


def _agent(row: Row) -> Agent:
    known: dict[str, Any] = dict(zip(_NAMES, row, strict=True))
    overdue = bool(known.pop("flush_overdue"))
    del known["agent_id"]
    for name in ("capabilities", "meta", "last_metrics", "last_resources"):
        known[name] = documents.load(known[name]) or {}
    known["current_work"] = tuple(documents.load(known["current_work"]) or ())
    heard = known["last_heartbeat_at"] is not None
    return Agent(
        **{
            **known,
            "spec": AgentSpec.model_validate_json(known["spec"]),
            "status": AgentStatus(known["status"]),
            "desired": DesiredState(known["desired"]),
            "registered": bool(known["registered"]),
            "flush_timeouts": known["flush_timeouts"] or 0,
            "health": Health.DEGRADED if overdue else Health.HEALTHY if heard and known["registered"] else Health.UNKNOWN,
        }
    )


_RENAMED = {"metrics": "last_metrics", "resources": "last_resources"}
_NAMES = tuple(_RENAMED.get(name, name) for name in (column.strip().partition(".")[2] for column in _COLUMNS.split(",")))
