"""The demo's workflow: a survey of a folder of Python, one activity a file; law: what it reports depends on the files alone.

Nothing in here knows that workers die: that is the point of the demo.
"""

from __future__ import annotations

import ast
import asyncio
import gc
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from orchestrator import activity, workflow
from orchestrator.clock import SYSTEM

FILES_MAX = 5_000  # a bigger folder is surveyed in part, and the demo says so
IN_FLIGHT_MAX = 200  # activities that the workflow has open at the same time
ATTEMPT_MAX = timedelta(minutes=1)
PAUSE = timedelta(seconds=1.5)  # the durable pause between survey and report
TOP_IMPORTS = 10
REASON_CHARACTERS_MAX = 200
LEFT_OUT = {"site-packages", "dist-packages", "node_modules", "__pycache__"}

_ALONE = threading.Lock()  # warnings and the collector are one for all threads


@dataclass(frozen=True)
class Survey:
    """What is to be surveyed. Each execution of an activity leaves two lines in `log`; `pace_s` is the least time it takes."""

    folder: str
    log: str
    pace_s: float = 0.0


@dataclass(frozen=True)
class FileFacts:
    """One source file; `broken` says why it could not be parsed."""

    path: str
    lines: int = 0
    functions: int = 0
    longest: str = ""
    longest_lines: int = 0
    imports: tuple[str, ...] = ()
    broken: str = ""


@dataclass(frozen=True)
class Report:
    """All files together; `paths` are those that were surveyed, broken ones included."""

    paths: tuple[str, ...]
    lines: int
    functions: int
    longest: str
    longest_lines: int
    imports: tuple[tuple[str, int], ...]
    broken: tuple[tuple[str, str], ...]


@workflow.defn(name="demo.survey")
class SurveyWorkflow:
    """List the files, look at each, wait, report."""

    @workflow.run
    async def run(self, survey: Survey) -> Report:
        """Survey a folder."""
        paths = await workflow.execute_activity(list_files, survey, start_to_close_timeout=ATTEMPT_MAX)
        room = asyncio.Semaphore(IN_FLIGHT_MAX)

        async def look(path: str) -> FileFacts:
            async with room:
                return await workflow.execute_activity(examine, args=[survey, path], start_to_close_timeout=ATTEMPT_MAX)

        facts = await asyncio.gather(*(look(path) for path in paths))
        await workflow.sleep(PAUSE, summary="a durable pause, as if somebody had to approve the report")
        return report_of(facts)


@activity.defn(name="demo.list_files")
def list_files(survey: Survey) -> list[str]:
    """The source files of the folder."""
    return source_files(Path(survey.folder))


@activity.defn(name="demo.examine")
def examine(survey: Survey, path: str) -> FileFacts:
    """Look at one file, and leave a trace of having done so."""
    until = SYSTEM.monotonic() + survey.pace_s
    note(survey.log, "begin", path)
    facts = facts_of(Path(survey.folder), path)
    if survey.pace_s:
        SYSTEM.sleep(max(0.0, until - SYSTEM.monotonic()))
    note(survey.log, "end", path)
    return facts


def note(log: str, what: str, path: str) -> None:
    """Append a line to the side log: one write to a file opened for appending, so that processes never mix their lines."""
    line = f"{SYSTEM.now():.6f}\t{os.getpid()}\t{what}\t{path!r}\n"
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def source_files(folder: Path) -> list[str]:
    """Python files below a folder, sorted, without installed packages and hidden folders; at most FILES_MAX."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in LEFT_OUT and not name.startswith(".")]
        # A name that is no text cannot travel in a payload, and a pipe has no end.
        names = [name for name in files if name.endswith(".py") and name.isprintable() and (Path(root) / name).is_file()]
        found += [os.path.relpath(Path(root) / name, folder) for name in names]
    return sorted(found)[:FILES_MAX]


def facts_of(folder: Path, path: str) -> FileFacts:
    """What can be said of one file; one that cannot be read or parsed is a finding like any other."""
    try:
        source = (folder / path).read_bytes()
        with _undisturbed():
            tree = ast.parse(source)
    except OSError as error:
        return FileFacts(path, broken=error.strerror or type(error).__name__)
    except SyntaxError as error:
        where = f" in line {error.lineno}" if error.lineno else ""
        return FileFacts(path, broken=f"{error.msg[:REASON_CHARACTERS_MAX]}{where}")
    except ValueError as error:
        return FileFacts(path, broken=str(error)[:REASON_CHARACTERS_MAX])
    except (RecursionError, MemoryError):
        return FileFacts(path, broken="nested too deeply")
    statements = list(_statements(tree))
    functions = [node for node in statements if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    longest = max(functions, key=lambda node: (_length(node), node.name, node.lineno), default=None)
    return FileFacts(
        path,
        lines=len(source.splitlines()),
        functions=len(functions),
        longest="" if longest is None else longest.name,
        longest_lines=0 if longest is None else _length(longest),
        imports=tuple(sorted(set(_imports(statements)))),
    )


def report_of(facts: Iterable[FileFacts]) -> Report:
    """All files together; the order in which they came does not matter."""
    known = sorted(facts, key=lambda fact: fact.path)
    longest = max(known, key=lambda fact: (fact.longest_lines, fact.path), default=FileFacts(""))
    imports = Counter(name for fact in known for name in fact.imports)
    return Report(
        paths=tuple(fact.path for fact in known),
        lines=sum(fact.lines for fact in known),
        functions=sum(fact.functions for fact in known),
        longest=f"{longest.path}: {longest.longest}" if longest.longest else "",
        longest_lines=longest.longest_lines,
        imports=tuple(sorted(imports.items(), key=lambda item: (-item[1], item[0]))[:TOP_IMPORTS]),
        broken=tuple((fact.path, fact.broken) for fact in known if fact.broken),
    )


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Parse without warnings, whose authors are not here to read them, and without the collector of cycles.

    It would walk through each tree again and again while it grows, for 40 % of the time, and a tree has no cycles.
    """
    with _ALONE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        collected = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if collected:
                gc.enable()


def _length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _statements(tree: ast.Module) -> Iterable[ast.AST]:
    """Every statement, however deep; expressions, which are most of a tree, hold neither functions nor imports."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        yield node
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, field, None)
            if isinstance(inner, list):  # the body of a lambda is an expression
                todo += inner


def _imports(statements: Iterable[ast.AST]) -> Iterable[str]:
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
