"""A fleet as operators run it: an agent host, beat, and agents of two kinds that are started, told, killed and brought back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from orchestrator.servers import ask_tcp, free_ports
from schemas.agents import AgentKind, AgentSpec, AgentStatus
from schemas.messages import CommandName, CommandParams
from tests.e2e.agent_site import AgentSite
from tests.e2e.processes import ROOT, Worker, broker_of, site, wait_until

SERVICE = ROOT / "workers" / "packages" / "file_hash" / "service.py"
TEMPLATE = ROOT / "workers" / "packages" / "_template" / "agent.py"
START_MAX_S = 40.0


@pytest.fixture
def place(valkey: Any, database_url: str, tmp_path: Path) -> Iterator[AgentSite]:
    """Each database, and the embedded broker."""
    with site(AgentSite, tmp_path, database_url, broker_of(valkey), heartbeat_timeout_s=30.0, registry_ttl_s=20.0) as opened:
        yield opened


@pytest.fixture
def host(place: AgentSite) -> Worker:
    place.beat()
    return place.worker(queues="fleet")


def enter(place: AgentSite, agent_id: str, **fields: Any) -> None:
    quick = {"heartbeat_interval_s": 0.5, "flush_interval_s": 60.0}
    place.fleet.add(AgentSpec(**{"id": agent_id, "type": agent_id.partition("-")[0], **quick, **fields}))


def tell(place: AgentSite, agent_id: str, command: CommandName, **params: Any) -> dict[str, Any]:
    return place.fleet.command(agent_id, command, CommandParams(**params), actor="test").result


def lives(pid: int | None) -> bool:
    return pid is not None and psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.req("DC-05", "DC-16", "S1-20")
def test_an_agent_with_a_worker_of_its_own_is_started_told_restarted_and_stopped(place: AgentSite, host: Worker):
    enter(place, "noting-1")
    tell(place, "noting-1", CommandName.START)
    first = place.await_status("noting-1", AgentStatus.RUNNING, max_s=START_MAX_S)
    assert place.do("noting-1", work_type="note").agent_id == "noting-1"
    wait_until(lambda: place.fleet.heartbeats("noting-1"), "beat has it asked for heartbeats")
    assert tell(place, "noting-1", CommandName.PAUSE)["state"] == "paused"
    assert tell(place, "noting-1", CommandName.RESUME)["state"] == "running"
    tell(place, "noting-1", CommandName.RESTART)
    wait_until(lambda: place.fleet.get("noting-1").started_at != first.started_at, "it begins anew", START_MAX_S)
    again = place.await_status("noting-1", AgentStatus.RUNNING, max_s=START_MAX_S)
    assert again.pid == first.pid, "the same process"
    running = place.ask("noting-1", work_type="gate", gate="g")
    place.await_begun(running)
    assert tell(place, "noting-1", CommandName.STOP)["state"] == "stopping"
    place.open_gate("g")
    assert place.result(running).status == "success"
    place.await_status("noting-1", AgentStatus.STOPPED, max_s=START_MAX_S)
    wait_until(lambda: not lives(first.pid), "its process is gone")


@pytest.mark.req("DC-09", "DC-10")
def test_an_agent_whose_worker_is_killed_is_started_again_and_finishes_its_work(place: AgentSite, host: Worker):
    enter(place, "noting-1")
    tell(place, "noting-1", CommandName.START)
    first = place.await_status("noting-1", AgentStatus.RUNNING, max_s=START_MAX_S)
    request_id = place.ask("noting-1", work_type="gate", gate="g")
    place.await_begun(request_id)
    assert first.pid
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: place.fleet.get("noting-1").pid not in {0, None, first.pid}, "another process", START_MAX_S)
    place.await_status("noting-1", AgentStatus.RUNNING, max_s=START_MAX_S)
    place.open_gate("g")
    assert place.result(request_id).status == "success"
    assert place.begun(request_id) == 2
    assert len(place.notes("done", request_id)) == 1


@pytest.mark.req("S3-05")
def test_an_agent_has_its_heartbeats_in_its_own_rhythm(place: AgentSite, host: Worker):
    enter(place, "echo-1", heartbeat_interval_s=1.0)
    tell(place, "echo-1", CommandName.START)
    wait_until(lambda: len(place.fleet.heartbeats("echo-1")) >= 5, "five heartbeats", START_MAX_S)
    times = sorted(beat.at for beat in place.fleet.heartbeats("echo-1"))
    mean = (times[-1] - times[0]) / (len(times) - 1)
    assert 0.8 < mean < 1.3


def test_a_child_is_started_asked_for_its_summary_told_and_stopped(place: AgentSite, host: Worker):
    enter(place, "child-1", kind=AgentKind.CHILD, executable="python", args=(str(TEMPLATE),))
    tell(place, "child-1", CommandName.START)
    child = place.await_status("child-1", AgentStatus.RUNNING, max_s=START_MAX_S)
    assert lives(child.pid)
    assert tell(place, "child-1", CommandName.FLUSH)["state"] == "running"
    summary = wait_until(lambda: place.fleet.summaries("child-1"), "a summary")[0]
    assert orjson.loads(summary.document)
    assert tell(place, "child-1", CommandName.PAUSE)["state"] == "paused"
    assert tell(place, "child-1", CommandName.RESUME)["state"] == "running"
    assert tell(place, "child-1", CommandName.SEQUENCE, sequence=("flush",))["acknowledged"] == ["flush"]
    tell(place, "child-1", CommandName.STOP)
    stopped = place.await_status("child-1", AgentStatus.STOPPED, max_s=START_MAX_S)
    assert stopped.meta["exit_code"] == 0
    assert not lives(child.pid)


def test_a_child_that_is_killed_is_started_again(place: AgentSite, host: Worker):
    enter(place, "child-1", kind=AgentKind.CHILD, executable="python", args=(str(TEMPLATE),))
    tell(place, "child-1", CommandName.START)
    child = place.await_status("child-1", AgentStatus.RUNNING, max_s=START_MAX_S)
    assert child.pid
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: place.fleet.get("child-1").pid not in {0, None, child.pid}, "another process", START_MAX_S)
    place.await_status("child-1", AgentStatus.RUNNING, max_s=START_MAX_S)


def test_a_service_is_started_asked_restarted_killed_and_stopped_by_its_host(place: AgentSite, host: Worker):
    (place.home / "about").write_text("abc")
    enter(place, "hash-1", kind=AgentKind.HTTP, executable="python", args=(str(SERVICE),))
    tell(place, "hash-1", CommandName.START)
    first = place.await_status("hash-1", AgentStatus.RUNNING, max_s=START_MAX_S)
    assert lives(first.pid)
    assert first.service_url.startswith("http://127.0.0.1:")

    def hashed() -> Any:
        return place.do("hash-1", work_type="sha256", path=str(place.home / "about")).output

    assert "ba7816bf" in str(hashed())
    wait_until(lambda: place.fleet.heartbeats("hash-1"), "who answers has a heartbeat")
    tell(place, "hash-1", CommandName.RESTART)
    wait_until(lambda: place.fleet.get("hash-1").started_at != first.started_at, "it begins anew", START_MAX_S)
    again = place.await_status("hash-1", AgentStatus.RUNNING, max_s=START_MAX_S)
    assert (again.pid, again.service_url) == (first.pid, first.service_url), "the same process on the same port"
    assert "ba7816bf" in str(hashed())
    assert again.pid
    os.kill(again.pid, signal.SIGKILL)
    wait_until(lambda: place.fleet.get("hash-1").pid not in {0, None, again.pid}, "another process", START_MAX_S)
    third = place.await_status("hash-1", AgentStatus.RUNNING, max_s=START_MAX_S)
    assert "ba7816bf" in str(hashed())
    tell(place, "hash-1", CommandName.STOP)
    place.await_status("hash-1", AgentStatus.STOPPED, max_s=START_MAX_S)
    wait_until(lambda: not lives(third.pid), "its process is gone")


def test_a_service_that_has_come_by_itself_is_spoken_for_until_it_leaves(place: AgentSite, host: Worker):
    (port,) = free_ports(1)
    (place.home / "about").write_text("abc")
    argv = [sys.executable, str(SERVICE), "--port", str(port), "--id", "hash-9"]
    with (place.home / "hash-9.out").open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out, env=place.environment) as service:
        try:
            wait_until(lambda: ask_tcp(port, b"GET /health HTTP/1.0\r\n\r\n"), "it answers")
            place.fleet.register_service("hash-9", f"http://127.0.0.1:{port}")
            wait_until(lambda: place.fleet.get("hash-9").node == host.node, "a worker speaks for it", START_MAX_S)
            done = place.do("hash-9", work_type="sha256", path=str(place.home / "about"))
            assert "ba7816bf" in str(done.output)
            place.fleet.unregister_service("hash-9")
            assert not place.fleet.get("hash-9").registered
        finally:
            service.kill()


def test_a_host_that_is_told_to_go_takes_its_agents_with_it_in_good_order(place: AgentSite, host: Worker):
    enter(place, "child-1", kind=AgentKind.CHILD, executable="python", args=(str(TEMPLATE),))
    enter(place, "echo-1")
    pids = []
    for agent_id in ("child-1", "echo-1"):
        tell(place, agent_id, CommandName.START)
        pids.append(place.await_status(agent_id, AgentStatus.RUNNING, max_s=START_MAX_S).pid)
    assert host.stop(START_MAX_S) == 0
    assert [place.status(agent_id) for agent_id in ("child-1", "echo-1")] == [AgentStatus.STOPPED] * 2
    assert not any(map(lives, pids))


def test_nothing_of_a_host_that_is_killed_is_left_and_its_agents_go_on_elsewhere(place: AgentSite, host: Worker):
    enter(place, "child-1", kind=AgentKind.CHILD, executable="python", args=(str(TEMPLATE),))
    tell(place, "child-1", CommandName.START)
    child = place.await_status("child-1", AgentStatus.RUNNING, max_s=START_MAX_S)
    second = place.worker(queues="fleet")
    host.kill()
    wait_until(lambda: not lives(child.pid), "its agent has gone with it")
    wait_until(lambda: place.fleet.get("child-1").keeper == second.node, "another host has it", START_MAX_S)
    place.await_status("child-1", AgentStatus.RUNNING, max_s=START_MAX_S)


@pytest.mark.parametrize(
    "fields, reason",
    [({"executable": "/no/such/program"}, "was not found"), ({"executable": sys.executable, "args": ("-c", "raise SystemExit(3)")}, "")],
)
def test_a_child_that_cannot_be_started_or_ends_at_once_is_in_error(place: AgentSite, host: Worker, fields, reason):
    enter(place, "child-1", kind=AgentKind.CHILD, **fields)
    tell(place, "child-1", CommandName.START)
    found = place.await_status("child-1", AgentStatus.ERROR, max_s=START_MAX_S)
    assert reason in found.reason
