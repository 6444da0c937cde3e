"""The development stack: it starts ready, starts again what dies, stops in order, and does not outlive its master."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest

from orchestrator.client import Client
from orchestrator.clock import SYSTEM
from orchestrator.dev import Plan, Stack
from orchestrator.errors import DatabaseNotMigrated, ServerUnavailable
from orchestrator.servers import ask_tcp, free_ports
from orchestrator.settings import load
from orchestrator.store import Store, workers

ROOT = Path(__file__).resolve().parents[2]
WAIT_MAX_S = 30.0
FLOWS = """
from orchestrator import activity, workflow

@activity.defn
def shout(word: str) -> str:
    return word.upper()

@workflow.defn
class Shout:
    @workflow.run
    async def run(self, word: str) -> str:
        return await workflow.execute_activity(shout, word, start_to_close_timeout=10)
"""


@pytest.fixture
def folder(open_home, monkeypatch):
    """A project with workflows in it, as the working directory; its path is short, as sockets want it."""
    (open_home / "flows.py").write_text(FLOWS)
    monkeypatch.chdir(open_home)
    return open_home


@pytest.fixture
def settings(folder):
    return load({}, home=folder / "home", include=("flows",))


def until(true, what: str, tend=lambda: None):
    deadline = SYSTEM.monotonic() + WAIT_MAX_S
    while not (found := true()):
        assert SYSTEM.monotonic() < deadline, f"{what} did not happen within {WAIT_MAX_S} s"
        tend()
        threading.Event().wait(0.05)
    return found


def alive(stack: Stack) -> set[str]:
    with stack.store.transaction(readonly=True) as tx:
        return {row.identity.worker_id for row in workers.list_workers(tx) if row.identity.pid == stack.worker(1).pid}


def test_a_stack_works_when_it_is_ready_and_what_dies_starts_again(settings):
    said: list[tuple[str, str]] = []
    with Stack(settings, Plan(workers=1), tell=lambda who, line: said.append((who, line))) as stack, Client(settings=settings) as client:
        assert client.start_workflow("Shout", "hello").result(timeout=WAIT_MAX_S) == "HELLO"
        first = stack.worker(1).pid
        stack.worker(1).kill()
        assert stack.broker is not None
        stack.broker.kill()
        stack.tend()
        handle = client.start_workflow("Shout", "again")
        until(lambda: stack.worker(1).pid != first and alive(stack), "a new worker", stack.tend)
        assert handle.result(timeout=WAIT_MAX_S) == "AGAIN"
        processes = [psutil.Process(process.pid) for process in stack.processes if process.pid]
    told = [line for who, line in said if who == "dev"]
    assert any("worker-1 was ended by SIGKILL; it starts again in 0.5 s" in line for line in told)
    assert any("broker has died" in line for line in told)
    assert len(processes) == 2
    assert not any(process.is_running() for process in processes)
    with Store.open(settings.database_url).transaction(readonly=True) as tx:
        assert workers.list_workers(tx) == [], "a worker that leaves in order strikes itself off"


def test_a_process_that_cannot_start_is_an_error_with_its_last_words(settings):
    broken = settings.model_copy(update={"include": ("no_such_module",)})
    with pytest.raises(ServerUnavailable, match=r"worker-1 ended with status 1 at its start:\n.*'no_such_module' of ORCHESTRATOR_INCLUDE"):
        Stack(broken, Plan(beat=False)).start()


def test_a_database_of_yours_is_not_migrated_behind_your_back(settings, folder):
    yours = settings.model_copy(update={"database_url": f"sqlite:///{folder / 'yours.db'}"})
    with pytest.raises(DatabaseNotMigrated):
        Stack(yours).start()


class Terminal:
    """`orchestrator dev` in a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
        argv = [sys.executable, "-m", "orchestrator.cli", "dev", "--include", "flows", "--no-flower", "--workers", "2", "-Q", "more"]
        (self.api_port,) = free_ports(1)
        environment |= {"PYTHONPATH": str(ROOT), "ORCHESTRATOR_API_PORT": str(self.api_port)}
        self.process = subprocess.Popen(argv, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line)

    def said(self, pattern: str) -> bool:
        return any(re.search(pattern, line) for line in list(self.lines))

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def terminal(folder):
    terminal = Terminal(folder)
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    terminal.reader.join(WAIT_MAX_S)  # until no child has the pipe any more


def test_one_ctrl_c_stops_everything_in_order(terminal):
    until(lambda: terminal.said(r"^dev +ready: 2 worker\(s\) on default, more"), "ready")
    family = terminal.family()
    assert len(family) == 5, "valkey, two workers, beat, the API"
    assert terminal.said(f"management API: http://127.0.0.1:{terminal.api_port}")
    until(lambda: ask_tcp(terminal.api_port, b"GET /health HTTP/1.0\r\n\r\n") is not None, "the API answers")
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.wait(WAIT_MAX_S) == 0, "".join(terminal.lines)
    assert not any(process.is_running() for process in family)
    assert terminal.said("stopping: workers finish")
    assert not terminal.said("Traceback|is killed")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children of their parent's death on Linux only")
def test_nothing_outlives_a_killed_master(terminal):
    until(lambda: terminal.said(r"^dev +ready"), "ready")
    family = terminal.family()
    terminal.process.kill()
    until(
        lambda: not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family), "the end of all children"
    )
