"""`python -m benchmarks.scale [PROBE…]`: ask the probes, tell what they found; law: whatever was started is ended.

Writes benchmarks/SCALE.md and its plots when all probes have run at their full size, else nothing unless told to.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.arena import Arena
from benchmarks.processes import PeerFailed
from benchmarks.report import describe_machine, number
from benchmarks.scale import capacity, heartbeats, histories, idle, listing, page, sleepers
from benchmarks.scale.figures import Findings, Probe
from orchestrator.errors import ServerUnavailable

PROBES: dict[str, Probe] = {module.PROBE.name: module.PROBE for module in (idle, sleepers, heartbeats, histories, listing, capacity)}
FOLDER = Path(__file__).parent.parent
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask and tell; the exit code is 0, 1 (a probe failed), 2 (misused) or 130 (interrupted)."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(stderr=options.json)
    machine = describe_machine()
    found: dict[str, Findings] = {}
    status = 0
    try:
        with Arena(options.postgres) as arena:
            machine["PostgreSQL"] = ", ".join(f"{name} {value}" for name, value in arena.postgres_settings.items())
            for name in options.probes:
                found[name] = _ask(PROBES[name], arena, options.quick, console)
                _show(PROBES[name], found[name], console)
    except KeyboardInterrupt:
        console.print("Interrupted; what was found until then is above.")
        status = INTERRUPTED
    except (PeerFailed, ServerUnavailable) as error:
        console.print("Failed:", style="bold red")
        console.print(str(error), markup=False, highlight=False)
        status = 1
    if status == 0 and options.write:
        console.print(f"written: {page.write(PROBES, found, machine, options.write, quick=options.quick).name}")
    if options.json:
        print(json.dumps({"machine": machine, "quick": options.quick, "probes": {name: asdict(one) for name, one in found.items()}}))
    return status


def _ask(probe: Probe, arena: Arena, quick: bool, console: Console) -> Findings:
    size = probe.quick if quick else probe.full
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=1, transient=True) as progress:
        task = progress.add_task(f"{probe.name}: {size:,}", total=1.0)
        return probe.run(arena, size, lambda share: progress.update(task, completed=share))


def _show(probe: Probe, found: Findings, console: Console) -> None:
    table = Table("", "", "at most", "kept", title=probe.title, title_justify="left")
    for figure in found.figures:
        limit = "" if figure.limit is None else number(figure.limit)
        table.add_row(
            figure.name, f"{number(figure.value)} {figure.unit}", limit, {True: "yes", False: "[red]no[/]", None: ""}[figure.kept]
        )
    console.print(table)
    for note in found.notes:
        console.print(note, markup=False, highlight=False)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    known = "; ".join(f"{name}: {probe.title} ({probe.full:,})" for name, probe in PROBES.items())
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description="What it costs when there is much of something.")
    parser.add_argument("probes", nargs="*", metavar="PROBE", help=known)
    parser.add_argument(
        "--postgres", metavar="URL", help="a server on which databases may be created; default: a private one with fsync on"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, for checking the probes")
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout, everything else on stderr")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help=f"write {page.PAGE} there (default: after all probes at full size)")
    options = parser.parse_args(arguments)
    options.probes = list(dict.fromkeys(options.probes)) or list(PROBES)
    if wrong := [name for name in options.probes if name not in PROBES]:
        parser.error(f"unknown probe {', '.join(wrong)}; there are {', '.join(PROBES)}")
    if options.write is None and not options.quick and set(options.probes) == set(PROBES):
        options.write = FOLDER
    if options.write and not options.write.is_dir():
        parser.error("--write wants an existing folder")
    return options


if __name__ == "__main__":
    sys.exit(main())
