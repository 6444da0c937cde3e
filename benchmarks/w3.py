"""W3: one workflow of a thousand parallel steps; what a fan-out costs."""

from __future__ import annotations

from benchmarks.driver import Driver
from benchmarks.workloads import Measured, Size, Workload


def run(driver: Driver, size: Size) -> Measured:
    """From its start to its result."""
    assert size.workflows == 1, "the workload is one workflow"
    return Measured(driver.run_parallel(size.steps))


WORKLOAD = Workload(
    "W3", "one workflow of 1,000 parallel steps", "s", more_is_better=False, full=Size(1, 1000), quick=Size(1, 200), run=run
)
