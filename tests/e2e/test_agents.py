"""Agents as people run them: worker processes, real brokers, real databases."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from orchestrator.clock import SYSTEM
from orchestrator.core.machines import Trigger
from orchestrator.store import agents
from orchestrator.store.agents import Update
from schemas.agents import AgentStatus, DesiredState
from schemas.messages import ErrorCode, WorkRequest, WorkResult
from tests.e2e.agent_site import AgentSite
from tests.e2e.processes import ROOT, broker_of, site, wait_until


@pytest.fixture
def place(valkey: Any, sqlite_url: str, tmp_path: Path) -> Iterator[AgentSite]:
    """SQLite and the embedded broker."""
    with site(AgentSite, tmp_path, sqlite_url, broker_of(valkey)) as opened:
        yield opened


@pytest.fixture(params=["sqlite-rabbitmq", "postgresql-valkey"])
def everywhere(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AgentSite]:
    """Each database once, and each broker once."""
    on_rabbitmq = request.param == "sqlite-rabbitmq"
    database = request.getfixturevalue("sqlite_url" if on_rabbitmq else "postgres_url")
    broker = request.getfixturevalue("rabbitmq_url") if on_rabbitmq else broker_of(request.getfixturevalue("valkey"))
    with site(AgentSite, tmp_path, database, broker) as opened:
        yield opened


@pytest.mark.req("S3-17", "S3-18", "S3-20", "DC-08")
def test_an_agent_does_what_it_is_asked_and_goes_on_after_a_failure(everywhere: AgentSite):
    worker = everywhere.agent("e-1")
    echoed = everywhere.do("e-1", work_type="echo", x=1)
    assert (echoed.output, echoed.exit_code, echoed.agent_id) == ({"x": 1}, 0, "e-1")
    failed = everywhere.do("e-1", work_type="fail", message="as you wish")
    assert (failed.status, failed.exit_code, failed.error and failed.error.message) == ("error", 1, "as you wish")
    unknown = everywhere.do("e-1", work_type="dance")
    assert (unknown.exit_code, unknown.error and unknown.error.code) == (1, ErrorCode.UNKNOWN_WORK_TYPE)
    assert everywhere.do(agent_type="echo", x=2).output == {"x": 2}
    assert worker.alive
    assert worker.stop() == 0
    assert everywhere.status("e-1") is AgentStatus.STOPPED


@pytest.mark.req("S2-41")
def test_a_work_that_fails_is_tried_as_often_as_was_asked_and_its_error_says_what_went_wrong(place: AgentSite):
    place.agent("n-1", "noting")

    def tried(times: int) -> tuple[WorkResult, int]:
        request = WorkRequest(work_type="flaky", parameters={"times": times}, attempts_max=3)
        request_id = place.works.submit(request, agent_id="n-1").work.request_id
        return place.result(request_id), place.begun(request_id)

    failed, begun = tried(9)
    assert (failed.status, begun) == ("error", 3)
    assert failed.error is not None
    assert (failed.error.code, "try 3" in failed.error.message) == (ErrorCode.EXECUTION_FAILED, True)
    done, begun = tried(5)
    assert (done.status, begun) == ("success", 2), "the second of these attempts is the fifth of this agent's"


@pytest.mark.req("S3-21", "S3-01")
def test_an_agent_package_runs_as_a_program_and_ends_well_on_ctrl_c(place: AgentSite):
    log = place.home / "standalone.out"
    argv = [sys.executable, "-m", "workers.packages.echo", "--id", "alone"]
    with log.open("wb") as out, subprocess.Popen(argv, cwd=ROOT, env=place.environment, stdout=out, stderr=out) as process:
        try:
            place.await_status("alone", AgentStatus.RUNNING)
            assert place.do("alone", x=1).output == {"x": 1}
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0, log.read_text()
        finally:
            process.kill()
    assert place.status("alone") is AgentStatus.STOPPED


@pytest.mark.req("S3-04", "S3-29")
def test_three_works_for_a_type_are_not_kept_by_the_agent_that_can_do_one(place: AgentSite):
    place.agent("n-1", "noting")
    asked = [place.ask(agent_type="noting", work_type="gate", gate="g") for _ in range(3)]
    wait_until(lambda: sum(place.begun(request_id) for request_id in asked) == 1, "one of them is begun")
    place.agent("n-2", "noting")
    wait_until(lambda: sum(place.begun(request_id) for request_id in asked) == 2, "another one is begun by the other agent")
    place.open_gate("g")
    by = [place.result(request_id).agent_id for request_id in asked]
    assert set(by) == {"n-1", "n-2"}


@pytest.mark.req("DC-08")
def test_an_agent_does_no_work_of_another_type_even_if_nobody_else_does(place: AgentSite):
    place.agent("n-1", "noting").stop()
    place.agent("e-1", "echo")
    asked = place.ask(agent_type="noting", work_type="note")
    assert place.do("e-1", x=1).output == {"x": 1}
    assert place.begun(asked) == 0
    place.agent("n-2", "noting")
    assert place.result(asked).agent_id == "n-2"


@pytest.mark.req("S3-03")
def test_an_agent_consumes_the_queue_of_its_type_and_its_own(everywhere: AgentSite):
    worker = everywhere.agent("e-1")
    wait_until(lambda: everywhere.consumed(worker) == {"work.echo", "agent.e-1"}, "both are consumed")


@pytest.mark.req("DC-20")
def test_the_worker_of_an_agent_must_stay_answerable(place: AgentSite):
    worker = place.agent("e-1", "echo", "-P", "solo", wait=False)
    assert worker.process.wait(30) == 1
    assert "must stay answerable" in worker.text


def test_an_agent_of_an_unknown_type_says_which_there_are_and_is_in_error(place: AgentSite):
    worker = place.agent("x-1", "nonsense", wait=False)
    assert worker.process.wait(30) == 1
    assert "no class is known for agents of type 'nonsense'" in worker.text
    assert place.status("x-1") is None


@pytest.mark.req("S1-27", "S3-23")
def test_every_line_of_an_agent_is_json_on_stdout_and_in_its_file_and_names_the_trace(place: AgentSite):
    worker = place.agent("e-1")
    trace_id = place.do("e-1", x=1).trace_id
    assert trace_id
    assert worker.stop() == 0
    for text in (worker.lines.read_text(), (place.home / "logs" / "e-1.log").read_text()):
        lines = [orjson.loads(line) for line in text.splitlines()]
        assert all({"ts", "level", "agent_id", "trace_id", "message"} <= line.keys() for line in lines)
        assert [line["message"] for line in lines if line["trace_id"] == trace_id.hex] == ["work begins", "work is done"]


# --- what it is told ---------------------------------------------------------------------------------------------------------------


@pytest.mark.req("DC-16")
def test_a_paused_agent_finishes_what_runs_and_begins_nothing_until_it_is_resumed(everywhere: AgentSite):
    worker = everywhere.agent("n-1", "noting")
    running = everywhere.ask("n-1", work_type="gate", gate="g")
    everywhere.await_begun(running)
    assert everywhere.order(worker, "pause")["ok"] == {"current_work": [running]}
    assert everywhere.consumed(worker) == set()
    waiting = [everywhere.ask("n-1", work_type="note"), everywhere.ask(agent_type="noting", work_type="note")]
    everywhere.open_gate("g")
    assert everywhere.result(running).status == "success"
    assert everywhere.order(worker, "status")["ok"] == {"status": "paused", "current_work": [], "tasks_total": 1}
    assert [everywhere.begun(request_id) for request_id in waiting] == [0, 0]
    assert everywhere.order(worker, "resume")["ok"] == {"current_work": []}
    assert [everywhere.result(request_id).status for request_id in waiting] == ["success", "success"]
    assert everywhere.consumed(worker) == {"work.noting", "agent.n-1"}


@pytest.mark.req("DC-18")
def test_a_paused_agent_that_is_killed_comes_back_paused(everywhere: AgentSite):
    worker = everywhere.agent("e-1")
    with everywhere.store.transaction() as tx:
        agents.change(tx, agents.need(tx, "e-1", lock=True), Trigger.PAUSED, Update(desired=DesiredState.PAUSED))
    worker.kill()
    again = everywhere.agent("e-1")
    assert everywhere.status("e-1") is AgentStatus.PAUSED
    assert everywhere.consumed(again) == set()
    waiting = everywhere.ask(agent_type="echo", x=1)
    assert everywhere.order(again, "status")["ok"]["status"] == "paused"
    assert everywhere.begun(waiting) == 0
    everywhere.order(again, "resume")
    assert everywhere.result(waiting).output == {"x": 1}


@pytest.mark.req("DC-20", "S2-12")
def test_an_agent_whose_slots_are_all_busy_answers_at_once_and_its_heart_beats(place: AgentSite):
    worker = place.agent("n-1", "noting")
    running = place.ask("n-1", work_type="gate", gate="g")
    place.await_begun(running)
    began = SYSTEM.monotonic()
    answers = [place.order(worker, name) for name in ("status", "health", "metrics", "heartbeat")]
    assert SYSTEM.monotonic() - began < 2.0, "four answers of at most half a second"
    assert answers[0]["ok"]["current_work"] == [running]
    assert answers[1]["ok"] == {"health": "healthy", "reason": ""}
    assert answers[2]["ok"]["queue"] == 1
    beaten = wait_until(lambda: place.fleet.heartbeats("n-1"), "a heartbeat")[0]
    assert beaten.current_work == (running,)
    assert beaten.resources.keys() >= {"cpu_percent", "memory_percent", "gpu_vram_available_mb", "gpu_vram_total_mb", "free_mem_mb", "load"}
    place.open_gate("g")
    assert place.result(running).status == "success"


@pytest.mark.req("DC-15")
def test_an_agent_does_more_works_at_once_or_fewer_but_never_none(place: AgentSite):
    worker = place.agent("n-1", "noting")
    asked = [place.ask("n-1", work_type="gate", gate="g") for _ in range(3)]
    wait_until(lambda: sum(map(place.begun, asked)) == 1, "one of them is begun")
    assert place.order(worker, "scale", delta=1)["ok"] == {"concurrency": 2}
    wait_until(lambda: sum(map(place.begun, asked)) == 2, "a second one is begun")
    assert place.order(worker, "scale", delta=-1)["ok"] == {"concurrency": 1}
    assert place.order(worker, "scale", delta=-1)["error"] == ErrorCode.INVALID_REQUEST
    place.open_gate("g")
    assert [place.result(request_id).status for request_id in asked] == ["success"] * 3


@pytest.mark.req("DC-15")
def test_a_pool_that_cannot_grow_says_so(place: AgentSite):
    worker = place.agent("e-1", "echo", "-P", "threads")
    assert place.do("e-1", x=1).output == {"x": 1}
    assert place.order(worker, "scale", delta=1)["error"] == ErrorCode.POOL_UNSUPPORTED


def test_an_agent_gives_its_summary_when_it_is_asked(place: AgentSite):
    worker = place.agent("e-1")
    place.do("e-1", x=1)
    answer = place.order(worker, "flush")
    summary = place.fleet.summaries("e-1")[0]
    assert answer["ok"] == {"summary": summary.id}
    assert orjson.loads(summary.document) == {"works": 1}


def test_a_sequence_is_done_in_order(place: AgentSite):
    worker = place.agent("e-1")
    assert place.order(worker, "sequence", sequence=["flush", "dance"])["error"] == ErrorCode.INVALID_REQUEST
    answer = place.order(worker, "sequence", sequence=["pause", "flush", "resume", "shutdown"])
    assert answer["ok"] == {"acknowledged": ["pause", "flush", "resume", "shutdown"], "left": True}
    assert worker.process.wait(20) == 0
    assert place.fleet.summaries("e-1")


@pytest.mark.req("S1-10")
def test_the_last_lines_of_an_agents_log_are_told(place: AgentSite):
    worker = place.agent("e-1")
    place.do("e-1", x=1)
    lines = place.order(worker, "logs", lines=2)["ok"]["lines"]
    assert len(lines) == 2


def test_an_order_for_an_agent_that_lives_elsewhere_is_an_error(place: AgentSite):
    worker = place.agent("e-1")
    for name in ("pause", "resume", "drain", "end", "flush", "scale", "restart", "kill", "status"):
        assert place.order(worker, name, id="e-2", delta=1)["error"] == ErrorCode.AGENT_UNAVAILABLE, name
    assert place.order(worker, "start", spec={"id": "e-3", "type": "echo"})["error"] == ErrorCode.START_FAILED
    assert worker.alive
