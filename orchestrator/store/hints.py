"""Hints between processes that share a PostgreSQL: "something was closed or answered"; law: a hint may get lost, a poll stands behind it.

The hint says nothing more, so whoever waits looks for himself. It is given with commits of few turns only: NOTIFY makes such commits wait for
each other, and under load everybody looks often enough.
"""

from __future__ import annotations

from typing import Any

import psycopg

from orchestrator.errors import DatabaseUnavailable
from orchestrator.store.transaction import Sender

TURNS_MAX = 8  # a commit of more turns gives no hint

_CHANNEL = "orchestrator_closed"
_NOTIFY = f"SELECT pg_notify('{_CHANNEL}', '')"
_LISTEN = f"LISTEN {_CHANNEL}"


def give(tx: Sender, dialect: str) -> None:
    """Tell whoever listens, when the transaction commits."""
    if dialect == "postgresql":
        tx.send(_NOTIFY)


class Ear:
    """A connection that listens."""

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        connection.execute(_LISTEN)

    def hears(self, timeout_s: float) -> bool:
        """Wait for a hint, at most timeout_s seconds; raises DatabaseUnavailable when the connection is lost."""
        try:
            return any(True for _ in self._connection.notifies(timeout=timeout_s, stop_after=1))
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"the database no longer tells of results, they are asked for: {error}") from error

    def close(self) -> None:
        """Listen no more."""
        self._connection.close()
