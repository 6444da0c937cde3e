"""`--reqs`: which requirement rows have tests, as a table; law: a mark that names no row is an error, so that no proof points nowhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

ROWS = Path(__file__).resolve().parent.parent / "docs" / "requirements.md"
LATER = {"S4": "ingestion and reflexes are not built yet"}
"""Part of the rows -> why none of them needs a test."""
ROW = re.compile(r"^\| ((?:S\d|DC)-\d+) \| ([MOD]) \| (.*) \|$")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reqs", action="store_true", help="list the requirement rows with and without tests, and run nothing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    known = rows()
    for item in items:
        for mark in item.iter_markers("req"):
            for row in mark.args:
                if row not in known:
                    raise pytest.UsageError(f"{item.nodeid} proves {row!r}, which docs/requirements.md does not have")


def pytest_collection_finish(session: pytest.Session) -> None:
    if not session.config.getoption("reqs"):
        return
    tests: Counter[str] = Counter()
    for function, row in {
        (item.nodeid.partition("[")[0], row) for item in session.items for m in item.iter_markers("req") for row in m.args
    }:
        tests[row] += bool(function)
    known = rows()
    table = Table("row", "", "requirement", "tests", title="Requirements and the tests that name them")
    for row, (tag, text) in known.items():
        table.add_row(row, tag, text, str(tests[row]) if tests[row] else "[red]none[/red]", style=None if tests[row] else "bold")
    console = Console()
    console.print(table)
    console.print(summary(known, tests))
    owed = unproven(known, tests)
    pytest.exit(f"no test names {', '.join(owed)}" if owed else "requirements listed, nothing run", returncode=1 if owed else 0)


def unproven(known: Mapping[str, tuple[str, str]], tests: Mapping[str, int]) -> list[str]:
    """The rows that must have a test and have none."""
    return [row for row, (tag, _) in known.items() if tag == "M" and not tests.get(row) and row.partition("-")[0] not in LATER]


def rows() -> dict[str, tuple[str, str]]:
    """Row -> (tag, requirement)."""
    found = (ROW.match(line) for line in ROWS.read_text(encoding="utf-8").splitlines())
    return {match[1]: (match[2], match[3]) for match in found if match}


def summary(known: dict[str, tuple[str, str]], tests: Counter[str]) -> str:
    lines = []
    for part in dict.fromkeys(row.partition("-")[0] for row in known):
        must = [row for row, (tag, _) in known.items() if row.startswith(f"{part}-") and tag == "M"]
        missing = [row for row in must if not tests[row]]
        lines.append(
            f"{part}: {len(must) - len(missing)} of {len(must)} [M] rows have tests" + (f"; none: {', '.join(missing)}" if missing else "")
        )
    return "\n".join(lines)
