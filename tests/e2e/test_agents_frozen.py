"""Processes that are frozen and wake up, or were started twice: an agent is one process, and whoever is not it any more goes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.clock import SYSTEM
from schemas.agents import AgentKind, AgentSpec, AgentStatus
from schemas.messages import CommandName
from tests.e2e.agent_site import AgentSite
from tests.e2e.processes import ROOT, Worker, broker_of, site, wait_until
from tests.fleet_laws import check_fleet_laws

SERVICE = ROOT / "workers" / "packages" / "file_hash" / "service.py"
TEMPLATE = ROOT / "workers" / "packages" / "_template" / "agent.py"
AGAIN_MAX_S = 60.0  # a lease that ends, a restart that waits its turn, and two interpreters


@pytest.fixture(params=["valkey postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AgentSite]:
    """One broker and one database; `everywhere` takes more."""
    broker, database = request.param.split()
    broker_url = request.getfixturevalue("rabbitmq_url") if broker == "rabbitmq" else broker_of(request.getfixturevalue(broker))
    with site(AgentSite, tmp_path, request.getfixturevalue(f"{database}_url"), broker_url, agent_drain_s=3.0) as opened:
        opened.beat()
        yield opened
        thaw(opened)


everywhere = pytest.mark.parametrize("place", ["valkey postgres", "valkey sqlite", "rabbitmq postgres"], indirect=True)


def thaw(place: AgentSite) -> None:
    """Nothing that a test froze stays so."""
    for process in psutil.process_iter():
        if process.status() == psutil.STATUS_STOPPED and str(place.home) in str(variables(process)):
            process.send_signal(signal.SIGCONT)


def variables(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


def lives(pid: int | None) -> bool:
    return pid is not None and psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def freeze(pid: int | None) -> int:
    assert pid
    os.kill(pid, signal.SIGSTOP)
    return pid


def enter(place: AgentSite, agent_id: str, **fields: Any) -> Any:
    place.fleet.add(AgentSpec(**{"id": agent_id, "type": agent_id.partition("-")[0], "heartbeat_interval_s": 0.5, **fields}))
    place.fleet.command(agent_id, CommandName.START, actor="test")
    return place.await_status(agent_id, AgentStatus.RUNNING, max_s=AGAIN_MAX_S)


def await_successor(place: AgentSite, agent_id: str, former: int) -> int:
    """The process that is this agent now, once it is another one."""

    def found() -> int:
        agent = place.fleet.get(agent_id)
        return agent.pid if agent.status is AgentStatus.RUNNING and agent.pid and agent.pid != former else 0

    return int(wait_until(found, f"{agent_id} is another process", AGAIN_MAX_S))


def does_works(place: AgentSite, agent_id: str, count: int = 20) -> None:
    """Each has one result and was begun once."""
    asked = [place.ask(agent_id, work_type="note", n=number) for number in range(count)]
    assert {place.result(request_id).status for request_id in asked} == {"success"}
    assert [place.begun(request_id) for request_id in asked] == [1] * count
    assert [len(place.notes("done", request_id)) for request_id in asked] == [1] * count


@everywhere
@pytest.mark.req("DC-09", "S3-15")
def test_an_agent_that_wakes_up_after_its_successor_came_begins_no_work_and_ends(place: AgentSite):
    """Nobody keeps its process, so nobody can kill it: it has to see for itself."""
    old = place.agent("noting-1", "noting")
    held = place.ask("noting-1", work_type="gate", gate="g")
    place.await_begun(held)
    freeze(old.process.pid)
    place.worker(queues="fleet")
    new = await_successor(place, "noting-1", old.process.pid)
    place.await_begun(held, 2)
    asked = [place.ask("noting-1", work_type="note", n=number) for number in range(20)]
    old.signal(signal.SIGCONT)
    assert old.process.wait(30) == 0
    assert "is agent noting-1 no longer" in old.text
    place.open_gate("g")
    assert place.result(held).status == "success"
    assert {place.result(request_id).status for request_id in asked} == {"success"}
    assert {line.split()[2] for request_id in asked for line in place.notes("begin", request_id)} == {str(new)}, (
        "the former self has begun none"
    )
    agent = place.fleet.get("noting-1")
    assert (agent.pid, agent.status) == (new, AgentStatus.RUNNING), "its end is no news"
    does_works(place, "noting-1")
    check_fleet_laws(place.store)


def test_an_agent_that_wakes_up_and_has_no_successor_goes_on(place: AgentSite):
    worker = place.agent("noting-1", "noting")
    freeze(worker.process.pid)
    place.await_status("noting-1", AgentStatus.ERROR)
    worker.signal(signal.SIGCONT)
    agent = place.await_status("noting-1", AgentStatus.RUNNING)
    assert agent.pid == worker.process.pid
    does_works(place, "noting-1")
    check_fleet_laws(place.store)


def test_an_agent_that_wakes_up_after_it_was_stopped_ends(place: AgentSite):
    worker = place.agent("noting-1", "noting")
    freeze(worker.process.pid)
    place.await_status("noting-1", AgentStatus.ERROR)
    place.fleet.command("noting-1", CommandName.STOP, actor="test")
    place.await_status("noting-1", AgentStatus.STOPPED)
    worker.signal(signal.SIGCONT)
    assert worker.process.wait(30) == 0
    assert place.status("noting-1") is AgentStatus.STOPPED
    check_fleet_laws(place.store)


def test_of_two_processes_that_are_started_as_one_agent_the_later_one_stays(place: AgentSite):
    first = place.agent("noting-1", "noting")
    second = place.agent("noting-1", "noting")
    assert first.process.wait(30) == 0
    assert second.alive
    assert place.fleet.get("noting-1").pid == second.process.pid
    does_works(place, "noting-1")
    check_fleet_laws(place.store)


@everywhere
def test_a_frozen_agent_is_killed_and_replaced_by_the_host_that_keeps_its_process(place: AgentSite):
    place.worker(queues="fleet")
    first = enter(place, "noting-1")
    held = place.ask("noting-1", work_type="gate", gate="g")
    place.await_begun(held)
    frozen = freeze(first.pid)
    await_successor(place, "noting-1", frozen)
    assert not lives(frozen), "it can never wake up"
    place.await_begun(held, 2)
    place.open_gate("g")
    assert place.result(held).status == "success"
    assert len(place.notes("done", held)) == 1
    does_works(place, "noting-1")
    check_fleet_laws(place.store)


def test_a_frozen_child_is_inactive_until_it_wakes_up_and_can_be_restarted_and_stopped_meanwhile(place: AgentSite):
    place.worker(queues="fleet")
    child = enter(place, "child-1", kind=AgentKind.CHILD, executable="python", args=(str(TEMPLATE),))
    frozen = freeze(child.pid)
    place.await_status("child-1", AgentStatus.INACTIVE)
    os.kill(frozen, signal.SIGCONT)
    assert place.await_status("child-1", AgentStatus.RUNNING).pid == frozen
    freeze(frozen)
    place.await_status("child-1", AgentStatus.INACTIVE)
    place.fleet.command("child-1", CommandName.RESTART, actor="test")
    successor = await_successor(place, "child-1", frozen)
    assert not lives(frozen)
    freeze(successor)
    began = SYSTEM.monotonic()
    place.fleet.command("child-1", CommandName.STOP, actor="test")
    place.await_status("child-1", AgentStatus.STOPPED)
    bound_s = place.settings.agent_drain_s + 2 * place.settings.terminate_grace_s + 10
    assert SYSTEM.monotonic() - began < bound_s
    assert not lives(successor)
    check_fleet_laws(place.store)


def test_what_a_frozen_host_kept_is_started_elsewhere_and_gone_when_it_wakes_up(place: AgentSite):
    first: Worker = place.worker(queues="fleet")
    (place.home / "about").write_text("abc")
    child = enter(place, "child-1", kind=AgentKind.CHILD, executable="python", args=(str(TEMPLATE),))
    service = enter(place, "hash-1", kind=AgentKind.HTTP, executable="python", args=(str(SERVICE),))
    native = enter(place, "noting-1")
    assert {child.keeper, service.keeper, native.keeper} == {first.node}
    freeze(first.process.pid)
    place.worker(queues="fleet")
    successors = {agent.id: await_successor(place, agent.id, agent.pid or 0) for agent in (child, service)}
    first.signal(signal.SIGCONT)
    wait_until(lambda: not (lives(child.pid) or lives(service.pid)), "the former processes are gone", AGAIN_MAX_S)
    assert first.alive
    assert lives(native.pid), "it has a worker of its own, which was not frozen"
    assert place.fleet.get("noting-1").pid == native.pid
    assert {agent_id: place.fleet.get(agent_id).pid for agent_id in successors} == successors
    assert "ba7816bf" in str(place.do("hash-1", work_type="sha256", path=str(place.home / "about")).output)
    does_works(place, "noting-1")
    check_fleet_laws(place.store)
