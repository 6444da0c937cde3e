"""How much there is of everything, for metrics; law: each count is one sentence over an index, and looking changes nothing."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.store.transaction import Transaction

_RUNS = "SELECT status, count(*) FROM runs GROUP BY status"
_STUCK = "SELECT count(*) FROM runs WHERE turn_failures > 0 AND status = 'running'"
_READY = "SELECT queue, count(*) FROM runs WHERE ready GROUP BY queue"
_ACTIVITIES = "SELECT queue, state, count(*) FROM activities GROUP BY queue, state"
_WORKERS = "SELECT count(*) FROM workers WHERE expires_at > {now}"
_DEAD_LETTERS = "SELECT kind, count(*) FROM dead_letters GROUP BY kind"
_AGENTS = "SELECT type, status, count(*) FROM agents GROUP BY type, status"
_WORKS_OPEN = "SELECT agent_type, count(*) FROM works WHERE completed_at IS NULL GROUP BY agent_type"
_WORKS_DONE = "SELECT agent_type, status, count(*) FROM works WHERE completed_at IS NOT NULL GROUP BY agent_type, status"


@dataclass(frozen=True, slots=True)
class Census:
    """All counts of one moment."""

    runs: dict[str, int]  # by status
    stuck: int
    ready: dict[str, int]  # runs that a worker may claim, by queue
    activities: dict[tuple[str, ...], int]  # by queue and state
    workers: int  # alive
    dead_letters: dict[str, int]  # by kind
    agents: dict[tuple[str, ...], int]  # by type and status
    works_open: dict[str, int]  # by type of agent
    works_done: dict[tuple[str, ...], int]  # by type of agent and status


def take(tx: Transaction) -> Census:
    """Count everything."""
    return Census(
        runs=dict(tx.run(_RUNS)),
        stuck=tx.run(_STUCK)[0][0],
        ready=dict(tx.run(_READY)),
        activities={(queue, state): count for queue, state, count in tx.run(_ACTIVITIES)},
        workers=tx.run(_WORKERS)[0][0],
        dead_letters=dict(tx.run(_DEAD_LETTERS)),
        agents={(type_, status): count for type_, status, count in tx.run(_AGENTS)},
        works_open=dict(tx.run(_WORKS_OPEN)),
        works_done={(type_, status or ""): count for type_, status, count in tx.run(_WORKS_DONE)},
    )
