"""W2: a thousand workflows of five steps started at once, two worker processes; what the engine carries when it is busy."""

from __future__ import annotations

from benchmarks.driver import Driver
from benchmarks.workloads import Measured, Size, Workload


def run(driver: Driver, size: Size) -> Measured:
    """From the first start to the last result."""
    bulk = driver.run_bulk(size.workflows, size.steps)
    return Measured(size.workflows / bulk.wall_s)


WORKLOAD = Workload(
    "W2", "1,000 workflows of 5 steps started at once", "workflows/s", more_is_better=True, full=Size(1000, 5), quick=Size(100, 5), run=run
)
