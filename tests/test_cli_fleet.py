"""`orchestrator agent …`: the fleet in a shell; what is told is audited, what cannot be is one sentence, and the table lives while it is watched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from orchestrator.fleet import Fleet
from orchestrator.settings import load
from orchestrator.store import Store, audit
from schemas.access import AuditFilter
from schemas.agents import AgentSpec, Heartbeat
from tests.test_cli import DEAD_BROKER, ROOT, Shell


@pytest.fixture
def shell(tmp_path, sqlite_url, capsys, monkeypatch):
    return Shell(tmp_path, capsys, monkeypatch, database_url=sqlite_url, broker_url=DEAD_BROKER, remote_control_s="0.05")


@pytest.fixture
def store(sqlite_url):
    store = Store.open(sqlite_url)
    yield store
    store.dispose()


@pytest.fixture
def fleet(sqlite_url, store, tmp_path):
    class Silent:
        def ring(self, queue, *, delay_s=0.0): ...
        def send(self, activity): ...

    with Fleet(load({}, database_url=sqlite_url, home=tmp_path), store=store, bell=Silent()) as fleet:
        for id_, type_ in (("a-1", "echo"), ("a-2", "echo"), ("b", "shell")):
            fleet.ready(AgentSpec(id=id_, type=type_), node="w@test", pid=7, pid_started_at=1.0, capabilities={"echo": "1"})
        beat = Heartbeat("a-1", 0.0, 1, "running", ("r-1",), {"cpu": 0.5}, {"cpu_percent": 12.0, "rss_mb": 34.0})
        fleet.record_heartbeats([beat])
        yield fleet


def acts(store):
    with store.transaction(readonly=True) as tx:
        return [(entry.action, entry.target, entry.outcome) for entry in audit.entries(tx, AuditFilter())][::-1]


def test_agents_are_listed_as_a_table_and_as_json(shell, fleet):
    table = shell("agent", "list").stdout.splitlines()
    assert table[0].split() == ["id", "type", "kind", "status", "health", "heard", "works", "cpu", "memory", "reason"]
    assert [line.split()[:4] for line in table[1:]] == [
        ["a-1", "echo", "native", "running"],
        ["a-2", "echo", "native", "running"],
        ["b", "shell", "native", "running"],
    ]
    assert "12 %" in table[1]
    listed = shell.json("agent", "list", "--type", "echo", "--status", "running")
    assert [agent["id"] for agent in listed] == ["a-1", "a-2"]
    assert listed[0]["last_resources"] == {"cpu_percent": 12.0, "rss_mb": 34.0}


def test_without_agents_that_is_what_is_said(shell):
    assert shell("agent", "list").stdout == "no agents\n"
    assert shell.json("agent", "list") == []


def test_an_agent_is_shown_with_what_happened_to_it(shell, fleet):
    shown = shell("agent", "show", "a-1").stdout
    assert "pid 7 of w@test" in shown
    assert "ready" in shown
    facts = shell.json("agent", "show", "a-1")
    assert (facts["status"], facts["current_work"], facts["events"][-1]["trigger"]) == ("running", ["r-1"], "added")
    unknown = shell("agent", "show", "nobody")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)
    assert "'nobody'" in unknown.stderr


@pytest.mark.req("S2-42")
def test_what_is_told_is_answered_and_audited(shell, fleet, store):
    stopped = shell("agent", "stop", "a-1", "--drain", "5", "--reason", "new version")
    assert stopped.returncode == 0
    assert stopped.stdout.startswith("a-1: is stopping, drain deadline")
    assert shell("agent", "stop", "a-1").stdout.startswith("a-1: is stopping already")
    assert shell.json("agent", "restart", "a-2")["result"]["state"] == "stopping"
    wrong = shell("agent", "resume", "a-1")
    assert wrong.returncode == 1
    assert "cannot resume" in wrong.stderr
    assert acts(store) == [
        ("agent.stop", "agent:a-1", "ok"),
        ("agent.stop", "agent:a-1", "ok"),
        ("agent.restart", "agent:a-2", "ok"),
        ("agent.resume", "agent:a-1", "invalid_transition"),
    ]
    assert fleet.get("a-1").reason == "new version"


def test_a_rolling_restart_is_begun_once_and_audited_and_senseless_ones_are_refused(shell, fleet, store):
    wrong = shell("agent", "rolling-restart", "nope")
    assert (wrong.returncode, wrong.stderr) == (1, "error: there is no agent of type 'nope'; there are echo, shell\n")
    begun = shell.json("agent", "rolling-restart", "echo", "--no-wait", "--at-a-time", "2")
    assert begun["workflow_id"] == "rolling:echo"
    again = shell("agent", "rolling-restart", "echo")
    assert again.returncode == 1
    assert "rolling:echo" in again.stderr
    assert acts(store) == [
        ("agent.rolling_restart", "type:nope", "not_found"),
        ("agent.rolling_restart", "type:echo", "ok"),
        ("agent.rolling_restart", "type:echo", "workflow_exists"),
    ]


@pytest.mark.parametrize(
    "words", [("pause", "b"), ("flush", "b"), ("scale", "b", "-1"), ("scale", "b", "+2"), ("sequence", "b", "flush", "shutdown")]
)
def test_what_nobody_carries_out_has_not_happened(shell, fleet, store, words):
    done = shell("agent", *words)
    assert done.returncode == 1
    assert "nobody has carried out" in done.stderr
    (command,) = fleet.commands("b")
    assert (command.command, command.state) == (words[0], "expired")
    assert acts(store) == [(f"agent.{words[0]}", "agent:b", "rc_timeout")]
    if words[0] == "scale":
        assert command.params == {"delta": int(words[2])}


def test_a_sequence_of_other_words_is_refused(shell, fleet):
    done = shell("agent", "sequence", "b", "fly")
    assert done.returncode == 1
    assert "not of fly" in done.stderr


@pytest.mark.req("S1-27")
def test_logs_are_lines_for_people_or_json(shell, fleet, tmp_path):
    missing = shell("agent", "logs", "a-1")
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    folder = tmp_path / ".orchestrator" / "logs"
    folder.mkdir(parents=True)
    lines = [{"ts": f"2026-01-01T00:00:0{n}Z", "level": "ERROR", "message": f"line {n}"} for n in range(3)]
    (folder / "a-1.log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert shell("agent", "logs", "a-1", "-n", "1").stdout == "2026-01-01T00:00:02Z ERROR    line 2\n"
    told = [json.loads(line) for line in shell("agent", "logs", "a-1", "--json").stdout.splitlines()]
    assert [line["message"] for line in told] == ["line 0", "line 1", "line 2"]
    assert shell("agent", "logs", "nobody").returncode == 1


@pytest.fixture
def started(tmp_path, sqlite_url):
    """Starts a command that does not end by itself."""
    processes = []

    def start(*words):
        processes.append(launched(tmp_path, sqlite_url, *words))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def launched(tmp_path, sqlite_url, *words):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    environment |= {"ORCHESTRATOR_DATABASE_URL": sqlite_url, "ORCHESTRATOR_BROKER_URL": DEAD_BROKER, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-u", "-m", "orchestrator.cli", "agent", *words]
    return subprocess.Popen(argv, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process):
    """By Ctrl-C, quietly."""
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert complaint == ""
    return process.returncode


def test_a_watched_table_goes_on_until_it_is_interrupted(started, fleet):
    process = started("list", "--watch", "--json")
    assert [agent["status"] for agent in json.loads(process.stdout.readline())] == ["running"] * 3
    fleet.ready(AgentSpec(id="c", type="echo"), node="w@test", pid=8, pid_started_at=1.0, capabilities={})
    while len(json.loads(process.stdout.readline())) < 4:
        assert process.poll() is None
    assert ended(process) == 0


def test_a_followed_log_goes_on_in_the_next_file(tmp_path, started, fleet):
    folder = tmp_path / ".orchestrator" / "logs"
    folder.mkdir(parents=True)
    file = folder / "a-1.log"
    file.write_text('{"message": "before"}\n')
    process = started("logs", "a-1", "--follow", "--json")
    assert json.loads(process.stdout.readline())["message"] == "before"
    with file.open("a") as opened:
        opened.write('{"message": "now"}\n{"message": "half')
        opened.flush()
        assert json.loads(process.stdout.readline())["message"] == "now"
        opened.write(' and half"}\n')
    assert json.loads(process.stdout.readline())["message"] == "half and half"
    file.rename(folder / "a-1.log.1")
    file.write_text('{"message": "new file"}\n')
    assert json.loads(process.stdout.readline())["message"] == "new file"
    assert ended(process) == 0
