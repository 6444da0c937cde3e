"""Our own application as the benchmark runs it: `celery -A benchmarks.ours_app worker`; law: what an author would write, nothing tuned."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from benchmarks import effects
from orchestrator import activity, workflow
from orchestrator.celery import app

__all__ = ["app", "noop", "parallel", "sequential"]

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
