"""`python -m benchmarks`: take the peers through the workloads round by round, then tell the ratios; law: whatever was started is ended.

* `python -m benchmarks`: all workloads, ours (on SQLite and with sent activities as well), DBOS, Celery and, if its server is there, Restate, 5 rounds; writes benchmarks/RESULTS.md
* `python -m benchmarks W1 W2 --peers ours,dbos`: a part of it
* `python -m benchmarks --quick`: small sizes, one round, nothing written: does it still run?
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import report, w1, w2, w3, w4, w5, w6, w7
from benchmarks.arena import Arena
from benchmarks.peers import NEEDS, PEERS, restate_server
from benchmarks.processes import PeerFailed
from benchmarks.workloads import Sample, Workload, measure
from orchestrator.errors import ServerUnavailable

WORKLOADS = {module.WORKLOAD.name: module.WORKLOAD for module in (w1, w2, w3, w4, w5, w6, w7)}
DEFAULT_PEERS = "ours,ours-single,ours-sqlite,ours-sent,dbos,celery" + (",restate" if restate_server() else "")
ROUNDS = 5
ROUNDS_MAX = 50
FOLDER = Path(__file__).parent
INTERRUPTED = 130


@dataclass
class Run:
    """What has been measured so far."""

    samples: list[Sample] = field(default_factory=list)
    versions: dict[str, dict[str, str]] = field(default_factory=dict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and tell; the exit code is 0, 1 (a peer failed), 2 (misused) or 130 (interrupted)."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, with everything that was started
    console = Console(stderr=options.json)
    workloads = [WORKLOADS[name] for name in options.workloads]
    run = Run()
    status = 0
    machine = report.describe_machine()
    postgres: dict[str, str] = {}
    try:
        with Arena(options.postgres) as arena:
            postgres.update(arena.postgres_settings)
            _play(arena, run, workloads, options, console)
    except KeyboardInterrupt:
        console.print("Interrupted; what was measured until then:")
        status = INTERRUPTED
    except (PeerFailed, ServerUnavailable) as error:
        console.print(f"[bold red]Failed:[/] {type(error).__name__}", highlight=False)
        console.print(str(error), markup=False, highlight=False)
        status = 1
    if not run.samples:
        return status or 1
    results = report.Results(report.stamp(), options.quick, tuple(workloads), tuple(run.samples), machine, postgres, run.versions)
    report.show(results, console)
    if status == 0 and options.write:
        console.print(f"written: {report.write(results, options.write).name}")
    if options.json:
        print(json.dumps(report.as_json(results)))
    return status


def _play(arena: Arena, run: Run, workloads: Sequence[Workload], options: argparse.Namespace, console: Console) -> None:
    """Round by round, peer by peer: what one round compares lies minutes apart, and the first of a round is the last of another."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=1) as progress:  # seldom: drawing takes CPU from the measured
        task = progress.add_task("starting", total=options.rounds * len(options.peers) * len(workloads))
        for number in range(1, options.rounds + 1):
            shift = (number - 1) % len(options.peers)
            for peer in options.peers[shift:] + options.peers[:shift]:
                progress.update(task, description=f"round {number}: {peer} starts")
                with arena.seat(peer) as seat:
                    run.versions[peer] = seat.driver.versions()
                    for workload in workloads:
                        progress.update(task, description=f"round {number}: {peer} {workload.name}")
                        size = workload.quick if options.quick else workload.full
                        if workload.name not in seat.driver.cannot:
                            run.samples.append(measure(seat, workload, size, number=number))
                        progress.advance(task)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks", description="Ours beside its peers on this machine, as ratios.")
    parser.add_argument(
        "workloads", nargs="*", metavar="W", help="; ".join(f"{name}: {w.title}" for name, w in WORKLOADS.items()).replace("%", "%%")
    )
    parser.add_argument(
        "--peers", default=DEFAULT_PEERS, help=f"some of {', '.join(PEERS)}, the first is the reference if ours is not among them"
    )
    parser.add_argument("--rounds", type=int, help=f"how often (default {ROUNDS}, with --quick 1)")
    parser.add_argument(
        "--postgres", metavar="URL", help="a server on which fresh databases may be created; default: a private one with fsync on"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, for checking the harness")
    parser.add_argument("--json", action="store_true", help="print one line of JSON on stdout, everything else on stderr")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FOLDER",
        help="write RESULTS.md there (default: this package's folder for a complete run of enough rounds, else nowhere)",
    )
    options = parser.parse_args(arguments)
    options.workloads = list(dict.fromkeys(name.upper() for name in options.workloads)) or list(WORKLOADS)
    options.peers = list(dict.fromkeys(name.strip() for name in options.peers.split(",")))
    if options.rounds is None:
        options.rounds = 1 if options.quick else ROUNDS
    complete = set(options.workloads) == set(WORKLOADS) and "ours" in options.peers and len(options.peers) > 1
    if options.write is None and not options.quick and complete and options.rounds >= ROUNDS:
        options.write = FOLDER
    if wrong := [name for name in options.workloads if name not in WORKLOADS]:
        parser.error(f"unknown workload {', '.join(wrong)}; there are {', '.join(WORKLOADS)}")
    if wrong := [name for name in options.peers if name not in PEERS]:
        parser.error(f"unknown peer {', '.join(wrong)}; there are {', '.join(PEERS)}")
    if not 1 <= options.rounds <= ROUNDS_MAX:
        parser.error(f"--rounds is between 1 and {ROUNDS_MAX}")
    if options.write and not options.write.is_dir():
        parser.error("--write wants an existing folder")
    needs = [NEEDS[peer] for peer in options.peers if peer in NEEDS] + (["matplotlib"] if options.write else [])
    if "restate" in options.peers and restate_server() is None:
        parser.error("no restate-server: run `./dev bench` where npm is, or name its binary in RESTATE_SERVER")
    if missing := [package for package in needs if importlib.util.find_spec(package) is None]:
        parser.error(f"{' and '.join(missing)} not installed: run `./dev bench`, or pip install -e '.[dev,bench]'")
    return options


if __name__ == "__main__":
    sys.exit(main())
