"""Agents while what they stand on is away: they live, nothing is done twice, and what they have done is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.servers import Valkey
from tests.conftest import command
from tests.e2e.agent_site import AgentSite
from tests.e2e.processes import broker_of, redis_of, site, wait_until
from tests.fleet_laws import check_fleet_laws

OUTAGE_S = 4.0


@contextmanager
def away(url: str) -> Iterator[None]:
    """A PostgreSQL database that lets nobody in."""
    server, _, name = url.rpartition("/")
    admin = f"{server}/postgres"
    command(admin, "ALTER DATABASE {} WITH ALLOW_CONNECTIONS false", name)
    try:
        command(admin, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        yield
    finally:
        command(admin, "ALTER DATABASE {} WITH ALLOW_CONNECTIONS true", name)


@pytest.mark.req("S3-09", "DC-14")
def test_an_agent_outlives_an_outage_of_the_database_with_the_results_of_what_it_did_meanwhile(valkey, postgres_url, tmp_path: Path):
    with site(AgentSite, tmp_path, postgres_url, broker_of(valkey), lease_s=20.0, lease_beat_s=1.0) as place:
        worker = place.agent("n-1", "noting", "-c", "10")
        asked = [place.ask("n-1", work_type="gate", gate="g") for _ in range(10)]
        wait_until(lambda: sum(map(place.begun, asked)) == 10, "all are begun")
        with away(postgres_url):
            place.open_gate("g")
            wait_until(lambda: len(place.notes("done")) == 10, "all are done")
            assert place.order(worker, "heartbeat")["ok"] == {"agents": 1}
            assert place.order(worker, "status")["ok"]["tasks_total"] == 10
            until = SYSTEM.monotonic() + OUTAGE_S
            wait_until(lambda: SYSTEM.monotonic() > until, "the outage takes its time")
        assert [place.result(request_id).status for request_id in asked] == ["success"] * 10
        assert len(place.notes("done")) == 10, "nothing was done twice"
        before = len(place.fleet.heartbeats("n-1"))
        place.order(worker, "heartbeat")
        wait_until(lambda: len(place.fleet.heartbeats("n-1")) > before, "its heart beats again")
        assert worker.alive
        check_fleet_laws(place.store)


@pytest.mark.req("S3-02")
def test_an_agent_outlives_an_outage_of_the_broker_and_does_nothing_twice(open_home: Path, sqlite_url, tmp_path: Path):
    with Valkey(open_home / "valkey") as server, site(AgentSite, tmp_path, sqlite_url, server.url) as place:
        worker = place.agent("n-1", "noting")
        running = place.ask("n-1", work_type="gate", gate="g")
        place.await_begun(running)
        server.kill()
        waiting = place.ask("n-1", work_type="note")
        place.open_gate("g")
        assert place.result(running).status == "success"
        assert place.result(waiting).status == "success", "the store is enough to find it"
        server.start()
        answered(lambda: place.order(worker, "status", 1.0))
        assert place.do("n-1", work_type="note").status == "success"
        assert len(place.notes("done")) == 3
        assert worker.alive
        check_fleet_laws(place.store)


@pytest.mark.req("S3-02")
def test_a_wiped_broker_costs_no_work_and_an_agent_hears_remote_control_as_before(valkey, database_url: str, tmp_path: Path):
    with site(AgentSite, tmp_path, database_url, broker_of(valkey)) as place:
        worker = place.agent("n-1", "noting")
        asked = [place.ask("n-1", work_type="gate", gate="g")]
        place.await_begun(asked[0])
        asked += [place.ask("n-1", work_type="note") for _ in range(5)] + [
            place.ask(agent_type="noting", work_type="note") for _ in range(5)
        ]
        redis_of(place.broker_url).flushdb()
        answered(lambda: place.order(worker, "status", 1.0))
        place.open_gate("g")
        assert {place.result(request_id).status for request_id in asked} == {"success"}
        assert len(place.notes("done")) == len(asked), "nothing was done twice"
        redis_of(place.broker_url).flushdb()
        assert place.do("n-1", work_type="note").status == "success"
        assert worker.alive
        check_fleet_laws(place.store)


def answered(ask: Callable[[], object]) -> None:
    def once() -> object:
        try:
            return ask()
        except OSError:
            return None

    wait_until(once, "it hears remote control again", 40.0)
