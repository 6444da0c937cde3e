"""`orchestrator demo`: show the demo while it runs and its numbers afterwards; law: exit 0 only if nothing was lost and the report is right."""

from __future__ import annotations

import platform
import signal
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from orchestrator import demo as demonstration
from orchestrator import demo_fleet as fleet_demonstration
from orchestrator.commands.printing import AsJson, duration, notes, out, put, put_json, put_table
from orchestrator.demo_workflows import FILES_MAX

BROKEN_TOLD = 5
FLEET = "fleet"

app = typer.Typer(add_completion=False)


@app.command()
def demo(
    folder: Annotated[
        str | None,
        typer.Argument(
            help="A folder with Python files, default: the running Python's standard library; or `fleet` (the folder is ./fleet)."
        ),
    ] = None,
    *,
    seconds: Annotated[
        float, typer.Option(help="How long the fleet works.", min=fleet_demonstration.SECONDS_MIN)
    ] = fleet_demonstration.SECONDS,
    as_json: AsJson = False,
) -> None:
    """Watch a workflow survive the death of its worker; or a fleet of agents the death of one of each kind.

    A workflow looks at every Python file of a folder, one activity a file. Two workers share the work; one is killed with SIGKILL in the
    middle, and the broker is wiped. At the end its report is compared with one that was computed directly.

    `demo fleet` starts three types of agents (native, child, http), gives them real work for a minute, pauses, drains, restarts and kills
    some, and counts what was sent, done, executed twice and lost.
    """
    # SIGTERM and a closed terminal clean up as Ctrl-C does.
    for which in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(which, _interrupt)
    if folder == FLEET:
        _show_fleet(seconds, as_json=as_json)
    wanted = Path(folder).absolute() if folder else demonstration.standard_library()
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


def _show_fleet(seconds: float, *, as_json: bool) -> NoReturn:
    if not as_json:
        put("Three types of agents get real work. They are paused, drained, restarted, and one of each is killed.")
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[sent]:,} works sent"), TimeElapsedColumn())
    with Progress(*columns, console=notes, disable=as_json) as bar:
        task = bar.add_task("", total=seconds, sent=0)

        def show(now: fleet_demonstration.Progress) -> None:
            bar.update(task, description=now.stage, completed=now.done_s, sent=now.sent)

        result = fleet_demonstration.run(seconds, show=show)
    if as_json:
        rows = [{name: _rounded(value) for name, value in asdict(row).items()} for row in result.rows]
        put_json({"ok": result.ok, "lost": sum(row.lost for row in result.rows), "agents": rows, "took_s": _rounded(result.took_s)})
        if not result.ok:
            notes.print(f"error: {result.problem}", markup=False)
    else:
        put_table(
            ("type", "kind", "sent", "done", "executed twice", "lost", "time to detect", "time to recover"),
            [
                (
                    row.type,
                    row.kind,
                    f"{row.sent:,}",
                    f"{row.done:,}",
                    f"{row.executed_twice:,}",
                    f"{row.lost:,}",
                    duration(row.detect_s),
                    duration(row.recover_s),
                )
                for row in result.rows
            ],
            empty="",
        )
        put("")
        if result.ok:
            out.print("Every work has its result, and every result is right. Nothing was lost.", style="bold green")
        else:
            out.print(f"Not right: {result.problem}.", style="bold red", markup=False)
    raise typer.Exit(0 if result.ok else 1)


def _rounded(value: object) -> object:
    return round(value, 3) if isinstance(value, float) else value


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
