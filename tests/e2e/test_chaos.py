"""Load, while processes are killed and stopped and the broker forgets everything; the laws hold and nothing is lost."""

from __future__ import annotations

import signal

import pytest

from tests.e2e import doomed
from tests.e2e.conftest import DoomedSite
from tests.e2e.processes import redis_of

RUNS = 60
SIGNALS = 5


@pytest.mark.slow
def test_killed_workers_a_killed_beat_and_a_wiped_broker_lose_nothing(chaos_site: DoomedSite):
    site = chaos_site.site
    first, second = chaos_site.worker(), chaos_site.worker()
    beat = site.beat()
    handles = chaos_site.start(RUNS)
    waiters = [site.client.start_workflow(doomed.Waiter.run, SIGNALS, id=f"waiter-{number}") for number in range(5)]
    site.await_note("step", count=10)
    first.kill()
    redis_of(site.broker_url).flushdb()
    for waiter in waiters:
        for item in range(SIGNALS):
            waiter.signal(doomed.Waiter.put, item)
    beat.kill()
    third = chaos_site.worker()
    site.beat()
    second.signal(signal.SIGSTOP)  # longer than its lease
    redis_of(site.broker_url).flushdb()
    assert [waiter.result(timeout=60) for waiter in waiters] == [sum(range(SIGNALS)) + 1] * len(waiters)
    assert [handle.result(timeout=60) for handle in handles] == [5] * RUNS
    second.signal(signal.SIGCONT)
    after = site.client.start_workflow(doomed.everything, 1, id="after")
    assert after.result(timeout=30) == 3
    assert third.alive
    chaos_site.judge()
    steps = chaos_site.counted("step")
    print(f"{len(steps) - len(set(steps))} of {len(steps)} steps ran twice")
