"""Time in a run: it goes on, whatever the clocks of workers do, and a replay sees what was recorded."""

from __future__ import annotations

from orchestrator import workflow
from orchestrator.core.replay import revive
from schemas.history import RunCompleted
from tests.core.twin import CONVERTER, Twin, fired, signal


def test_time_in_a_run_never_goes_back_though_a_clock_does():
    @workflow.defn
    async def nap() -> list[float]:
        times = [workflow.time()]
        await workflow.sleep(10)
        times.append(workflow.time())
        await workflow.wait_condition(lambda: False, timeout=5)
        return times

    run = Twin(nap, replayed=False)
    run.start()
    begun = run.at
    run.live.activate(begun - 1000, (fired(1),))
    assert run.live.loop.now == begun + 10, "when the timer was due"
    run.live.activate(begun - 1000, (signal("nothing"),))
    assert run.live.loop.now == begun + 10, "as the turn before"


def test_a_replay_sees_the_time_that_was_recorded_whatever_it_was():
    @workflow.defn
    async def nap() -> float:
        await workflow.sleep(10)
        return workflow.time()

    run = Twin(nap)
    run.start()
    run.at -= 100  # as an older version recorded it
    run.record(RunCompleted(run.at), arrivals=(fired(1),))
    revived = revive(run.definition, run.history, CONVERTER)
    assert revived.terminal == RunCompleted(run.at)
    revived.close()
