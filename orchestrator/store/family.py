"""Child workflows that their parents wait for or answer for; law: a child's end is told to its parent once, and a parent's to its children.

A row stands from a child's start until its chain of runs has ended, or until its parent has closed and what its policy says is done
(`relations.part`). It belongs to the parent: whoever changes it holds the parent's run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.store.transaction import Row, Transaction
from schemas.history import Arrival, ChildCompleted, ChildFailed, Failure, Json

_ADD = """
INSERT INTO child_workflows (run_id, seq, workflow_id, first_run_id, parent_close)
SELECT v.run_id, v.seq, v.workflow_id, v.first_run_id, v.parent_close
FROM {rows run_id:text, seq:int, workflow_id:text, first_run_id:text, parent_close:text}
WHERE true ON CONFLICT DO NOTHING
"""
_TAKE = "DELETE FROM child_workflows WHERE {in first_run_id :first_run_ids} RETURNING run_id, seq, first_run_id, orphaned_at"
_LET_GO = "DELETE FROM child_workflows WHERE {in run_id :run_ids} AND parent_close = 'abandon'"
_ORPHAN = "UPDATE child_workflows SET orphaned_at = {now} WHERE {in run_id :run_ids} AND orphaned_at IS NULL RETURNING run_id"


@dataclass(frozen=True, slots=True)
class End:
    """How a chain of runs has ended: without a failure it has a result."""

    run_id: str
    result: Json = None
    failure: Failure | None = None

    def arrival(self, seq: int) -> Arrival:
        """What its parent hears."""
        if self.failure is None:
            return ChildCompleted(seq, self.result, self.run_id)
        return ChildFailed(seq, self.failure, self.run_id)


def add(tx: Transaction, children: Sequence[Row]) -> None:
    """Keep the (parent's run id, number, workflow id, run id, policy) of children that were just started."""
    tx.send_rows(_ADD, children)


def reports(tx: Transaction, ends: dict[str, End]) -> list[tuple[str, Arrival, str | None]]:
    """What is to be delivered to the parents of chains, known by their first run, that have ended; their rows are gone then."""
    if not ends:
        return []
    taken = sorted(tx.run(_TAKE, first_run_ids=list(ends)), key=lambda row: row[:2])
    return [(run_id, ends[first].arrival(seq), None) for run_id, seq, first, orphaned_at in taken if orphaned_at is None]


def orphan(tx: Transaction, run_ids: Sequence[str]) -> bool:
    """These runs have closed: let go of the children they abandon, mark the others; whether there are others."""
    if not run_ids:
        return False
    tx.send(_LET_GO, run_ids=list(run_ids))
    return bool(tx.run(_ORPHAN, run_ids=list(run_ids)))
