"""W7: W2, and at 40 % of its steps a worker is killed and replaced at once; whether anything is lost, and how long it takes to go on."""

from __future__ import annotations

from benchmarks.driver import Driver
from benchmarks.workloads import Measured, Size, Workload

KILL_AT = 0.4  # of the steps


def run(driver: Driver, size: Size) -> Measured:
    """From the kill to the last result."""
    killed = driver.run_killed(size.workflows, size.steps, int(KILL_AT * size.workflows * size.steps))
    return Measured(killed.seconds, in_flight=killed.in_flight)


WORKLOAD = Workload(
    "W7",
    "W2 with a worker killed (SIGKILL) at 40 % and replaced, kill to last result",
    "s",
    more_is_better=False,
    full=Size(1000, 5),
    quick=Size(100, 5),
    run=run,
    kills=True,
)
