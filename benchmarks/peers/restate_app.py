"""The services of the peer "Restate"; law: as its documentation writes services, served by the fastest of the servers that it names."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import restate

from benchmarks import effects

bench = restate.Service("bench")
collect = restate.Workflow("collect")


def noop(payload: dict[str, Any]) -> dict[str, Any]:
    """One step."""
    effects.mark()
    return payload


def now() -> float:
    """The time, as a step whose result is kept."""
    return time.time()


@bench.handler()
async def sequential(ctx: restate.Context, order: dict[str, Any]) -> dict[str, Any]:
    """Steps one after the other."""
    payload: dict[str, Any] = order["payload"]
    for _ in range(order["steps"]):
        payload = await ctx.run_typed("noop", noop, payload=payload)
    return payload


@bench.handler()
async def parallel(ctx: restate.Context, order: dict[str, Any]) -> int:
    """Steps side by side."""
    steps = [ctx.run_typed("noop", noop, payload=order["payload"]) for _ in range(order["steps"])]
    await restate.gather(*steps)
    return len(steps)


@bench.handler()
async def nap(ctx: restate.Context, seconds: float) -> float:
    """Sleep, and say how many seconds too long."""
    began = await ctx.run_typed("began", now)
    await ctx.sleep(timedelta(seconds=seconds))
    return time.time() - began - seconds


@collect.main()
async def run(ctx: restate.WorkflowContext, wanted: int) -> int:
    """Wait for so many promises."""
    for number in range(wanted):
        await ctx.promise(f"item-{number}").value()
    return wanted


@collect.handler()
async def item(ctx: restate.WorkflowSharedContext, signal: dict[str, Any]) -> None:
    """Keep one of them."""
    await ctx.promise(f"item-{signal['number']}").resolve(signal["payload"])


app = restate.app([bench, collect])
