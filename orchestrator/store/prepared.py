"""Statements that PostgreSQL is told once and then called by name, without a cursor; law: one round trip each, outside of a transaction block.

A cursor finds out anew for each call what its parameters are. Ours are text, the sentence says their types, so sending and waiting is all
there is to do: measured, a quarter of a cursor's time.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg import generators
from psycopg.pq import ExecStatus
from psycopg.pq.abc import PGresult

TEXTS_MAX = 1024  # that are kept in their numbered form
STATEMENTS_MAX = 100  # of one connection; the driver has as many of its own

_PLACE = re.compile(r"%\((\w+)\)s|%%")
_LOADERS: dict[int, Callable[[bytes], Any]] = {16: b"t".__eq__, 20: int, 21: int, 23: int, 700: float, 701: float}  # by type; else text
_DONE = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)

_statements: WeakKeyDictionary[psycopg.Connection[Any], dict[str, bytes]] = WeakKeyDictionary()
_numbers = itertools.count()


def rows(connection: psycopg.Connection[Any], text: str, params: Mapping[str, str | None]) -> list[tuple[Any, ...]]:
    """Run a statement with `%(name)s` parameters and return its rows. Raises what the driver would."""
    numbered, names = _numbered(text)
    values = [None if (value := params[name]) is None else value.encode() for name in names]
    try:
        result = _run(connection, text, numbered, values)
    except psycopg.errors.InvalidSqlStatementName:
        # The session was cleared, as the driver does after a rollback. Nothing was run.
        _statements.pop(connection, None)
        result = _run(connection, text, numbered, values)
    columns = [(column, _LOADERS.get(result.ftype(column), bytes.decode)) for column in range(result.nfields)]
    return [
        tuple(None if (found := result.get_value(row, column)) is None else load(found) for column, load in columns)
        for row in range(result.ntuples)
    ]


def _run(connection: psycopg.Connection[Any], text: str, numbered: bytes, values: Sequence[bytes | None]) -> PGresult:
    known = _statements.get(connection)
    if known is None:
        known = _statements[connection] = {}
    name = known.get(text) or _prepare(connection, known, text, numbered)
    connection.pgconn.send_query_prepared(name, values)
    return _answer(connection)


def _prepare(connection: psycopg.Connection[Any], known: dict[str, bytes], text: str, numbered: bytes) -> bytes:
    if len(known) >= STATEMENTS_MAX:
        oldest = known.pop(next(iter(known)))
        connection.execute(b"DEALLOCATE " + oldest)
    name = b"ours_%d" % next(_numbers)
    connection.pgconn.send_prepare(name, numbered)
    _answer(connection)
    known[text] = name
    return name


def _answer(connection: psycopg.Connection[Any]) -> PGresult:
    result: PGresult = connection.wait(generators.execute(connection.pgconn))[-1]
    if result.status not in _DONE:
        raise psycopg.errors.error_from_result(result)
    return result


@lru_cache(maxsize=TEXTS_MAX)
def _numbered(text: str) -> tuple[bytes, tuple[str, ...]]:
    """The statement with `$1` instead of names, and the names by number."""
    names: dict[str, int] = {}

    def place(match: re.Match[str]) -> str:
        name = match[1]
        return "%" if name is None else f"${names.setdefault(name, len(names) + 1)}"

    numbered = _PLACE.sub(place, text)
    return numbered.encode(), tuple(names)
