"""Works by their request id: accepted once, begun perhaps several times, done once; law: the first result is the result.

Whoever accepts a work starts its run in the same transaction. Locks are taken in the order of the whole store: agents, then runs, then these.
"""

from __future__ import annotations

from typing import Any

from orchestrator.core.fencing import START_TOLERANCE_S, Process
from orchestrator.store import listing
from orchestrator.store.transaction import Row, Transaction
from schemas.agents import Work
from schemas.messages import WorkResult

RUN_PREFIX = "work:"
"""The workflow id of a work's run is this and the request id."""

WORKS_PAGE_MAX = 1000

_COLUMNS = """request_id, agent_type, agent_id, work_type, fingerprint, trace_id, actor, accepted_at, started_at, completed_at, executed_by,
executions, result"""
_ADD = """
INSERT INTO works (request_id, agent_id, agent_type, work_type, fingerprint, trace_id, actor, accepted_at, executed_by, executions)
VALUES (:request_id, :agent_id, :agent_type, :work_type, :fingerprint, :trace_id, :actor, {now}, '', 0)
ON CONFLICT DO NOTHING RETURNING accepted_at
"""
_GET = f"SELECT {_COLUMNS} FROM works WHERE request_id = :request_id"  # noqa: S608 - columns of our own
_BEGIN = """
UPDATE works SET started_at = coalesce(started_at, {now}), executed_by = :executed_by, executions = executions + 1
WHERE request_id = :request_id AND completed_at IS NULL RETURNING executions
"""
_BEGIN_FENCED = f"""
UPDATE works SET started_at = coalesce(started_at, {{now}}), executed_by = :executed_by, executions = executions + 1
WHERE request_id = :request_id AND completed_at IS NULL
  AND EXISTS (SELECT 1 FROM agents a WHERE a.agent_id = :executed_by AND a.node IN ('', :node)
              AND (:pid = 0 OR (a.pid = :pid AND abs(a.pid_started_at - :pid_started_at) < {START_TOLERANCE_S})))
RETURNING executions
"""  # noqa: S608 - a number of our own
_NOT_BEGUN = """
UPDATE works SET executions = executions - 1 WHERE request_id = :request_id AND completed_at IS NULL AND executions > 0
"""
_FINISH = """
UPDATE works SET completed_at = {now}, status = :status, exit_code = :exit_code, result = :result
WHERE request_id = :request_id AND completed_at IS NULL RETURNING request_id
"""
_OPEN = f"""
SELECT w.request_id FROM works w
WHERE w.agent_id = :agent_id AND w.completed_at IS NULL
  AND EXISTS (SELECT 1 FROM runs r WHERE r.workflow_id = '{RUN_PREFIX}' || w.request_id AND r.status = 'running')
ORDER BY w.request_id LIMIT :limit
"""  # noqa: S608 - a prefix of our own
_PRUNE_DONE = """
DELETE FROM works WHERE request_id IN (
    SELECT request_id FROM works WHERE completed_at IS NOT NULL AND completed_at <= {now} - :older_than_s ORDER BY completed_at LIMIT :batch_max
) RETURNING request_id
"""
_PRUNE_ABANDONED = f"""
DELETE FROM works WHERE request_id IN (
    SELECT w.request_id FROM works w WHERE w.completed_at IS NULL AND w.accepted_at <= {{now}} - :older_than_s
      AND NOT EXISTS (SELECT 1 FROM runs r WHERE r.workflow_id = '{RUN_PREFIX}' || w.request_id AND r.status = 'running') LIMIT :batch_max
) RETURNING request_id
"""  # noqa: S608 - a prefix of our own


def add(tx: Transaction, work: Work) -> bool:
    """Accept a work at the database's now; False if its request id is known already. Two at once end as if one had come after the other."""
    return bool(
        tx.run(
            _ADD,
            request_id=work.request_id,
            agent_id=work.agent_id,
            agent_type=work.agent_type,
            work_type=work.work_type,
            fingerprint=work.fingerprint,
            trace_id=work.trace_id,
            actor=work.actor,
        )
    )


def get(tx: Transaction, request_id: str) -> Work | None:
    """The work of a request id, unless it was never accepted or has been pruned."""
    rows = tx.run(_GET, request_id=request_id)
    return _work(rows[0]) if rows else None


def begin(tx: Transaction, request_id: str, executed_by: str, process: Process | None = None) -> int:
    """Count an execution by this agent; how many there were with this one, 0 if the work is done already or unknown.

    With a `process` it is 0 as well if the agent is another one by now; a pid of 0 stands for a service, which its node alone speaks for.
    """
    if process is None:
        rows = tx.run(_BEGIN, request_id=request_id, executed_by=executed_by)
    else:
        fence = {"node": process.node, "pid": process.pid, "pid_started_at": float(process.started_at)}
        rows = tx.run(_BEGIN_FENCED, request_id=request_id, executed_by=executed_by, **fence)
    return int(rows[0][0]) if rows else 0


def not_begun(tx: Transaction, request_id: str) -> None:
    """Take an execution back: whoever was to do it could not be reached, or refused."""
    tx.run(_NOT_BEGUN, request_id=request_id)


def finish(tx: Transaction, request_id: str, result: WorkResult) -> WorkResult:
    """Keep the result of a work; return the one that counts, which is the first that came."""
    done = tx.run(_FINISH, request_id=request_id, status=result.status, exit_code=result.exit_code, result=result.model_dump_json())
    known = None if done else get(tx, request_id)
    return result if known is None or known.result is None else known.result


def open_of(tx: Transaction, agent_id: str, *, limit: int = WORKS_PAGE_MAX) -> list[str]:
    """The request ids of what was asked of this very agent and is not done; what has no open run any more will never be."""
    return [request_id for (request_id,) in tx.run(_OPEN, agent_id=agent_id, limit=limit)]


def prune(tx: Transaction, older_than_s: float, *, batch_max: int) -> int:
    """Forget works that were done longer ago than that, and those whose run was ended from outside, with their runs; return how many.

    From then on their request ids are new again. Never prune sooner than a message can come a second time.
    """
    done = tx.run(_PRUNE_DONE, older_than_s=float(older_than_s), batch_max=batch_max)
    abandoned = tx.run(_PRUNE_ABANDONED, older_than_s=float(older_than_s), batch_max=batch_max)
    request_ids = [request_id for (request_id,) in (*done, *abandoned)]
    listing.delete_closed(tx, [RUN_PREFIX + request_id for request_id in request_ids])
    return len(request_ids)


def _work(row: Row) -> Work:
    known: dict[str, Any] = dict(zip(_NAMES, row, strict=True))
    result = known.pop("result")
    return Work(**known, result=None if result is None else WorkResult.model_validate_json(result))


_NAMES = tuple(name.strip() for name in _COLUMNS.split(","))
