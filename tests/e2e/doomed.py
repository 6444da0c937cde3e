"""Workflows for workers that are to die: included by real processes, which it arms with the crash point that DOOM names.

Activities write down that they ran, so that tests can count.
"""

from __future__ import annotations

import os

from celery import shared_task

from orchestrator import activity, crashpoints, workflow
from orchestrator.settings import current
from orchestrator.workflow import RetryPolicy

FAST = RetryPolicy(initial_interval=0.1, maximum_interval=0.5)

# DOOM is `point` or `point*n`, for the n-th passage.
if os.environ.get("DOOM"):
    _point, _, _hit = os.environ["DOOM"].partition("*")
    crashpoints.die_at(_point, hit=int(_hit or 1))


def note(line: str) -> None:
    with (current().home / "notes").open("a") as notes:
        notes.write(line + "\n")


@activity.defn(name="doomed.step")
def step(number: int) -> int:
    info = activity.info()
    note(f"step {info.workflow_id} {number} {info.attempt}")
    return number + 1


@activity.defn(name="doomed.once")
def once(number: int) -> int:
    note(f"once {activity.info().workflow_id} {number}")
    return number + 1


@shared_task(name="doomed.task")
def task(number: int) -> int:
    note(f"task {activity.info().workflow_id} {number} {activity.info().attempt}")
    return number + 1


@workflow.defn(name="doomed.all")
async def everything(steps: int) -> int:
    """Steps, a nap, a task by message, a step that may run once at most."""
    number = 0
    for _ in range(steps):
        number = await workflow.execute_activity(step, number, retry_policy=FAST)
    await workflow.sleep(0.05)
    number = int(await workflow.execute_activity(task, number, retry_policy=FAST))
    try:
        return await workflow.execute_activity(once, number, retry_policy=RetryPolicy(maximum_attempts=1))
    except Exception as error:  # noqa: BLE001 - any failure of it means that its worker died
        workflow.logger.info("lost: %s", error)
        return number + 1


@workflow.defn(name="doomed.waiter")
class Waiter:
    """Adds up what it is sent until it has been sent enough."""

    def __init__(self) -> None:
        self.items: list[int] = []

    @workflow.run
    async def run(self, wanted: int) -> int:
        await workflow.wait_condition(lambda: len(self.items) >= wanted)
        return await workflow.execute_activity(step, sum(self.items), retry_policy=FAST)

    @workflow.signal
    def put(self, item: int) -> None:
        self.items.append(item)
