"""Real worker processes that exit at a crash point as SIGKILL would end them; another one goes on, and nothing is lost or done twice."""

from __future__ import annotations

import pytest

from tests.e2e.processes import DoomedSite, wait_until

DOOMS = (
    "turns.commit:before_commit*2",
    "turns.commit:after_commit*2",
    "turns.committed_before_effects*3",
    "timers.fire:after_commit",
    "tasks.start:before_commit",
    "tasks.start:after_commit",
    "before_publish",
    "after_publish",
    "workers.register:after_commit",
    "workers.extend:before_commit",
)
RUNS = 4
STEPS = 3


@pytest.mark.parametrize("doom", DOOMS)
def test_a_worker_that_dies_there_is_survived(doomed_site: DoomedSite, doom: str):
    # Whoever has a run in memory fires its timers in its turns; to die as others fire them, it must leave them to others.
    victim = doomed_site.worker(doom=doom, own_timers="timers.fire" not in doom)
    handles = doomed_site.start(RUNS, STEPS)
    wait_until(lambda: not victim.alive, f"the worker has died at {doom}\n{victim.text}", 40)
    assert victim.process.returncode == 137, victim.text
    doomed_site.worker()
    doomed_site.beat()
    assert [handle.result(timeout=40) for handle in handles] == [STEPS + 2] * RUNS
    assert all(doomed_site.counted("step").count(("step", f"w-{run}", str(number))) >= 1 for run in range(RUNS) for number in range(STEPS))
    doomed_site.judge()
