"""Agents that die, are stopped and are restarted with works in their hands: every work has one result, and none is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.errors import FleetError
from schemas.agents import AgentSpec, AgentStatus
from schemas.messages import CommandName, ErrorCode
from tests.agents.test_shell import left
from tests.e2e.agent_site import AgentSite
from tests.e2e.processes import ROOT, broker_of, site, wait_until
from tests.fleet_laws import check_fleet_laws

RECOVERED_MAX_S = 13.0  # a lease of 3 s, and 10


@pytest.fixture
def place(valkey: Any, database_url: str, tmp_path: Path) -> Iterator[AgentSite]:
    """Each database, and the embedded broker."""
    with site(AgentSite, tmp_path, database_url, broker_of(valkey)) as opened:
        yield opened


@pytest.mark.req("DC-09", "DC-10", "S3-15")
def test_a_work_whose_agent_is_killed_is_done_by_another_one_and_has_one_result(place: AgentSite):
    first = place.agent("n-1", "noting")
    request_id = place.ask(agent_type="noting", work_type="gate", gate="g")
    place.await_begun(request_id)
    place.agent("n-2", "noting")
    first.kill()
    began = SYSTEM.monotonic()
    place.await_begun(request_id, 2)
    place.open_gate("g")
    assert place.result(request_id).agent_id == "n-2"
    assert SYSTEM.monotonic() - began < RECOVERED_MAX_S
    assert len(place.notes("done", request_id)) == 1
    assert place.begun(request_id) == 2


@pytest.mark.req("DC-10", "S3-15")
def test_a_work_for_an_agent_that_is_killed_is_done_when_it_comes_back(place: AgentSite):
    first = place.agent("n-1", "noting")
    request_id = place.ask("n-1", work_type="gate", gate="g")
    place.await_begun(request_id)
    first.kill()
    place.agent("n-1", "noting")
    place.await_begun(request_id, 2)
    place.open_gate("g")
    assert place.result(request_id).status == "success"
    assert len(place.notes("done", request_id)) == 1
    check_fleet_laws(place.store)


@pytest.mark.req("S3-15", "DC-14")
@pytest.mark.parametrize(
    "point", ["works.begin:before_commit", "works.begin:after_commit", "works.finish:before_commit", "works.finish:after_commit"]
)
def test_an_agent_that_dies_around_a_commit_costs_no_work_and_no_second_result(place: AgentSite, point):
    doomed = place.agent("n-1", "noting", doom=point)
    request_id = place.ask(agent_type="noting", work_type="note")
    wait_until(lambda: not doomed.alive, "it has died")
    place.agent("n-2", "noting")
    result = place.result(request_id)
    assert result.status == "success"
    assert place.works.get(request_id).result == result.model_copy(update={"cached": False})
    done = len(place.notes("done", request_id))
    assert done == (1 if point in {"works.begin:before_commit", "works.begin:after_commit", "works.finish:after_commit"} else 2)


@pytest.mark.parametrize("point, accepted", [("works.accept:before_commit", False), ("works.accept:after_commit", True)])
def test_a_caller_that_dies_around_the_commit_has_submitted_the_work_or_not(place: AgentSite, point, accepted):
    request_id = SYSTEM.fresh_id()
    program = f"""
from orchestrator import crashpoints
from orchestrator.works import Works, WorkRequest
crashpoints.die_at({point!r})
Works().submit(WorkRequest(work_type="echo"), agent_type="echo", request_id={request_id!r})
"""
    place.agent("e-1")
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=place.environment, check=False).returncode != 0
    if accepted:
        assert place.result(request_id).status == "success"
    else:
        with pytest.raises(FleetError, match="no work is known"):
            place.works.get(request_id)


def test_a_command_of_an_agent_that_is_killed_is_gone_with_all_that_it_has_started(place: AgentSite):
    marker = f"marker-{SYSTEM.fresh_id()}"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)', {marker!r}]); time.sleep(300)"
    place.fleet.add(AgentSpec(id="s-1", type="shell", metadata={"commands": {"it": {"argv": [sys.executable, "-c", code]}}}))
    worker = place.agent("s-1", "shell")
    place.ask("s-1", work_type="run", command="it")
    wait_until(lambda: len(left(marker)) >= 2, "the command runs")
    worker.kill()
    wait_until(lambda: left(marker) == [], "all of it is gone")


# --- leaving -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.req("S1-20", "DC-17")
def test_an_agent_that_is_told_to_go_refuses_new_work_and_finishes_what_it_has(place: AgentSite):
    worker = place.agent("n-1", "noting")
    running, queued = place.ask("n-1", work_type="gate", gate="g"), place.ask("n-1", work_type="note")
    place.await_begun(running)
    worker.signal(signal.SIGTERM)
    place.await_status("n-1", AgentStatus.STOPPING)
    with pytest.raises(FleetError) as refused:
        place.ask("n-1", work_type="note")
    assert refused.value.code == ErrorCode.AGENT_STOPPING
    place.open_gate("g")
    assert worker.process.wait(20) == 0
    assert place.result(running).status == "success"
    assert place.await_status("n-1", AgentStatus.STOPPED).meta["exit_code"] == 0
    place.agent("n-1", "noting")
    assert place.result(queued).status == "success", "it was accepted, so it is done, if only now"


@pytest.mark.req("S1-20")
def test_an_agent_that_cannot_finish_in_time_goes_all_the_same_and_its_work_goes_on_elsewhere(place: AgentSite):
    worker = place.agent("n-1", "noting", agent_drain_s=1.0)
    place.agent("n-2", "noting")
    asked = [place.ask(agent_type="noting", work_type="gate", gate="g") for _ in range(2)]
    wait_until(lambda: sum(map(place.begun, asked)) == 2, "both are begun")
    began = SYSTEM.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.process.wait(20) == 0
    assert SYSTEM.monotonic() - began < 1.0 + 5.0
    place.open_gate("g")
    assert [place.result(request_id).agent_id for request_id in asked] == ["n-2", "n-2"]


@pytest.mark.req("S1-20", "S1-23")
def test_a_draining_agent_does_what_was_asked_of_it_before_and_says_when_it_is_done(place: AgentSite):
    worker = place.agent("n-1", "noting")
    targeted = [place.ask("n-1", work_type="gate", gate="g"), place.ask("n-1", work_type="note")]
    place.await_begun(targeted[0])
    place.fleet.command("n-1", CommandName.STOP, actor="test")
    assert place.order(worker, "drain")["ok"] == {"running": [targeted[0]]}
    others = place.ask(agent_type="noting", work_type="note")
    place.open_gate("g")
    assert [place.result(request_id).status for request_id in targeted] == ["success", "success"]
    wait_until(lambda: place.consumed(worker) == set(), "it takes nothing more")
    assert place.begun(others) == 0
    assert place.open_works("n-1") == []
    assert place.order(worker, "end")["ok"] == {}
    assert worker.process.wait(20) == 0
    assert place.status("n-1") is AgentStatus.STOPPED


@pytest.mark.req("S1-20")
def test_an_agent_that_is_ended_by_force_waits_for_nothing(place: AgentSite):
    worker = place.agent("n-1", "noting")
    request_id = place.ask(agent_type="noting", work_type="gate", gate="g")
    place.await_begun(request_id)
    began = SYSTEM.monotonic()
    assert place.order(worker, "end", forced=True)["ok"] == {}
    assert worker.process.wait(20) == 0
    assert SYSTEM.monotonic() - began < 5.0
    place.agent("n-2", "noting")
    place.await_begun(request_id, 2)
    place.open_gate("g")
    assert place.result(request_id).agent_id == "n-2"


@pytest.mark.req("S1-23")
def test_of_200_works_asked_for_while_an_agent_is_stopped_each_has_a_result_or_was_refused(place: AgentSite):
    worker = place.agent("e-1", "echo", "-c", "4")

    def ask(number: int) -> str:
        try:
            return place.ask("e-1", n=number)
        except FleetError as error:
            return ErrorCode(error.code)

    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(ask, number) for number in range(200)]
        wait_until(lambda: sum(future.done() for future in asked) > 50, "some are accepted")
        place.fleet.command("e-1", CommandName.STOP, actor="test")
        outcomes = [future.result() for future in asked]
    refused = [outcome for outcome in outcomes if isinstance(outcome, ErrorCode)]
    accepted = {number: outcome for number, outcome in enumerate(outcomes) if not isinstance(outcome, ErrorCode)}
    assert accepted
    assert set(refused) == {ErrorCode.AGENT_STOPPING}
    place.order(worker, "drain")
    assert {number: place.result(outcome).output for number, outcome in accepted.items()} == {number: {"n": number} for number in accepted}
    check_fleet_laws(place.store)
    print(f"{len(accepted)} accepted, {len(refused)} refused")


# --- coming back ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.req("S1-41", "S1-36")
def test_an_agent_that_restarts_finishes_its_work_and_becomes_its_own_successor(place: AgentSite):
    worker = place.agent("n-1", "noting")
    before = place.fleet.get("n-1")
    arguments = Path(f"/proc/{worker.process.pid}/cmdline").read_bytes()
    request_id = place.ask("n-1", work_type="gate", gate="g")
    place.await_begun(request_id)
    place.fleet.command("n-1", CommandName.RESTART, actor="test")
    assert place.fleet.replacing("n-1")
    assert place.order(worker, "restart")["ok"] == {"mode": "execv"}
    place.open_gate("g")
    assert place.result(request_id).status == "success"
    after = place.await_status("n-1", AgentStatus.RUNNING)
    assert after.pid == before.pid == worker.process.pid
    assert (after.started_at or 0) > (before.started_at or 0)
    assert Path(f"/proc/{worker.process.pid}/cmdline").read_bytes() == arguments
    assert place.do("n-1", work_type="note").status == "success"
    check_fleet_laws(place.store)


@pytest.mark.req("S1-46")
def test_an_agent_that_is_to_be_respawned_ends_well_and_leaves_that_to_its_keeper(place: AgentSite):
    worker = place.agent("n-1", "noting", restart_mode="respawn")
    place.fleet.command("n-1", CommandName.RESTART, actor="test")
    assert place.fleet.replacing("n-1")
    assert place.order(worker, "restart")["ok"] == {"mode": "respawn"}
    assert worker.process.wait(20) == 0
    assert place.status("n-1") is AgentStatus.STARTING, "its supervisor starts it again"
    assert place.agent("n-1", "noting").process.pid != worker.process.pid


@pytest.mark.req("S1-41")
def test_an_agent_that_cannot_become_its_own_successor_ends_with_an_error(place: AgentSite, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    place.environment["PYTHONPATH"] = sysconfig.get_path("purelib")
    monkeypatch.setattr(sys, "executable", str(python))
    worker = place.agent("n-1", "noting")
    python.unlink()
    place.fleet.command("n-1", CommandName.RESTART, actor="test")
    assert place.fleet.replacing("n-1")
    assert place.order(worker, "restart")["ok"] == {"mode": "execv"}
    assert worker.process.wait(20) == 1
    assert place.await_status("n-1", AgentStatus.ERROR).reason.startswith("restart_failed")
