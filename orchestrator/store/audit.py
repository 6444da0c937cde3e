"""The audit: who did what, and whether it was allowed; law: entries are appended, never changed, and hold no secret."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.core.masking import masked, whole
from orchestrator.store import documents
from orchestrator.store.transaction import Transaction
from schemas.access import AuditFilter
from schemas.agents import AuditEntry

PAGE_MAX = 1000  # entries
WORD_CHARACTERS_MAX = 500  # of an actor, an action, a target

OK = "ok"

_APPEND = """
INSERT INTO audit_log (at, actor, action, target, outcome, params, trace_id)
VALUES ({now}, :actor, :action, :target, :outcome, :params, :trace_id)
"""
_COLUMNS = "id, at, actor, action, target, outcome, params, trace_id"


def append(
    tx: Transaction,
    *,
    actor: str,
    action: str,
    target: str,
    outcome: str = OK,
    params: Mapping[str, Any] | None = None,
    trace_id: str = "",
) -> None:
    """Enter what somebody did, or tried to: `outcome` is OK or the code of the refusal. Secrets in `params` are masked here."""
    tx.run(
        _APPEND,
        actor=_word(actor),
        action=_word(action),
        target=_word(target),
        outcome=_word(outcome),
        params=documents.dump(masked(params or {})),
        trace_id=trace_id,
    )


def entries(tx: Transaction, wanted: AuditFilter) -> list[AuditEntry]:
    """A page of the entries that a filter lets through, newest first; at most PAGE_MAX."""
    where, params = ["true"], dict[str, Any]()
    for column in ("actor", "action", "target", "outcome"):
        if getattr(wanted, column):
            where.append(f"{column} = :{column}")
            params[column] = getattr(wanted, column)
    for column, operator, value in (("at", ">=", wanted.since), ("at", "<", wanted.until), ("id", "<", wanted.before)):
        if value is not None:
            name = f"{column}_{'least' if operator == '>=' else 'most'}"
            where.append(f"{column} {operator} :{name}")
            params[name] = value
    sentence = f"SELECT {_COLUMNS} FROM audit_log WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT :most"  # noqa: S608 - our own words
    rows = tx.run(sentence, most=min(wanted.limit, PAGE_MAX), **params)
    return [
        AuditEntry(str(id_), at, actor, action, target, outcome, documents.load(given), trace_id)
        for id_, at, actor, action, target, outcome, given, trace_id in rows
    ]


def _word(text: str) -> str:
    return whole(text)[:WORD_CHARACTERS_MAX]  # a refused call may have named anything
