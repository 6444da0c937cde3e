"""How commands speak: tables for people, JSON for machines; law: stdout is the answer and nothing else, the rest goes to stderr."""

from __future__ import annotations

import dataclasses
import getpass
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="JSON for machines instead of text for people.")]

_OPTIONS = orjson.OPT_NON_STR_KEYS | orjson.OPT_SORT_KEYS
CELL_CHARACTERS_MAX = 2_000

out = Console(highlight=False, soft_wrap=True)
notes = Console(stderr=True, highlight=False, soft_wrap=True)


def put_json(answer: Any) -> None:  # noqa: ANN401 - any record or JSON value
    """One line of JSON on stdout."""
    sys.stdout.write(orjson.dumps(answer, default=_plain, option=_OPTIONS).decode() + "\n")
    sys.stdout.flush()


def put_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table on stdout, or a sentence if it has no rows."""
    table = Table(*columns, box=None, pad_edge=False, header_style="bold", show_header=any(columns))
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)[:CELL_CHARACTERS_MAX]) for cell in row))
    if table.row_count:
        # A pipe has no width: nothing is cut there.
        (out if sys.stdout.isatty() else Console(highlight=False, width=10_000)).print(table)
    else:
        out.print(empty)


def put(line: str) -> None:
    """A line on stdout, exactly as it is."""
    out.print(Text(line))


def actor() -> str:
    """Who types, as the audit names them."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # an account without a name, as containers have them
        return f"cli:{os.getuid()}"


def moment(seconds: float | None) -> str:
    """A time for people, UTC."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def duration(seconds: float | None) -> str:
    """A duration for people."""
    if seconds is None:
        return ""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def compact(value: Any) -> str:  # noqa: ANN401 - any JSON value
    """A JSON value on one line."""
    return orjson.dumps(value, default=_plain, option=_OPTIONS).decode()


def _plain(value: Any) -> Any:  # noqa: ANN401 - what orjson does not know
    if isinstance(value, set | frozenset):
        return sorted(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return str(value)
