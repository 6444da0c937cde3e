"""W4: start to result of a one-step workflow on an idle system; what a user waits for at least."""

from __future__ import annotations

import time

from benchmarks.driver import Driver
from benchmarks.workloads import Measured, Size, Workload, milliseconds

PAUSE_S = 0.02
"""Long enough that loops which stay awake for a while after work have gone to sleep in most engines, short enough for hundreds."""


def run(driver: Driver, size: Size) -> Measured:
    """One, a pause, the next."""
    latencies = []
    for _ in range(size.workflows):
        time.sleep(PAUSE_S)
        latencies.extend(driver.run_sequential(1, size.steps))
    return milliseconds(latencies)


WORKLOAD = Workload(
    "W4", "start to result of one step, idle system, p50", "ms", more_is_better=False, full=Size(200, 1), quick=Size(20, 1), run=run
)
