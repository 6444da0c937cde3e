"""The application of the peer "Celery chain": two tasks that do nothing; law: default settings, so that it is the Celery that people run."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from benchmarks import effects

BROKER_VARIABLE = "BENCHMARK_BROKER"
RESULTS_VARIABLE = "BENCHMARK_RESULTS"

app = Celery("chain", broker=os.environ.get(BROKER_VARIABLE), backend=os.environ.get(RESULTS_VARIABLE))


@app.task(name="noop")
def noop(payload: dict[str, Any]) -> dict[str, Any]:
    """One step."""
    effects.mark()
    return payload


@app.task(name="collect")
def collect(results: list[Any]) -> int:
    """The body of a chord; no step."""
    return len(results)


@app.task(name="tardiness")
def tardiness(due: float) -> float:
    """How many seconds ago it should have run; no step."""
    return time.time() - due
