"""Hints between processes that share a PostgreSQL; law: a hint may get lost, something else stands behind it.

"These runs are closed", or questions answered, is for all who wait; they look for themselves, and a poll stands behind it. "Your queue has
work" goes to one worker, as a doorbell that is faster than the broker's; that one rings all the same, a little later.

NOTIFY makes the commits that use it wait for each other and wakes every connection that listens, whoever is meant. So commits of many turns
give no hint, clients give few (see `connection`), and where many workers live they are left to the broker.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
import psycopg
from psycopg import sql

from orchestrator.errors import DatabaseUnavailable
from orchestrator.store.transaction import Reply, Sender

TURNS_MAX = 8  # a commit that closes, answers or starts more than this gives no hint
LISTENERS_MAX = 16  # workers that are told of work; where there are more, the broker alone rings

Woken = Mapping[str, Reply]  # by queue

CLOSED = "orchestrator_closed"
_NOTIFY = f"SELECT pg_notify('{CLOSED}', :ids)"
WAKE = f"""
SELECT pg_notify('orchestrator_' || w.worker_id, '') FROM (
    SELECT worker_id FROM workers
    WHERE expires_at > {{now}} AND NOT stopping AND position(<queue> IN queues) > 0 AND (SELECT count(*) FROM workers) <= {LISTENERS_MAX}
    ORDER BY random() LIMIT 1
) AS w
"""  # noqa: S608 - a number of ours
"""To be part of a sentence; instead of `<queue>`, the JSON text of the queue's name."""
_WAKE = WAKE.replace("<queue>", ":queue")
_POKE = "SELECT pg_notify(:channel, '')"


def give(tx: Sender, dialect: str, ids: Sequence[str]) -> None:
    """Tell whoever waits for one of these runs or questions that it is closed or answered, when the transaction commits; if they are few."""
    if dialect == "postgresql" and len(ids) <= TURNS_MAX:
        tx.send(_NOTIFY, ids=" ".join(ids))


def wake(tx: Sender, dialect: str, queues: Iterable[str]) -> Woken:
    """Tell one worker of each of these queues that it has work, when the transaction commits; see `told`."""
    if dialect != "postgresql":
        return {}
    return {queue: tx.send(_WAKE, queue=orjson.dumps(queue).decode()) for queue in sorted(queues)}


def told(woken: Woken) -> set[str]:
    """The queues that had a worker to be told; to be asked after the transaction."""
    return {queue for queue, reply in woken.items() if reply.count()}


def poke(tx: Sender, worker_id: str) -> None:
    """Make this worker's ear hear something."""
    tx.send(_POKE, channel=channel_of(worker_id))


def channel_of(worker_id: str) -> str:
    """Where this worker listens."""
    return f"orchestrator_{worker_id}"


class Ear:
    """A connection that listens."""

    def __init__(self, connection: psycopg.Connection[Any], channel: str) -> None:
        self._connection = connection
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(channel)))

    def hears(self, timeout_s: float) -> list[str]:
        """Wait for hints, at most timeout_s seconds; return what they say. Raises DatabaseUnavailable when the connection is lost."""
        try:
            return [notify.payload for notify in self._connection.notifies(timeout=timeout_s, stop_after=1)]
        except psycopg.Error as error:
            raise DatabaseUnavailable(f"the database no longer gives hints: {error}") from error

    def close(self) -> None:
        """Listen no more."""
        self._connection.close()
