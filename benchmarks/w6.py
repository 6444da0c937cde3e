"""W6: a thousand workflows that sleep for a second; how late they wake."""

from __future__ import annotations

from benchmarks.driver import Driver
from benchmarks.workloads import Measured, Size, Workload, milliseconds

NAP_S = 1.0


def run(driver: Driver, size: Size) -> Measured:
    """Start all, and ask each how late its code went on."""
    return milliseconds(driver.run_timers(size.workflows, NAP_S))


WORKLOAD = Workload(
    "W6",
    "lateness of 1,000 timers of 1 s, p50",
    "ms",
    more_is_better=False,
    full=Size(1000, 1),
    quick=Size(100, 1),
    run=run,
    leaves_marks=False,
)
