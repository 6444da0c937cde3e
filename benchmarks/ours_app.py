"""Our own application as the benchmark runs it: `celery -A benchmarks.ours_app worker`; law: what an author would write, nothing tuned."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from benchmarks import effects
from orchestrator import activity, workflow
from orchestrator.celery import app

__all__ = ["Collect", "Ledger", "app", "nap", "noop", "noop_task", "parallel", "parallel_tasks", "sequential"]

STEP_MAX = timedelta(minutes=5)


@activity.defn
def noop(payload: dict[str, Any]) -> dict[str, Any]:
    """One step."""
    effects.mark()
    return payload


@workflow.defn
async def sequential(payload: dict[str, Any], steps: int) -> dict[str, Any]:
    """Steps one after the other."""
    for _ in range(steps):
        payload = await workflow.execute_activity(noop, payload, start_to_close_timeout=STEP_MAX)
    return payload


@workflow.defn
async def parallel(payload: dict[str, Any], steps: int) -> int:
    """Steps side by side."""
    results = await asyncio.gather(*(workflow.execute_activity(noop, payload, start_to_close_timeout=STEP_MAX) for _ in range(steps)))
    return len(results)


@app.task(name="noop_task")
def noop_task(payload: dict[str, Any]) -> dict[str, Any]:
    """One step as a Celery task."""
    effects.mark()
    return payload


@workflow.defn
async def parallel_tasks(payload: dict[str, Any], steps: int) -> int:
    """Tasks side by side."""
    results = await asyncio.gather(*(workflow.execute_activity(noop_task, payload, start_to_close_timeout=STEP_MAX) for _ in range(steps)))
    return len(results)


@workflow.defn
class Collect:
    """Waits for so many signals."""

    def __init__(self) -> None:
        self.count = 0

    @workflow.run
    async def run(self, wanted: int) -> int:
        """Wait."""
        await workflow.wait_condition(lambda: self.count >= wanted)
        return self.count

    @workflow.signal
    def item(self, payload: dict[str, Any]) -> None:
        """One of them."""
        self.count += 1


@workflow.defn
async def nap(seconds: float) -> float:
    """Sleep, and say how many seconds too long."""
    began = workflow.now()
    await asyncio.sleep(seconds)
    return (workflow.now() - began).total_seconds() - seconds


@workflow.defn
class Ledger:
    """Takes as many steps as signals tell it to; its history grows."""

    def __init__(self) -> None:
        self.wanted = self.done = 0

    @workflow.run
    async def run(self) -> int:
        """For ever."""
        while True:
            await workflow.wait_condition(lambda: self.wanted > self.done)
            await workflow.execute_activity(noop, {}, start_to_close_timeout=STEP_MAX)
            self.done += 1

    @workflow.signal
    def go_on(self, steps: int) -> None:
        """So many more."""
        self.wanted += steps
