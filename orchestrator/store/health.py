"""Questions of a doctor; law: looking changes nothing, and whether something is over is judged by the database's clock."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.errors import DatabaseNotMigrated
from orchestrator.store import Store, schema
from orchestrator.store.transaction import Transaction

_LEASE = "SELECT holder, expires_at - {now}, epoch FROM leases WHERE name = :name"


@dataclass(frozen=True, slots=True)
class LeaseState:
    """Who holds a lease, and for how many seconds yet; not more than zero means that it is over."""

    holder: str
    left_s: float
    epoch: int


@dataclass(frozen=True, slots=True)
class SchemaState:
    """The revision that a database has, and the one that this code needs; `usable` also when the database is ahead of the code."""

    current: str | None
    needed: str
    usable: bool


def lease(tx: Transaction, name: str) -> LeaseState | None:
    """The state of a lease; None if nobody ever had it."""
    rows = tx.run(_LEASE, name=name)
    return LeaseState(*rows[0]) if rows else None


def schema_state(store: Store) -> SchemaState:
    """How far the schema is; raises DatabaseUnavailable."""
    needed = schema.head()
    try:
        with store.transaction(readonly=True) as tx:
            rows = tx.run("SELECT version_num FROM alembic_version")
    except DatabaseNotMigrated:
        rows = []
    current = str(rows[0][0]) if rows else None
    return SchemaState(current, needed, usable=current is not None and (current == needed or not schema.knows(current)))
