"""One transaction on one database, spoken to in named sentences; law: one SQL text for both databases, on the raw driver connection.

A sentence is SQL with `:name` parameters and a few macros, rendered once per database and cached:

* `{now}` the database's clock, one value per statement (SQLite asks the store's clock, so that a simulation can move time);
* `{rows a:text, b:int}` a row source `v(a, b)` for `run_rows`, of types text, int, float and bool. Such a sentence must mean the same
  for all rows at once (PostgreSQL, one statement) as for one row after the other (SQLite, one prepared statement run per row:
  measured faster there than unpacking JSON, and floats stay exact, which replay depends on);
* `{keyed table a:text, b:int}` the rows of a table whose columns of these names have the values of a row source, for a DELETE; further
  conditions follow with AND;
* `{at column value}` `column = value` with the value of another table: the rows of the column are found by its index, one value after the
  other. A plain `=` lets PostgreSQL read the whole table first and compare each of its rows with each value, which it takes to be as cheap
  for a table that was empty when it was vacuumed last. `{unindexed column}` is for a condition by which nothing shall be looked for;
* `{in column :list}` membership in a list parameter; `{least}` the smallest of its arguments, none of them NULL;
* `{begins column :first :beyond}` text from `first` up to, but not with, `beyond`, character by character in any locale;
* `{skip_locked}`, `{lock}` row locks, nothing on SQLite where the one writer has the whole file;
* for views: `{time column}` a readable time, `{each column}` the elements of a JSON array as `e(value, key)`.
"""

from __future__ import annotations

import re
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import orjson
import psycopg
from psycopg.rows import tuple_row

from orchestrator.store import prepared

Row = tuple[Any, ...]  # a row has the types that its sentence names; the function that speaks it makes a record of it

SENTENCES_MAX = 1024  # lists with filters compose sentences: a few per combination
_ARRAYS = {"text": "text[]", "int": "bigint[]", "float": "float8[]", "bool": "boolean[]"}
_CASTS = {"text": "TEXT", "int": "INTEGER", "float": "REAL", "bool": "INTEGER"}  # without them SQLite leaves half of an index unused
_PART = re.compile(r"\{(\w+)(?: ([^}]*))?\}|(?<!:):([a-z_]+)|%")
_ANSWERS = re.compile(r"^\s*(SELECT|WITH)\b|\bRETURNING\b")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A sentence as one database understands it."""

    text: str
    answers: bool  # it returns rows
    types: tuple[str, ...]  # of the columns of its row source
    names: tuple[str, ...]  # SQLite with a row source: the other parameters, by position after its columns


class Reply(ABC):
    """The answer to a sentence that may still be on its way."""

    @abstractmethod
    def rows(self) -> list[Row]:
        """Wait for the answer; errors of the sentence, or of one sent before it, are raised here."""

    def count(self) -> int:
        """How many rows it has; all that can be said of a statement among others of which a number of rows was expected."""
        return len(self.rows())


class Transaction(ABC):
    """An open transaction; `send` promises order but not that the database has answered, `run` waits for the answer."""

    dialect: str
    single = False  # it consists of one statement, or of one block of `together`, and is committed with it

    def run(self, sentence: str, /, **params: Any) -> list[Row]:  # noqa: ANN401 - what a driver can bind
        """Run one statement and return its rows."""
        return self.send(sentence, **params).rows()

    def run_rows(self, sentence: str, rows: Sequence[Row], /, **params: Any) -> list[Row]:  # noqa: ANN401 - what a driver can bind
        """Run one statement over a row source and return its rows, in no particular order."""
        return self.send_rows(sentence, rows, **params).rows()

    def now(self) -> float:
        """The database's clock, seconds since the epoch."""
        return float(self.run("SELECT {now}")[0][0])

    @abstractmethod
    def send(self, sentence: str, /, **params: Any) -> Reply:  # noqa: ANN401 - what a driver can bind
        """Run one statement without waiting for its answer."""

    @abstractmethod
    def send_rows(self, sentence: str, rows: Sequence[Row], /, **params: Any) -> Reply:  # noqa: ANN401 - what a driver can bind
        """Run one statement over a row source without waiting for its answer; no rows, no statement."""

    @abstractmethod
    def together(self) -> AbstractContextManager[Together]:
        """Collect statements and send them at the end of the block as one, where the database can.

        They must touch different rows, and none may need to see what another did: they look at the moment before the first of them.
        """

    @abstractmethod
    def start_over(self) -> None:
        """Undo everything that this transaction has done, and go on with a new one."""


class Unmet(Exception):
    """A statement of a single transaction changed another number of rows than it had to; nothing was written."""


class Sender(Protocol):
    """What statements can be given to."""

    def send(self, sentence: str, /, **params: Any) -> Reply:  # noqa: ANN401 - what a driver can bind
        """Run one statement."""
        ...

    def send_rows(self, sentence: str, rows: Sequence[Row], /, **params: Any) -> Reply:  # noqa: ANN401 - what a driver can bind
        """Run one statement over a row source; no rows, no statement."""
        ...


class Together(Sender, Protocol):
    """What statements can be given to that are to be sent as one."""

    def expect(self, reply: Reply, count: int) -> None:
        """In a single transaction on PostgreSQL: raise Unmet at the end of the block unless the statement gave `count` rows."""
        ...


class Answered(Reply):
    """An answer that is here."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def rows(self) -> list[Row]:
        """The rows."""
        return self._rows


class SqliteTransaction(Transaction):
    """Sentences on a sqlite3 connection."""

    dialect = "sqlite"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._cursor = connection.cursor()
        self._cursor.row_factory = None

    def together(self) -> AbstractContextManager[Together]:
        """One after the other: a statement costs no round trip here."""
        return nullcontext(self)

    def expect(self, reply: Reply, count: int) -> None:
        """The caller looks for itself: it can undo what it did."""

    def start_over(self) -> None:
        """Undo everything."""
        self._cursor.execute("ROLLBACK")
        self._cursor.execute("BEGIN IMMEDIATE")

    def send(self, sentence: str, /, **params: Any) -> Reply:  # noqa: ANN401 - what a driver can bind
        """Run it now."""
        bound = {name: _listed(value) for name, value in params.items()}
        return Answered(self._cursor.execute(render("sqlite", sentence).text, bound).fetchall())

    def send_rows(self, sentence: str, rows: Sequence[Row], /, **params: Any) -> Reply:  # noqa: ANN401 - what a driver can bind
        """Run it now, row by row."""
        rendered = render("sqlite", sentence)
        rest = tuple(_listed(params[name]) for name in rendered.names)
        bound = [(*row, *rest) for row in rows] if rest else rows
        if not rendered.answers:
            self._cursor.executemany(rendered.text, bound)
            return Answered([])
        return Answered([row for values in bound for row in self._cursor.execute(rendered.text, values).fetchall()])


class PostgresTransaction(Transaction):
    """Sentences on a psycopg connection; in pipeline mode those sent share a round trip."""

    dialect = "postgresql"

    def __init__(self, connection: psycopg.Connection[Any], *, single: bool = False) -> None:
        self._connection = connection
        self.single = single
        self._sent = 0

    def send(self, sentence: str, /, **params: Any) -> Reply:  # noqa: ANN401 - what a driver can bind
        """Put it on its way."""
        rendered = render("postgresql", sentence)
        if self.single:
            self._count_sent()
            return Answered(prepared.rows(self._connection, rendered.text, {name: _text(value) for name, value in params.items()}))
        cursor = self._cursor()
        bound = {name: array(value) if isinstance(value, list) else value for name, value in params.items()}
        cursor.execute(rendered.text.encode(), bound)
        return _Sent(cursor) if rendered.answers else Answered([])

    def send_rows(self, sentence: str, rows: Sequence[Row], /, **params: Any) -> Reply:  # noqa: ANN401 - what a driver can bind
        """Put it on its way, one array a column."""
        return self.send(sentence, **columns_of(rows), **params) if rows else Answered([])

    @contextmanager
    def together(self) -> Iterator[Together]:
        """As one statement: each becomes a common table expression, and all answers come in one row."""
        group = _Group()
        yield group
        if not group.parts:
            return
        if not self.single:
            group.sent = self._cursor()
            group.sent.execute(group.text().encode(), group.params)
            return
        self._count_sent()
        try:
            group.counted = bool(group.expected)
            (group.answers,) = prepared.rows(self._connection, group.text(tuple(group.expected)), group.params)
        except psycopg.errors.DivisionByZero as error:
            raise Unmet from error

    def start_over(self) -> None:
        """Undo everything."""
        self._connection.execute("ROLLBACK")
        self._connection.execute("BEGIN")

    def _cursor(self) -> psycopg.Cursor[Row]:
        return self._connection.cursor(row_factory=tuple_row)

    def _count_sent(self) -> None:
        self._sent += 1
        assert self._sent == 1, "a single transaction is one statement"


class _Group:
    """Statements that wait to be sent together."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, Sequence[Row]]] = []
        self.params: dict[str, str | None] = {}
        self.expected: list[int] = []
        self.sent: psycopg.Cursor[Row] | None = None
        self.answers: Sequence[Any] | None = None
        self.counted = False  # the answers are numbers of rows

    def send(self, sentence: str, /, **params: Any) -> Reply:  # noqa: ANN401 - what a driver can bind
        """Keep it."""
        return self._keep(sentence, (), params)

    def send_rows(self, sentence: str, rows: Sequence[Row], /, **params: Any) -> Reply:  # noqa: ANN401 - what a driver can bind
        """Keep it."""
        return self._keep(sentence, rows, params) if rows else Answered([])

    def expect(self, reply: Reply, count: int) -> None:
        """Keep it."""
        if isinstance(reply, _Share):
            self.expected.append(reply.place)
            self.params[f"expected_{reply.place}"] = str(count)

    def text(self, expected: tuple[int, ...] = ()) -> str:
        """All of it as one statement; the parameters are complete after this call."""
        one_row = all(len(rows) <= 1 for _, rows in self.parts)
        for place, (_, rows) in enumerate(self.parts):
            if rows:
                values = [_text(value) for value in rows[0]] if one_row else [array(column) for column in zip(*rows, strict=True)]
                self.params.update({f"s{place}_v_{position}": value for position, value in enumerate(values)})
        return composed(tuple(sentence for sentence, _ in self.parts), expected, one_row=one_row)

    def answer(self, place: int) -> list[Row]:
        """The rows of one of the statements."""
        if self.answers is None:
            assert self.sent is not None, "answers come after the block"
            self.answers = self.sent.fetchone()
            assert self.answers is not None, "a statement made of scalar sub-selects has one row"
        return [tuple(record.values()) for record in orjson.loads(self.answers[place])]

    def count(self, place: int) -> int:
        """How many rows one of the statements has given."""
        if not self.counted:
            return len(self.answer(place))
        assert self.answers is not None, "answers come after the block"
        return int(self.answers[place])

    def _keep(self, sentence: str, rows: Sequence[Row], params: Mapping[str, Any]) -> _Share:
        place = len(self.parts)
        self.parts.append((sentence, rows))
        for name, value in params.items():
            self.params[f"s{place}_{name}"] = _text(value)
        return _Share(self, place)


class _Share(Reply):
    def __init__(self, group: _Group, place: int) -> None:
        self._group, self.place = group, place

    def rows(self) -> list[Row]:
        return self._group.answer(self.place)

    def count(self) -> int:
        return self._group.count(self.place)


class _Sent(Reply):
    def __init__(self, cursor: psycopg.Cursor[Row]) -> None:
        self._cursor = cursor

    def rows(self) -> list[Row]:
        return self._cursor.fetchall()


@lru_cache(maxsize=SENTENCES_MAX)
def composed(sentences: tuple[str, ...], expected: tuple[int, ...] = (), *, one_row: bool = False) -> str:
    """PostgreSQL: one statement out of several; their parameters are told apart by the place of the statement.

    Where no row source has more than one row, the planner gets it as values and not as a function, and what it makes of that begins to
    run in half the time. Where row counts are expected, the statement divides by zero, and so undoes itself, unless they are met.
    """
    parts, answers = [], []
    for place, sentence in enumerate(sentences):
        rendered = render("postgresql", sentence, one_row=one_row)
        parts.append(f"s{place} AS ({rendered.text.replace('%(', f'%(s{place}_')})")
        # Every answer is asked for, if only for its length: a query that nobody refers to is not run.
        answer = "count(*)" if expected else f"coalesce(json_agg(s{place}), '[]')::text"
        answers.append(f"(SELECT {answer} FROM s{place})" if rendered.answers and place not in expected else "'[]'")  # noqa: S608 - ours
    if expected:
        met = " AND ".join(f"(SELECT count(*) FROM s{place}) = %(expected_{place})s" for place in expected)  # noqa: S608 - ours
        answers.append(f"1 / CASE WHEN {met} THEN 1 ELSE 0 END")
    return f"WITH {', '.join(parts)} SELECT {', '.join(answers)}"


def columns_of(rows: Sequence[Row]) -> dict[str, str]:
    """The parameters of a row source on PostgreSQL: an array for each column."""
    return {f"v_{position}": array(column) for position, column in enumerate(zip(*rows, strict=True))}


def array(values: Sequence[Any]) -> str:
    """PostgreSQL's text form of an array; measured ten times faster than the driver's own, and the casts in the sentence say its type."""
    return "{" + ",".join(["NULL" if value is None else _element(value) for value in values]) + "}"


def _element(value: Any) -> str:  # noqa: ANN401 - str, int, float or bool
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)


def _text(value: Any) -> str | None:  # noqa: ANN401 - str, int, float, bool, a list of such, or None
    if value is None or isinstance(value, str):
        return value
    return array(value) if isinstance(value, list) else str(value)


def _listed(value: Any) -> Any:  # noqa: ANN401 - what a driver can bind
    return orjson.dumps(value).decode() if isinstance(value, list) else value


@lru_cache(maxsize=SENTENCES_MAX)
def render(dialect: str, sentence: str, *, one_row: bool = False) -> Rendered:
    """Replace macros and parameters; the sentence itself stays as it is written."""
    postgres = dialect == "postgresql"
    columns = _columns(sentence)
    names: list[str] = []

    def parameter(name: str) -> str:
        if postgres:
            return f"%({name})s"
        if not columns:
            return f":{name}"
        if name not in names:
            names.append(name)
        return f"?{len(columns) + names.index(name) + 1}"

    def macro(name: str, argument: str) -> str:
        match name:
            case "now":
                return "extract(epoch from statement_timestamp())::float8" if postgres else "db_now()"
            case "rows":
                return _row_source(columns, postgres=postgres, one_row=one_row)
            case "keyed":
                return _keyed(argument.partition(" ")[0], columns, postgres=postgres, one_row=one_row)
            case "at":
                column, value = argument.split(" ")
                return _found(column, value) if postgres and not one_row else f"{column} = {value}"
            case "unindexed":
                return f"greatest({argument})" if postgres else f"+{argument}"  # of one: itself, but no index is on it
            case "in":
                column, parameter_name = argument.split(" :")
                value = parameter(parameter_name)
                listed = f"{column} IN (SELECT value FROM json_each({value}))"  # noqa: S608 - names from our own sentences
                return f"{column} = ANY({value})" if postgres else listed
            case "begins":
                column, first, beyond = argument.split(" :")
                least, below = ("~>=~", "~<~") if postgres else (">=", "<")
                return f"{column} {least} {parameter(first)} AND {column} {below} {parameter(beyond)}"
            case "least":
                return "least" if postgres else "min"
            case "skip_locked":
                return "FOR UPDATE SKIP LOCKED" if postgres else ""
            case "lock":
                return "FOR UPDATE" if postgres else ""
            case "time":
                return f"to_timestamp({argument})" if postgres else f"strftime('%Y-%m-%dT%H:%M:%fZ', {argument}, 'unixepoch')"
            case "each":
                return _elements(argument) if postgres else f"json_each({argument}) AS e"
            case _:
                raise AssertionError(f"no macro is called {name}")

    def part(match: re.Match[str]) -> str:
        name, argument, parameter_name = match.groups()
        if name:
            return macro(name, argument or "")
        if parameter_name:
            return parameter(parameter_name)
        return "%%" if postgres else "%"

    text = " ".join(_PART.sub(part, sentence).split())
    return Rendered(text, bool(_ANSWERS.search(sentence)), tuple(kind for _, kind in columns), tuple(names))


def _columns(sentence: str) -> list[tuple[str, ...]]:
    """Names and types of its row source."""
    source = re.search(r"\{(?:rows|keyed \w+) ([^}]*)\}", sentence)
    return [tuple(column.strip().split(":")) for column in source[1].split(",")] if source else []


def _row_source(columns: Sequence[tuple[str, ...]], *, postgres: bool, one_row: bool) -> str:
    if postgres and not one_row:
        arrays = ", ".join(f"%(v_{position})s::{_ARRAYS[kind]}" for position, (_, kind) in enumerate(columns))
        return f"unnest({arrays}) AS v({', '.join(name for name, _ in columns)})"
    if postgres:
        values = (f"%(v_{position})s::{_ARRAYS[kind][:-2]} AS {name}" for position, (name, kind) in enumerate(columns))
    else:
        values = (f"CAST(?{position} AS {_CASTS[kind]}) AS {name}" for position, (name, kind) in enumerate(columns, 1))
    return f"(SELECT {', '.join(values)}) AS v"


def _keyed(table: str, columns: Sequence[tuple[str, ...]], *, postgres: bool, one_row: bool) -> str:
    if not postgres:
        keys = [f"{name} = CAST(?{position} AS {_CASTS[kind]})" for position, (name, kind) in enumerate(columns, 1)]
        return f"{table} WHERE {' AND '.join(keys)}"
    keys = [f"{table}.{name} = v.{name}" for name, _ in columns]
    if not one_row:
        keys[0] = _found(f"{table}.{columns[0][0]}", f"v.{columns[0][0]}")
    return f"{table} USING {_row_source(columns, postgres=True, one_row=one_row)} WHERE {' AND '.join(keys)}"


def _found(column: str, value: str) -> str:
    # An index serves this, and a merge join, for which PostgreSQL would consider to read all of the index, does not.
    return f"{column} = ANY(ARRAY[{value}])"


def _elements(array_text: str) -> str:
    # PostgreSQL has no character for the escape \u0000, which payloads may hold.
    return rf"json_array_elements(replace({array_text}, '\u0000', '\ufffd')::json) WITH ORDINALITY AS e(value, key)"
