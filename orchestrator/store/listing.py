"""Looking at many runs; law: pages go by key, newest first, so that a page costs the same wherever it is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from orchestrator.errors import InvalidFilter
from orchestrator.store import documents
from orchestrator.store.documents import ACTIVITY_COLUMNS, RUN_COLUMNS
from orchestrator.store.transaction import Transaction
from schemas.history import TimerStarted
from schemas.runs import PendingActivity, RunDescription, RunFilter, RunPage, Status

PAGE_MAX = 1000  # runs
FIRST_SURROGATE, FIRST_AFTER_SURROGATES = 0xD800, 0xE000  # no text of a database has one
ENDED_BADLY = frozenset({Status.FAILED, Status.CANCELED, Status.TERMINATED, Status.TIMED_OUT})

# The condition of the index `runs_ended_badly`, in its very words: SQLite knows it again by them.
_ENDED_BADLY = "r.status NOT IN ('running', 'completed', 'continued_as_new')"
# A plan for the very values: one for any would read a million runs to find the few that failed.
_PLAN_ANEW = "SELECT set_config('plan_cache_mode', 'force_custom_plan', true)"

_ACTIVITIES = f"SELECT {ACTIVITY_COLUMNS} FROM activities WHERE run_id = :run_id ORDER BY seq"  # noqa: S608 - columns of our own
_TIMERS = "SELECT seq, fire_at FROM timers WHERE run_id = :run_id AND kind = 'timer' ORDER BY fire_at, seq"
_DELETE_CLOSED = "DELETE FROM runs WHERE {in workflow_id :workflow_ids} AND status <> 'running' RETURNING run_id"
_DELETE = "DELETE FROM runs WHERE run_id = :run_id AND status <> 'running' RETURNING run_id"


def list_runs(tx: Transaction, wanted: RunFilter) -> RunPage:
    """A page of the runs that a filter lets through; raises InvalidFilter if it makes no sense."""
    if wanted.limit < 1:
        raise InvalidFilter(f"the limit of a page must be at least 1, not {wanted.limit}")
    where, params = _conditions(wanted)
    if wanted.page_after is not None:
        where.append("(r.started_at, r.run_id) < (:page_at, :page_run)")
        params["page_at"], params["page_run"] = _position(wanted.page_after)
    limit = min(wanted.limit, PAGE_MAX)
    if tx.dialect == "postgresql":
        tx.send(_PLAN_ANEW)
    # Few run and fewer are stuck, and they have an index: find them first and sort them. The plus says that no order is to be had for nothing.
    at = "+r.started_at" if wanted.stuck or set(wanted.status) == {Status.RUNNING} else "r.started_at"
    rows = tx.run(
        f"SELECT {RUN_COLUMNS} FROM runs r LEFT JOIN run_payloads p ON p.run_id = r.run_id WHERE {' AND '.join(where)}"  # noqa: S608 - our own words
        f" ORDER BY {at} DESC, r.run_id DESC LIMIT :most",
        most=limit + 1,
        **params,
    )
    found = tuple(documents.described(row) for row in rows[:limit])
    return RunPage(found, _page_after(found[-1]) if len(rows) > limit else None)


def count_runs(tx: Transaction, wanted: RunFilter) -> int:
    """How many runs a filter lets through, on all pages."""
    where, params = _conditions(wanted)
    count: int = tx.run(f"SELECT count(*) FROM runs r WHERE {' AND '.join(where)}", **params)[0][0]  # noqa: S608 - our own words
    return count


def delete(tx: Transaction, run_id: str) -> bool:
    """Remove a closed run and its history for good; False if there is none of that id, or it is open."""
    if not tx.run(_DELETE, run_id=run_id):
        return False
    tx.send("DELETE FROM run_payloads WHERE run_id = :run_id", run_id=run_id)
    tx.send("DELETE FROM turns WHERE run_id = :run_id", run_id=run_id)
    return True


def delete_closed(tx: Transaction, workflow_ids: Sequence[str]) -> int:
    """Remove the closed runs of these workflow ids and their histories for good; return how many."""
    run_ids = [run_id for (run_id,) in tx.run(_DELETE_CLOSED, workflow_ids=list(workflow_ids))] if workflow_ids else []
    if run_ids:
        tx.send("DELETE FROM run_payloads WHERE {in run_id :run_ids}", run_ids=run_ids)
        tx.send("DELETE FROM turns WHERE {in run_id :run_ids}", run_ids=run_ids)
    return len(run_ids)


def children(tx: Transaction, run_id: str, limit: int = PAGE_MAX) -> list[RunDescription]:
    """The runs of the child workflows that a run has started, open and closed, the oldest first, at most `limit`."""
    rows = tx.run(
        f"SELECT {RUN_COLUMNS} FROM runs r LEFT JOIN run_payloads p ON p.run_id = r.run_id WHERE r.parent_run_id = :run_id"  # noqa: S608 - our own words
        " ORDER BY r.started_at, r.run_id LIMIT :most",
        run_id=run_id,
        most=min(limit, PAGE_MAX),
    )
    return [documents.described(row) for row in rows]


def pending_activities(tx: Transaction, run_id: str) -> list[PendingActivity]:
    """The unresolved activities of a run, in the order they were scheduled."""
    return [documents.pending(row) for row in tx.run(_ACTIVITIES, run_id=run_id)]


def pending_timers(tx: Transaction, run_id: str) -> list[TimerStarted]:
    """The timers a run waits for, the next one first."""
    return [TimerStarted(seq, fire_at) for seq, fire_at in tx.run(_TIMERS, run_id=run_id)]


def _conditions(wanted: RunFilter) -> tuple[list[str], dict[str, Any]]:
    where, params = ["true"], dict[str, Any]()
    for column, values in (("type", list(wanted.type)), ("queue", list(wanted.queue))):
        if values:
            where.append(f"{{in r.{column} :{column}}}")
            params[column] = values
    if wanted.status:
        where.append(_status(frozenset(wanted.status)))
    if wanted.id_prefix:
        where.append("{begins r.workflow_id :prefix :beyond}")
        params.update(prefix=wanted.id_prefix, beyond=_beyond(wanted.id_prefix))
    if wanted.started_after is not None:
        where.append("r.started_at > :started_after")
        params["started_after"] = float(wanted.started_after)
    if wanted.started_before is not None:
        where.append("r.started_at < :started_before")
        params["started_before"] = float(wanted.started_before)
    if wanted.stuck is not None:
        where.append("r.turn_failures > 0" if wanted.stuck else "r.turn_failures = 0")
    return where, params


def _status(wanted: frozenset[Status]) -> str:
    """A condition in literals, by which an index over some of the rows is known to have all that are wanted."""
    if len(wanted) == 1:
        return f"r.status = '{next(iter(wanted))}'" + (f" AND {_ENDED_BADLY}" if wanted <= ENDED_BADLY else "")
    listed = ", ".join(f"'{status}'" for status in sorted(wanted))
    return f"r.status IN ({listed})" + (f" AND {_ENDED_BADLY}" if wanted <= ENDED_BADLY else "")


def _beyond(prefix: str) -> str:
    """The first text after all that begin with `prefix`."""
    head, last = prefix[:-1], ord(prefix[-1]) + 1
    if last > sys.maxunicode:  # no character comes after the last one
        return _beyond(head) if head else prefix * 1000
    return head + chr(FIRST_AFTER_SURROGATES if last == FIRST_SURROGATE else last)


def _page_after(run: RunDescription) -> str:
    return f"{run.started_at!r}~{run.run_id}"


def _position(page_after: str) -> tuple[float, str]:
    at, _, run_id = page_after.partition("~")
    try:
        return float(at), run_id
    except ValueError as error:
        raise InvalidFilter(f"page_after is not the next_page of another page: {page_after!r}") from error
