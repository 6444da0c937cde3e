"""Heartbeats, flushes, summaries and commands of agents; law: what beats is written for many agents at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.store import documents
from orchestrator.store.transaction import Row, Transaction
from schemas.agents import AgentCommand, CommandState, Heartbeat, Summary

PAGE_MAX = 1000

_BEAT = """
INSERT INTO agent_vitals (agent_id, last_heartbeat_at, seq, current_work, metrics, resources, flush_timeouts, flush_overdue)
SELECT v.agent_id, {now}, v.seq, v.current_work, v.metrics, v.resources, 0, false
FROM {rows agent_id:text, seq:int, current_work:text, metrics:text, resources:text}
WHERE EXISTS (SELECT 1 FROM agents a WHERE {at a.agent_id v.agent_id})
ON CONFLICT (agent_id) DO UPDATE SET last_heartbeat_at = excluded.last_heartbeat_at, seq = excluded.seq,
    current_work = excluded.current_work, metrics = excluded.metrics, resources = excluded.resources
"""
_KEEP = """
INSERT INTO heartbeats (agent_id, at, seq, status, current_work, metrics, resources)
SELECT v.agent_id, {now}, v.seq, v.status, v.current_work, v.metrics, v.resources
FROM {rows agent_id:text, seq:int, status:text, current_work:text, metrics:text, resources:text} WHERE true
ON CONFLICT DO NOTHING
"""
_RETURNED = """
SELECT agent_id FROM agents WHERE {in agent_id :ids} AND (status = 'inactive' OR NOT registered) ORDER BY agent_id
"""
_HEARTBEATS = """
SELECT agent_id, at, seq, status, current_work, metrics, resources FROM heartbeats
WHERE agent_id = :agent_id AND at < :before ORDER BY at DESC LIMIT :limit
"""
_FLUSH = """
INSERT INTO agent_vitals (agent_id, seq, current_work, metrics, resources, last_flush_at, flush_timeouts, flush_overdue)
SELECT v.agent_id, 0, '[]', :nothing, :nothing, {now}, 0, false FROM {rows agent_id:text}
WHERE EXISTS (SELECT 1 FROM agents a WHERE {at a.agent_id v.agent_id})
ON CONFLICT (agent_id) DO UPDATE SET last_flush_at = excluded.last_flush_at
"""
_SUMMARY = """
INSERT INTO summaries (id, agent_id, at, "start", "end", count, document)
VALUES (:id, :agent_id, {now}, :start, :end, :count, :document) ON CONFLICT DO NOTHING RETURNING id
"""
_SUMMARIZED = """
UPDATE agent_vitals SET last_summary_at = {now}, flush_overdue = false WHERE agent_id = :agent_id
"""
_SUMMARIES = """
SELECT id, agent_id, at, document, "start", "end", count FROM summaries
WHERE agent_id = :agent_id AND at < :before ORDER BY at DESC LIMIT :limit
"""
_OVERDUE = """
WITH picked AS (
    SELECT agent_id AS late FROM agent_vitals
    WHERE NOT flush_overdue AND last_flush_at <= {now} - :timeout_s AND (last_summary_at IS NULL OR last_summary_at < last_flush_at)
      AND agent_id IN (SELECT agent_id FROM agents WHERE status = 'running') ORDER BY agent_id {lock}
)
UPDATE agent_vitals SET flush_overdue = true, flush_timeouts = flush_timeouts + 1 FROM picked WHERE {at agent_vitals.agent_id picked.late}
RETURNING agent_vitals.agent_id
"""
_DUE = """
SELECT a.agent_id, a.spec, v.last_heartbeat_at, v.last_flush_at, coalesce(a.started_at, a.created_at) FROM agents a LEFT JOIN agent_vitals v ON v.agent_id = a.agent_id
WHERE a.status IN ('running', 'paused') AND a.node <> '' ORDER BY a.agent_id
"""
_ADD_COMMAND = """
INSERT INTO agent_commands (id, agent_id, command, params, actor, at, state, result, error, message, expires_at, trace_id)
VALUES (:id, :agent_id, :command, :params, :actor, {now}, :state, :result, '', '', {now} + :expires_in_s, :trace_id) ON CONFLICT DO NOTHING
"""
_MOVE_COMMAND = """
UPDATE agent_commands SET state = :state, result = :result, error = :error, message = :message
WHERE id = :id AND {in state :open} AND (:late_too OR state <> 'pending' OR expires_at IS NULL OR expires_at > {now}) RETURNING id
"""
_COMMANDS = """
SELECT id, agent_id, command, params, actor, at, state, result, error, message, expires_at, trace_id FROM agent_commands
"""
_PRUNE = {
    "heartbeats": "DELETE FROM heartbeats WHERE at <= {now} - :older_than_s RETURNING agent_id",
    "summaries": "DELETE FROM summaries WHERE at <= {now} - :older_than_s RETURNING id",
    "agent_commands": "DELETE FROM agent_commands WHERE at <= {now} - :older_than_s RETURNING id",
}


@dataclass(frozen=True, slots=True)
class Rhythm:
    """An agent that beat must see to, with when it was last seen to."""

    agent_id: str
    spec: str  # JSON of an AgentSpec
    last_heartbeat_at: float | None
    last_flush_at: float | None
    since: float  # when it was started


def record_heartbeats(tx: Transaction, beats: Sequence[Heartbeat]) -> list[str]:
    """Write signs of life, at most one an agent, as of the database's now; return the agents that were silent or out of the registry, and are back."""
    if not beats:
        return []
    rows = sorted((b.agent_id, b.seq, b.status, *_documents(b)) for b in beats)
    tx.send_rows(_BEAT, [(agent_id, seq, *rest) for agent_id, seq, _, *rest in rows])
    tx.send_rows(_KEEP, rows)
    return [agent_id for (agent_id,) in tx.run(_RETURNED, ids=[b.agent_id for b in beats])]


def heartbeats(tx: Transaction, agent_id: str, *, limit: int = 100, before: float = 1e18) -> list[Heartbeat]:
    """Signs of life of an agent that are still kept, newest first."""
    rows = tx.run(_HEARTBEATS, agent_id=agent_id, before=before, limit=min(limit, PAGE_MAX))
    return [
        Heartbeat(id_, at, seq, status, tuple(documents.load(work)), documents.load(metrics), documents.load(resources))
        for id_, at, seq, status, work, metrics, resources in rows
    ]


def rhythms(tx: Transaction) -> list[Rhythm]:
    """The agents that want heartbeats and flushes from beat."""
    return [Rhythm(*row) for row in tx.run(_DUE)]


def flush_asked(tx: Transaction, agent_ids: Sequence[str]) -> None:
    """These agents were asked for their summaries."""
    tx.send_rows(_FLUSH, [(agent_id,) for agent_id in sorted(set(agent_ids))], nothing="{}")


def overdue(tx: Transaction, *, timeout_s: float) -> list[str]:
    """Agents that owe a summary for that long and were not said to before; from now on they were."""
    return sorted(agent_id for (agent_id,) in tx.run(_OVERDUE, timeout_s=timeout_s))


def add_summary(tx: Transaction, summary: Summary) -> bool:
    """Keep what an agent gathered, word for word; False if this one is kept already."""
    kept = tx.run(
        _SUMMARY,
        id=summary.id,
        agent_id=summary.agent_id,
        start=summary.start,
        end=summary.end,
        count=summary.count,
        document=summary.document,
    )
    tx.run(_SUMMARIZED, agent_id=summary.agent_id)
    return bool(kept)


def settle_flush(tx: Transaction, agent_id: str) -> None:
    """An agent owes no summary any more."""
    tx.run(_SUMMARIZED, agent_id=agent_id)


def summaries(tx: Transaction, agent_id: str, *, limit: int = 100, before: float = 1e18) -> list[Summary]:
    """What an agent gathered, newest first."""
    return [Summary(*row) for row in tx.run(_SUMMARIES, agent_id=agent_id, before=before, limit=min(limit, PAGE_MAX))]


def add_command(tx: Transaction, command: AgentCommand, *, expires_in_s: float | None) -> None:
    """Write down what an agent is told; nobody acts on it after `expires_in_s`."""
    tx.run(
        _ADD_COMMAND,
        id=command.id,
        agent_id=command.agent_id,
        command=command.command,
        params=documents.dump(command.params),
        actor=command.actor,
        state=command.state.value,
        result=documents.dump(command.result),
        expires_in_s=expires_in_s,
        trace_id=command.trace_id,
    )


def begin_command(tx: Transaction, command_id: str) -> bool:
    """Act on a command, begun in time; False: it is over, or has expired. Its one supervisor may begin again what it had begun."""
    return _move(tx, command_id, CommandState.RUNNING, {}, "", "", open_=[CommandState.PENDING, CommandState.RUNNING], late_too=False)


def end_command(tx: Transaction, command_id: str, result: Mapping[str, Any], error: str = "", message: str = "") -> bool:
    """What became of a command; False if that was said before."""
    state = CommandState.FAILED if error else CommandState.DONE
    return _move(tx, command_id, state, result, error, message, open_=[CommandState.PENDING, CommandState.RUNNING], late_too=True)


def expire_command(tx: Transaction, command_id: str, error: str, message: str) -> bool:
    """Give up a command that nobody has begun to act on; False if somebody has."""
    return _move(tx, command_id, CommandState.EXPIRED, {}, error, message, open_=[CommandState.PENDING], late_too=True)


def get_command(tx: Transaction, command_id: str) -> AgentCommand | None:
    """One command."""
    return next((_command(row) for row in tx.run(_COMMANDS + "WHERE id = :id", id=command_id)), None)


def commands(tx: Transaction, agent_id: str, *, limit: int = 100) -> list[AgentCommand]:
    """What an agent was told, newest first."""
    sentence = _COMMANDS + "WHERE agent_id = :agent_id ORDER BY at DESC, id DESC LIMIT :limit"
    return [_command(row) for row in tx.run(sentence, agent_id=agent_id, limit=min(limit, PAGE_MAX))]


def prune(tx: Transaction, table: str, older_than_s: float) -> int:
    """Forget rows of `heartbeats`, `summaries` or `agent_commands` from longer ago than that; return how many."""
    return len(tx.run(_PRUNE[table], older_than_s=older_than_s))


def _move(
    tx: Transaction,
    command_id: str,
    state: CommandState,
    result: Mapping[str, Any],
    error: str,
    message: str,
    *,
    open_: Sequence[CommandState],
    late_too: bool,
) -> bool:
    moved = tx.run(
        _MOVE_COMMAND,
        id=command_id,
        state=state.value,
        result=documents.dump(dict(result)),
        error=error,
        message=message,
        open=[one.value for one in open_],
        late_too=late_too,
    )
    return bool(moved)


def _documents(beat: Heartbeat) -> tuple[str, str, str]:
    return documents.dump(list(beat.current_work)), documents.dump(beat.metrics), documents.dump(beat.resources)


def _command(row: Row) -> AgentCommand:
    id_, agent_id, command, params, actor, at, state, result, error, message, expires_at, trace_id = row
    return AgentCommand(
        id_,
        agent_id,
        command,
        documents.load(params),
        actor,
        at,
        CommandState(state),
        documents.load(result),
        error,
        message,
        expires_at,
        trace_id,
    )
