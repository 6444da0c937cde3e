"""W5: a thousand signals to one run; what it costs to speak to a workflow."""

from __future__ import annotations

from benchmarks.driver import Driver
from benchmarks.workloads import Measured, Size, Workload


def run(driver: Driver, size: Size) -> Measured:
    """From the first signal to the result of the run that has counted them all."""
    assert size.workflows == 1, "the workload is one workflow"
    return Measured(size.steps / driver.run_signals(size.steps))


WORKLOAD = Workload(
    "W5",
    "1,000 signals to one run, until processed",
    "signals/s",
    more_is_better=True,
    full=Size(1, 1000),
    quick=Size(1, 100),
    run=run,
    leaves_marks=False,
)
