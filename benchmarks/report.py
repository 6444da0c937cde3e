"""Figures into ratios, for people, machines and RESULTS.md; law: a claim is a ratio of figures of the same round, with its spread."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.workloads import WORKERS, Sample, Workload

REFERENCE = "ours"
PAGE = "RESULTS.md"
PLOT = "results.svg"


FOREIGN_MAX = 0.1
"""Above this share of the CPU for other programs a figure is suspect."""


@dataclass(frozen=True)
class Spread:
    """A median, and the extremes around it."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.least)} to {number(self.most)})"


@dataclass(frozen=True)
class Results:
    """A whole run."""

    at: datetime
    quick: bool
    workloads: tuple[Workload, ...]
    samples: tuple[Sample, ...]
    machine: Mapping[str, str]
    postgres: Mapping[str, str]
    versions: Mapping[str, Mapping[str, str]]

    @property
    def peers(self) -> tuple[str, ...]:
        """In the order of their first appearance, the reference first."""
        names = dict.fromkeys(sample.peer for sample in self.samples)
        return tuple(sorted(names, key=lambda name: name != REFERENCE))

    @property
    def rounds(self) -> int:
        """How many there were."""
        return len({sample.round for sample in self.samples})

    @property
    def noise(self) -> str:
        """How quiet the machine was."""
        shares = [sample.foreign for sample in self.samples]
        loud = [f"{one.workload} {one.peer} round {one.round} ({one.foreign:.0%})" for one in self.samples if one.foreign > FOREIGN_MAX]
        tail = f"; of {len(shares)} measurements these had more than {FOREIGN_MAX:.0%} and are suspect: {', '.join(loud)}" if loud else ""
        return f"other programs used {statistics.median(shares):.0%} of the CPU (at most {max(shares):.0%}){tail}"

    def of(self, workload: str, peer: str) -> list[Sample]:
        """The samples of one cell, by round."""
        return sorted((s for s in self.samples if (s.workload, s.peer) == (workload, peer)), key=lambda s: s.round)

    def ratio(self, workload: str, peer: str, ours: str = "") -> Spread | None:
        """How many times better the reference (or `ours`) was than `peer`, round by round; None if they never met."""
        more = any(one.more_is_better for one in self.workloads if one.name == workload)
        return self._paired(workload, peer, lambda mine, theirs: mine.value / theirs.value if more else theirs.value / mine.value, ours)

    def cpu_ratio(self, workload: str, peer: str) -> Spread | None:
        """How many times more CPU per step `peer` used; None if that was not measured."""
        if any(one.kills for one in self.workloads if one.name == workload):
            return None
        return self._paired(
            workload, peer, lambda mine, theirs: theirs.cpu_ms_per_step / mine.cpu_ms_per_step if mine.cpu_ms_per_step else 0.0
        )

    def _paired(self, workload: str, peer: str, compare: Any, mine: str = "") -> Spread | None:  # noqa: ANN401 - of two samples, a number
        ours = {sample.round: sample for sample in self.of(workload, mine or self.peers[0])}
        ratios = [compare(ours[theirs.round], theirs) for theirs in self.of(workload, peer) if theirs.round in ours]
        return Spread.of(ratios) if ratios else None


@dataclass(frozen=True)
class Goal:
    """What we want: a figure of a whole run, at least or at most so much."""

    sentence: str
    measured: Callable[[Results], Spread | None]
    least: float = -math.inf
    most: float = math.inf

    def reached(self, found: Spread) -> bool:
        """In the median."""
        return self.least <= found.median <= self.most


def better(workload: str, peer: str, times: float, ours: str = REFERENCE) -> Goal:
    """At least so many times better than a peer."""
    name = workload if ours == REFERENCE else f"{workload} ({ours})"
    return Goal(f"{name} at least {times:g} times better than {peer}", lambda results: results.ratio(workload, peer, ours), least=times)


def cheaper(workload: str, peer: str, times: float) -> Goal:
    """At least so many times less CPU per step than a peer."""
    return Goal(f"{workload} at least {times:g} times less CPU than {peer}", lambda results: results.cpu_ratio(workload, peer), least=times)


def at_most(workload: str, what: str, most: float, figure: Callable[[Sample], float | None]) -> Goal:
    """A figure of our own."""

    def measured(results: Results) -> Spread | None:
        found = [value for sample in results.of(workload, REFERENCE) if (value := figure(sample)) is not None]
        return Spread.of(found) if found else None

    return Goal(f"{workload} {what} at most {most:g}", measured, most=most)


GOALS = (
    better("W1", "dbos", 2.0),
    better("W2", "dbos", 5.0),
    better("W2", "celery", 2.0),
    # What we want beyond that.
    better("W1", "dbos", 3.3),
    better("W1", "restate", 2.5),
    better("W2", "dbos", 15.0),
    better("W2", "restate", 2.0),
    cheaper("W2", "restate", 2.0),
    better("W2", "restate", 4.0, "ours-sqlite"),
    better("W3", "dbos", 2.0),
    better("W3", "celery", 1.0, "ours-sent"),
    better("W4", "restate", 1.0),
    at_most("W4", "p99 / p50", 2.0, lambda sample: None if sample.p99 is None else sample.p99 / sample.value),
    better("W5", "dbos", 4.0),
    better("W5", "restate", 4.0),
    at_most("W6", "lateness p50, ms,", 10.0, lambda sample: sample.value),
    at_most("W6", "lateness p99, ms,", 100.0, lambda sample: sample.p99),
    at_most("W7", "steps executed twice / in flight at the kill", 1.0, lambda sample: sample.repeated),
)


def number(value: float) -> str:
    """Three digits that matter."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def describe_machine() -> dict[str, str]:
    """What the figures depend on; no names and no paths."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    return {
        "cpu": f"{psutil.cpu_count()} x {model}",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "load at the start": f"{os.getloadavg()[0]:.2f}",
        **_scheduling(),
    }


def show(results: Results, console: Console) -> None:
    """A table of figures, ratios and goals on the terminal."""
    tables = (("Figures: median (least to most)", _figures(results)), (_ratio_title(results), _ratios(results)), ("Goals", _goals(results)))
    for title, lines in tables:
        if len(lines) > 1:
            table = Table(*lines[0], title=title, title_justify="left")
            for line in lines[1:]:
                table.add_row(*line)
            console.print(table)
    for sentence in [*_twice(results), results.noise]:
        console.print(sentence)


def as_json(results: Results) -> dict[str, Any]:
    """Everything, for a machine."""
    return {
        "at": results.at.isoformat(),
        "quick": results.quick,
        "noise": results.noise,
        "machine": dict(results.machine),
        "postgres": dict(results.postgres),
        "versions": {peer: dict(versions) for peer, versions in results.versions.items()},
        "samples": [asdict(sample) for sample in results.samples],
        "ratios": {
            workload.name: {peer: asdict(ratio) for peer in results.peers[1:] if (ratio := results.ratio(workload.name, peer))}
            for workload in results.workloads
        },
        "goals": [{"goal": goal[0], "reached": goal[2] == "yes"} for goal in _goals(results)[1:]],
    }


def write(results: Results, folder: Path) -> Path:
    """Write the page and its plot; return the page."""
    plotted = _plot(results, folder / PLOT)
    parts = [
        "# Results",
        "Written by `./dev bench`; do not edit. **Read the ratios**: absolute figures belong to this machine and this hour.",
        f"{results.at:%d %B %Y}, rounds: {results.rounds}, peers one after the other within each round in changing order; median (least to most)."
        + (" **Quick sizes: good for checking the harness, not for claims.**" if results.quick else ""),
        f"## {_ratio_title(results)}",
        _markdown(_ratios(results)),
        *([f"![How many times better we are than each peer, by workload]({PLOT})"] if plotted else []),
        *(["## Goals", _markdown(_goals(results))] if len(_goals(results)) > 1 else []),
        "## Figures",
        _markdown(_figures(results)),
        *_twice(results),
        "## Conditions",
        "\n".join(f"* {name}: {value}" for name, value in results.machine.items()) + f"\n* during the measurements: {results.noise}",
        "* PostgreSQL, the same for all, a fresh database for each peer and round: "
        + ", ".join(f"{name} {value}" for name, value in results.postgres.items())
        + "\n* Broker: a Valkey for each peer on a unix socket, append-only file synced each second"
        + f"\n* {WORKERS} worker processes per peer; DBOS runs W1, W3 to W6 in the client's process, its fastest way (W6 with a thread for each timer), and W2 and W7 through a queue polled each 0.1 s, 20 at a time per worker"
        + "\n* Celery: `chain` of tasks (W1, W2, W4), `chord` (W3), a countdown (W6), prefork, results in Valkey. It is not durable: it shows what a message costs"
        + "\n* W5 sends a call for each signal from 32 threads (DBOS from one, which is faster for it). W7 takes the time from the kill to the last result, so it holds the rest of the work as well as the recovery"
        + "\n* Restate: its server and its own store, default settings, Python services on granian over HTTP/2; W2, W5 and W6 over up to 500 connections, W5 by durable promises"
        + "\n* ours: W2 starts its workflows with one `start_workflows`; `ours-single` with a `start_workflow` for each"
        + "\n* Steps do nothing but leave one byte in a file, by which they are counted; payload about 100 bytes; ten one-step workflows before each measurement"
        + "\n* CPU per step: of all processes that work for the peer, client, workers, PostgreSQL and Valkey",
        "\n".join(
            f"* {peer}: " + ", ".join(f"{name} {version}" for name, version in versions.items())
            for peer, versions in results.versions.items()
        ),
    ]
    page = folder / PAGE
    page.write_text("\n\n".join(parts) + "\n")
    return page


def stamp() -> datetime:
    """Now, in UTC."""
    return datetime.now(UTC)


def _ratio_title(results: Results) -> str:
    return f"How many times better {results.peers[0]} was (time, or throughput) / how much less CPU per step"


def _ratios(results: Results) -> list[list[str]]:
    lines = [["", *(f"than {peer}" for peer in results.peers[1:])]]
    for workload in results.workloads:
        cells = []
        for peer in results.peers[1:]:
            ratio, cpu = results.ratio(workload.name, peer), results.cpu_ratio(workload.name, peer)
            cells.append(f"{ratio} / {number(cpu.median)}" if ratio and cpu else str(ratio or ""))
        lines.append([f"{workload.name} {workload.title}", *cells])
    return lines if len(results.peers) > 1 else []


def _figures(results: Results) -> list[list[str]]:
    lines = [["", "unit", *results.peers]]
    for workload in results.workloads:
        cells = {peer: results.of(workload.name, peer) for peer in results.peers}
        lines.append([workload.name, workload.unit, *(str(Spread.of(s.value for s in cell)) if cell else "" for cell in cells.values())])
        if any(sample.p99 is not None for cell in cells.values() for sample in cell):
            p99s = [[s.p99 for s in cell if s.p99 is not None] for cell in cells.values()]
            lines.append([f"{workload.name} p99", workload.unit, *(str(Spread.of(p99)) if p99 else "" for p99 in p99s)])
        used = [[s.cpu_ms_per_step for s in cell if s.cpu_ms_per_step is not None] for cell in cells.values()]
        if any(used):
            lines.append([f"{workload.name} CPU per step", "ms", *(str(Spread.of(cpu)) if cpu else "" for cpu in used)])
    return lines


def _goals(results: Results) -> list[list[str]]:
    lines = [["goal", "measured", "reached"]]
    for goal in GOALS if results.peers[0] == REFERENCE else ():
        found = goal.measured(results)
        if found:
            lines.append([goal.sentence, str(found), "yes" if goal.reached(found) else "no"])
    return lines


def _twice(results: Results) -> list[str]:
    return [
        f"{sample.peer} executed {sample.executed - sample.steps} steps of {sample.workload} more than once in round {sample.round}"
        + ("." if sample.in_flight is None else f"; {sample.in_flight} were in flight as the worker was killed.")
        for sample in results.samples
        if sample.executed > sample.steps
    ]


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    if not lines:
        return "Only one peer took part: nothing to compare."
    rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rows[0], "|---" * len(lines[0]) + "|", *rows[1:]])


def _plot(results: Results, path: Path) -> bool:
    """Bars of the ratios on a logarithmic axis; a line at 1, where we are no better."""
    rivals = results.peers[1:]
    if not rivals:
        return False
    import matplotlib as mpl  # noqa: PLC0415 - from the extra `bench`; a run without a page does not need it
    from matplotlib.figure import Figure  # noqa: PLC0415 - see above

    mpl.rcParams["svg.hashsalt"] = "results"  # the same figures give the same file
    figure = Figure(figsize=(8, 0.5 + 0.3 * len(rivals) * len(results.workloads)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(rivals)
    for place, peer in enumerate(rivals):
        found = [(row, ratio) for row, workload in enumerate(results.workloads) if (ratio := results.ratio(workload.name, peer))]
        spots = [row + (place - (len(rivals) - 1) / 2) * height for row, _ in found]
        medians = [ratio.median for _, ratio in found]
        errors = [[ratio.median - ratio.least for _, ratio in found], [ratio.most - ratio.median for _, ratio in found]]
        bars = axes.barh(spots, medians, height * 0.9, xerr=errors, label=f"than {peer}", error_kw={"elinewidth": 0.8})
        axes.bar_label(bars, [f" {number(median)}x" for median in medians], fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(results.workloads)), [workload.name for workload in results.workloads])
    axes.invert_yaxis()
    axes.set_xlabel(f"how many times better {results.peers[0]} is")
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
    return True


def _scheduling() -> dict[str, str]:
    """Whether all that is measured goes before whatever else runs on this machine (`chrt --rr 1 ./dev bench`): of use where it is never quiet."""
    if not hasattr(os, "sched_getscheduler") or os.sched_getscheduler(0) == os.SCHED_OTHER:
        return {}
    return {"scheduling": "real time, for all peers alike: other programs had the CPU only when no measured process wanted it"}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
