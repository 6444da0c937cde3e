"""A type of agents is restarted as operators do it, under load: one after the other, with the same names, and no further than the first that fails."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from orchestrator.rolling_restarts import workflow_id
from schemas.agents import AgentSpec, AgentStatus
from schemas.messages import CommandName
from tests.e2e.agent_site import AgentSite
from tests.e2e.processes import ROOT, broker_of, site

START_MAX_S = 40.0
ROLL_MAX_S = 90.0
NAMES = ("n-1", "n-2", "n-3")


@pytest.fixture
def place(valkey: Any, postgres_url: str, tmp_path: Path) -> Iterator[AgentSite]:
    with site(AgentSite, tmp_path, postgres_url, broker_of(valkey), heartbeat_timeout_s=30.0, registry_ttl_s=20.0) as opened:
        opened.beat()
        opened.worker(queues="fleet")
        for name in NAMES:
            opened.fleet.add(AgentSpec(id=name, type="noting", drain_timeout_s=10.0))
            opened.fleet.command(name, CommandName.START, actor="test")
        for name in NAMES:
            opened.await_status(name, AgentStatus.RUNNING, max_s=START_MAX_S)
        yield opened


def roll(place: AgentSite, *options: str) -> tuple[int, dict[str, Any]]:
    argv = (sys.executable, "-m", "orchestrator", "agent", "rolling-restart", "noting", *options, "--json")
    done = subprocess.run(argv, check=False, cwd=ROOT, env=place.environment, capture_output=True, text=True, timeout=ROLL_MAX_S)
    assert done.stdout, done.stderr
    return done.returncode, orjson.loads(done.stdout)


def seats(place: AgentSite) -> dict[str, tuple[float | None, str]]:
    return {name: (agent.started_at, agent.node) for name in NAMES for agent in [place.fleet.get(name)]}


def test_agents_of_a_type_are_renewed_one_by_one_under_their_names_until_one_cannot_start(place: AgentSite):
    before = seats(place)
    works = [place.ask(name, work_type="note") for name in NAMES * 5]
    status, told = roll(place)
    assert (status, told["status"], told["progress"]["restarted"]) == (0, "completed", list(NAMES))
    assert all(place.result(work).status == "success" for work in works)
    after = seats(place)
    assert [node for _, node in after.values()] == [node for _, node in before.values()], "the names stay"
    times = [started_at or 0.0 for started_at, _ in after.values()]
    assert times == sorted(times)
    assert all(time > max(at or 0.0 for at, _ in before.values()) for time in times)

    (place.home / "broken-n-2").touch()
    status, told = roll(place, "--healthy-within", "20")
    assert (status, told["status"]) == (1, "failed")
    assert (told["progress"]["restarted"], list(told["progress"]["failed"]), told["progress"]["waiting"]) == (["n-1"], ["n-2"], ["n-3"])
    assert seats(place)["n-3"] == after["n-3"], "nobody touched it"
    assert place.status("n-3") is AgentStatus.RUNNING
    assert place.do("n-3", work_type="note").status == "success"
    assert workflow_id("noting") in told["workflow_id"]
