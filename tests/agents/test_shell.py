"""The shell agent: what is on the list runs within its limits, and nothing else runs or stays."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.clock import SYSTEM
from orchestrator.errors import InvalidDefinition
from schemas.agents import AgentSpec
from schemas.messages import ErrorCode, WorkRequest, WorkResult
from workers.hosted import Hosted
from workers.packages.shell import Shell

PYTHON = [sys.executable, "-c"]


@pytest.fixture
def shell(hosted, work, tmp_path):
    """Run a command of a list that has only this one."""

    def run(code: str = "", /, asked: dict[str, Any] | None = None, cancelled: Any = lambda: False, **limits: Any) -> WorkResult:
        listed = {"it": {"argv": [*PYTHON, code], "cwd": str(tmp_path), **limits}}
        host: Hosted = hosted(Shell, metadata={"commands": listed})
        request = WorkRequest(work_type="run", parameters={"command": "it", **(asked or {})})
        return host.execute(work("shell"), request, cancelled=cancelled)

    return run


def left(marker: str) -> list[int]:
    """Processes that have this word in their arguments."""
    return [process.pid for process in psutil.process_iter(["cmdline"]) if any(marker in part for part in process.info["cmdline"] or ())]


def test_a_command_of_the_list_runs_and_its_output_is_the_result(shell):
    result = shell("import sys; print('out'); print('err', file=sys.stderr)")
    assert result.status == "success"
    assert {**result.output, "seconds": 0} == {"exit_code": 0, "stdout": "out\n", "stderr": "err\n", "seconds": 0}


def test_a_command_that_fails_says_how(shell):
    result = shell("import sys; print('partly'); sys.exit(3)")
    assert (result.exit_code, result.error.message, result.error.details["stdout"]) == (3, "command 'it' ended with 3", "partly\n")
    assert "ended with -11" in shell("import os; os.kill(os.getpid(), 11)").error.message


@pytest.mark.parametrize(
    "asked, reason",
    [
        ({"command": "rm"}, "is not in the list; there are it"),
        ({"arguments": ["x"]}, "takes at most 0 arguments"),
        ({"stdin": "x"}, "takes no input"),
        ({"argv": ["sh"]}, "argv: Extra inputs"),
        ({"env": {"A": "b"}}, "env: Extra inputs"),
        ({"arguments": "x"}, "arguments: Input should be a valid tuple"),
    ],
)
def test_what_is_not_allowed_is_refused_and_nothing_runs(shell, tmp_path, asked, reason):
    result = shell(f"open({str(tmp_path / 'ran')!r}, 'w')", asked)
    assert (result.error.code, result.exit_code) == (ErrorCode.INVALID_REQUEST, 1)
    assert reason in result.error.message
    assert not (tmp_path / "ran").exists()


def test_an_argument_must_match_as_a_whole_and_no_shell_reads_it(shell):
    code = "import sys; print(sys.argv[1:])"
    assert shell(code, {"arguments": ["$(id)", "a b", "*"]}, arguments=".*").output["stdout"] == "['$(id)', 'a b', '*']\n"
    for argument in ("../etc", "a;b", "a\nb", "a\0b"):
        assert "does not match" in shell(code, {"arguments": [argument]}, arguments="[a-z]+").error.message
    assert "at most 1" in shell(code, {"arguments": ["a", "b"]}, arguments="[a-z]+", arguments_max=1).error.message


def test_a_command_has_the_environment_and_the_folder_that_the_list_gives_it(shell, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "not for it")
    found = shell("import os; print(os.getcwd(), sorted(os.environ))", env={"REGION": "north"}).output["stdout"]
    assert str(tmp_path) in found
    assert "REGION" in found
    assert "SECRET" not in found
    assert "no folder" in shell("", cwd=str(tmp_path / "nowhere")).error.message


def test_a_command_reads_what_it_is_given(shell):
    big = "x" * 500_000
    assert shell("import sys; print(len(sys.stdin.read()))", {"stdin": big}, stdin=True).output["stdout"] == "500000\n"


def test_a_program_that_is_not_there_is_told(hosted, work):
    host = hosted(Shell, metadata={"commands": {"it": {"argv": ["/no/such/program"]}}})
    result = host.execute(work("shell"), WorkRequest(work_type="run", parameters={"command": "it"}))
    assert "could not be started: No such file or directory" in result.error.message


def test_a_command_over_its_time_is_ended_with_all_that_it_has_started(shell):
    marker = f"marker-{SYSTEM.fresh_id()}"
    started = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)', {marker!r}], start_new_session=True)"
    result = shell(f"{started}; print('begun', flush=True); time.sleep(300)", timeout_s=1.5)
    assert "took longer than 1.5 s" in result.error.message
    assert result.error.details["stdout"] == "begun\n"
    assert left(marker) == []


def test_a_command_that_ignores_sigterm_is_killed(shell):
    began = SYSTEM.monotonic()
    result = shell("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)", timeout_s=1.0)
    assert "took longer than 1 s" in result.error.message
    assert SYSTEM.monotonic() - began < 10


def test_a_command_that_floods_is_ended_and_what_fits_is_kept(shell):
    result = shell("while True: print('x' * 1000)", output_bytes_max=10_000, timeout_s=60)
    assert "wrote more than 10,000 bytes" in result.error.message
    assert len(result.error.details["stdout"]) == 10_000
    assert result.error.details["seconds"] < 30


def test_a_work_that_is_cancelled_ends_its_command(shell, tmp_path):
    marker = f"marker-{SYSTEM.fresh_id()}"
    begun = tmp_path / "begun"
    code = f"import time; open({str(begun)!r}, 'w'); time.sleep(300)  # {marker}"
    result = shell(code, cancelled=begun.exists)
    assert "it was cancelled" in result.error.message
    deadline = SYSTEM.monotonic() + 20
    while left(marker):
        assert SYSTEM.monotonic() < deadline, "the command goes on"
        SYSTEM.sleep(0.05)


def test_the_list_is_told_and_a_mistake_in_it_is_named(hosted, work):
    host = hosted(Shell, metadata={"commands": {"up": {"argv": ["uptime"], "description": "how long"}}})
    assert host.execute(work("shell"), WorkRequest(work_type="list")).output == {"up": {"description": "how long", "arguments": ""}}
    for listed, place in (
        ({"it": {"argv": []}}, "commands.it.argv"),
        ({"it": {"argv": ["a"], "arguments": "["}}, "commands.it.arguments"),
        ({"it": {"argv": ["a"], "timout_s": 1}}, "commands.it.timout_s"),
        ([], "must be a table"),
    ):
        with pytest.raises(InvalidDefinition, match=place):
            Shell(AgentSpec(id="s", type="shell", metadata={"commands": listed}))


def test_without_a_list_it_can_do_nothing(hosted, work):
    result = hosted(Shell).execute(work("shell"), WorkRequest(work_type="run", parameters={"command": "sh"}))
    assert "there are none" in result.error.message


def test_the_example_that_comes_with_it_works(hosted, work):
    import tomllib

    spec = tomllib.loads(Path("workers/packages/shell/agent.toml").read_text())
    host = hosted(Shell, metadata=spec["metadata"])
    result = host.execute(work("shell"), WorkRequest(work_type="run", parameters={"command": "disk", "arguments": ["/"]}))
    assert result.status == "success"
