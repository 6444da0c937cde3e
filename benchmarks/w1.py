"""W1: one workflow of ten sequential steps, one at a time; what a step costs when nothing can be shared."""

from __future__ import annotations

from benchmarks.driver import Driver
from benchmarks.workloads import Measured, Size, Workload, milliseconds


def run(driver: Driver, size: Size) -> Measured:
    """Workflow after workflow."""
    return milliseconds(driver.run_sequential(size.workflows, size.steps))


WORKLOAD = Workload(
    "W1",
    "one workflow of 10 sequential steps, one at a time, p50",
    "ms",
    more_is_better=False,
    full=Size(50, 10),
    quick=Size(10, 10),
    run=run,
)
