"""`orchestrator demo`: show the demo while it runs and its numbers afterwards; law: exit 0 only if nothing was lost and the report is right."""

from __future__ import annotations

import platform
import signal
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from orchestrator import demo as demonstration
from orchestrator.commands.printing import AsJson, duration, notes, out, put, put_json, put_table
from orchestrator.demo_workflows import FILES_MAX

BROKEN_TOLD = 5

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    folder: Annotated[
        Path | None, typer.Argument(help="A folder with Python files; default: the running Python's standard library.", readable=False)
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """Watch a workflow survive the death of its worker.

    A workflow looks at every Python file of a folder, one activity a file. Two workers share the work; one is killed with SIGKILL in the
    middle, and the broker is wiped. At the end its report is compared with one that was computed directly.
    """
    # SIGTERM and a closed terminal clean up as Ctrl-C does.
    for which in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, _interrupt)
    wanted = (folder or demonstration.standard_library()).absolute()
    files = demonstration.files_of(wanted)
    if not as_json:
        name = f"{wanted}" if folder else f"the standard library of Python {platform.python_version()}"
        put(f"A workflow surveys {name}. One of its two workers will be killed, and the broker wiped.")
    result = _run(wanted, files, quiet=as_json)
    if as_json:
        facts = ("ok", "files", "lost", "executed_twice", "recovered_s", "workflow_id")
        put_json({name: _rounded(getattr(result, name)) for name in facts})
        if not result.ok:
            notes.print(f"error: {result.problem or 'files were lost'}", markup=False)
    else:
        _tell(result)
    raise typer.Exit(0 if result.ok else 1)


def _run(folder: Path, files: list[str], *, quiet: bool) -> demonstration.Result:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=notes, disable=quiet) as bar:
        task = bar.add_task("", total=None)
        stage = ""

        def show(now: demonstration.Progress) -> None:
            nonlocal stage
            if now.stage != stage and stage and not quiet:
                bar.console.print(f"  {stage}", style="dim", markup=False)
            stage = now.stage
            bar.update(task, description=now.stage, completed=now.done, total=now.files)

        return demonstration.run(folder, files, show=show)


def _tell(result: demonstration.Result) -> None:
    rows = [
        ("files", f"{result.files:,}" + (f" (the first {FILES_MAX:,})" if result.files == FILES_MAX else "")),
        ("activities run", f"{result.activities_run:,}"),
        ("executed twice", f"{result.executed_twice:,} (of {result.in_flight:,} that the dead worker held)"),
        ("lost", f"{result.lost:,}"),
        (
            "seconds to recover",
            duration(result.recovered_s) + (f", caught up after {duration(result.caught_up_s)}" if result.caught_up_s else ""),
        ),
        ("time in all", duration(result.took_s)),
    ]
    put_table(("", ""), rows, empty="")
    report = result.report
    if report is not None:
        put("")
        put(f"The report: {report.lines:,} lines, {report.functions:,} functions.")
        if report.longest:
            put(f"The longest function has {report.longest_lines:,} lines: {report.longest}")
        if report.imports:
            put("Imported most: " + ", ".join(f"{name} ({count:,})" for name, count in report.imports))
        if report.broken:
            put(f"{len(report.broken):,} files cannot be read or parsed, which is a finding and not a failure:")
            for path, reason in report.broken[:BROKEN_TOLD]:
                put(f"    {path}: {reason}")
    put("")
    if result.ok:
        out.print("The same as computed directly. Nothing was lost.", style="bold green")
    else:
        out.print(f"Not right: {result.problem or 'files were lost'}.", style="bold red", markup=False)


def _rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
