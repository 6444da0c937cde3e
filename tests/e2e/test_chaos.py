"""Load, while processes are killed and stopped and the broker forgets everything; the laws hold and nothing is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.development_servers import Postgres, RabbitMQ
from orchestrator.servers import Valkey
from tests.e2e import doomed
from tests.e2e.conftest import SHORT_LEASES
from tests.e2e.load import Load
from tests.e2e.processes import DoomedSite, broker_of, redis_of, site, wait_until

RUNS = 60
SIGNALS = 5
NOTICED = "Connection to broker lost"  # what Celery's consumer says


@pytest.fixture
def own_valkey(open_home: Path) -> Iterator[Valkey]:
    with Valkey(open_home / "valkey") as server:
        yield server


@pytest.fixture
def own_postgres(open_home: Path) -> Iterator[Postgres]:
    """As careful as one in earnest: every commit reaches the disk."""
    with Postgres(open_home / "postgres") as server:
        yield server


@pytest.fixture
def valkey_load(database_url: str, own_valkey: Valkey, tmp_path: Path) -> Iterator[Load]:
    with site(DoomedSite, tmp_path, database_url, own_valkey.url, **SHORT_LEASES) as opened:
        yield Load(opened)


@pytest.mark.req("DC-24")
def test_a_worker_killed_under_load_loses_nothing_and_repeats_only_what_was_in_flight(valkey_load: Load):
    load = valkey_load
    load.start()
    victim = load.workers[0]
    with load.stopped(victim) as in_flight:
        victim.kill()
    load.finish(in_flight)
    load.everybody_serves(killed=[victim])


def test_a_broker_wiped_under_load_loses_and_repeats_nothing(postgres_url: str, own_valkey: Valkey, tmp_path: Path):
    with site(DoomedSite, tmp_path, postgres_url, own_valkey.url, forgotten_s=0.3) as opened:
        load = Load(opened)
        load.start()
        own_valkey.flushall()
        opened.await_note("task", count=20)
        own_valkey.flushall()
        load.finish(set())
        load.everybody_serves()


@pytest.mark.parametrize("name", ["own_valkey", "rabbitmq"])
def test_a_broker_killed_and_restarted_under_load_loses_nothing(request: Any, sqlite_url: str, tmp_path: Path, name: str):
    broker: Valkey | RabbitMQ = request.getfixturevalue(name)
    with site(DoomedSite, tmp_path, sqlite_url, broker.url, forgotten_s=0.3) as opened:
        load = Load(opened)
        load.start()
        broker.kill()
        wait_until(lambda: all(NOTICED in worker.text for worker in load.workers), "all workers have noticed")
        broker.start()
        load.await_results()
        load.finish(load.cancelled())
        load.everybody_serves()


def test_a_postgresql_killed_and_restarted_under_load_loses_and_repeats_nothing(own_postgres: Postgres, valkey: Valkey, tmp_path: Path):
    with site(DoomedSite, tmp_path, own_postgres.url, broker_of(valkey), forgotten_s=0.3) as opened:
        load = Load(opened)
        load.start()
        own_postgres.kill()
        own_postgres.start()
        load.finish(set())
        load.everybody_serves()


def test_killed_workers_a_killed_beat_and_a_wiped_broker_lose_nothing(chaos_site: DoomedSite):
    first, second = chaos_site.worker(), chaos_site.worker()
    beat = chaos_site.beat()
    handles = chaos_site.start(RUNS)
    waiters = [chaos_site.client.start_workflow(doomed.Waiter.run, SIGNALS, id=f"waiter-{number}") for number in range(5)]
    chaos_site.await_note("step", count=10)
    first.kill()
    redis_of(chaos_site.broker_url).flushdb()
    for waiter in waiters:
        for item in range(SIGNALS):
            waiter.signal(doomed.Waiter.put, item)
    beat.kill()
    third = chaos_site.worker()
    chaos_site.beat()
    second.signal(signal.SIGSTOP)  # longer than its lease
    redis_of(chaos_site.broker_url).flushdb()
    assert [waiter.result(timeout=60) for waiter in waiters] == [sum(range(SIGNALS)) + 1] * len(waiters)
    assert [handle.result(timeout=60) for handle in handles] == [5] * RUNS
    second.signal(signal.SIGCONT)
    after = chaos_site.client.start_workflow(doomed.everything, 1, id="after")
    assert after.result(timeout=30) == 3
    assert third.alive
    chaos_site.judge()
    steps = chaos_site.counted("step")
    print(f"{len(steps) - len(set(steps))} of {len(steps)} steps ran twice")
