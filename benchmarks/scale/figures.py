"""What a probe is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.arena import Arena


@dataclass(frozen=True)
class Figure:
    """One finding; `limit` is what we promised it stays under, in the same unit."""

    name: str
    value: float
    unit: str
    limit: float | None = None

    @property
    def kept(self) -> bool | None:
        """Does it keep the promise? None if there is none."""
        return None if self.limit is None else self.value <= self.limit


@dataclass(frozen=True)
class Curve:
    """How something grows: a line of the plot."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    """Curves over one axis, both logarithmic."""

    title: str
    across: str
    up: str
    curves: Sequence[Curve]


@dataclass(frozen=True)
class Findings:
    """All that one probe tells."""

    figures: Sequence[Figure]
    plots: Sequence[Plot] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Probe:
    """One question. `run` gets the arena, the size and somebody to tell how far it is (0 to 1)."""

    name: str
    title: str
    full: int
    quick: int
    run: Callable[[Arena, int, Callable[[float], None]], Findings] = field(repr=False)
