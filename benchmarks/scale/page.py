"""SCALE.md and its plots; law: written by the program that measured, never by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.report import number, stamp
from benchmarks.scale.figures import Findings, Plot, Probe

PAGE = "SCALE.md"


def write(probes: Mapping[str, Probe], found: Mapping[str, Findings], machine: Mapping[str, str], folder: Path, *, quick: bool) -> Path:
    """Write the page; return it."""
    parts = [
        "# When there is much of something",
        "Written by `./dev bench scale`; do not edit. Figures belong to this machine; what they mean for others is in [scaling](../docs/scaling.md).",
        f"{stamp():%d %B %Y}." + (" **Quick sizes: good for checking the probes, not for claims.**" if quick else ""),
    ]
    for name, findings in found.items():
        probe = probes[name]
        parts.append(f"## {probe.title} ({probe.quick if quick else probe.full:,})")
        parts.append(_table(findings))
        parts += findings.notes
        for place, plot in enumerate(findings.plots):
            path = folder / f"scale-{name}{place or ''}.svg"
            _draw(plot, path)
            parts.append(f"![{plot.title}]({path.name})")
    parts.append("## Conditions\n\n" + "\n".join(f"* {name}: {value}" for name, value in machine.items()))
    page = folder / PAGE
    page.write_text("\n\n".join(parts) + "\n")
    return page


def _table(findings: Findings) -> str:
    rows = ["| | | at most | kept |", "|---|---|---|---|"]
    for figure in findings.figures:
        limit = "" if figure.limit is None else number(figure.limit)
        kept = {True: "yes", False: "**no**", None: ""}[figure.kept]
        rows.append(f"| {figure.name} | {number(figure.value)} {figure.unit} | {limit} | {kept} |")
    return "\n".join(rows)


def _draw(plot: Plot, path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415 - from the extra `bench`; a run without a page does not need it
    from matplotlib.figure import Figure  # noqa: PLC0415 - see above

    mpl.rcParams["svg.hashsalt"] = "scale"  # the same figures give the same file
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for curve in plot.curves:
        axes.plot(*zip(*curve.points, strict=True), marker="o", label=curve.name)
    axes.set(xscale="log", yscale="log", title=plot.title, xlabel=plot.across, ylabel=plot.up)
    axes.grid(visible=True, which="major", linewidth=0.4)
    axes.legend(fontsize=8)
    figure.savefig(path, metadata={"Date": None})
