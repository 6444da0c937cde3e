"""The command line: light, helpful, one sentence for what goes wrong, JSON for machines, exit codes that scripts can use."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.cli import COMMANDS, main
from orchestrator.client import Client
from orchestrator.settings import current, load
from orchestrator.store import Store, audit, control, runs
from schemas.access import AuditFilter
from schemas.history import RunStarted
from schemas.runs import DeadLetter, NewRun

ROOT = Path(__file__).resolve().parent.parent
DEAD_BROKER = "redis://127.0.0.1:1/0"


@dataclass
class Done:
    """What a command said, and its exit code."""

    stdout: str
    stderr: str
    returncode: int


class Shell:
    """A shell in a folder of its own. Commands run in this process, as `main` runs them; `process` starts one as people do."""

    def __init__(self, folder: Path, capsys, monkeypatch, **settings: str) -> None:
        self.folder = folder
        self.settings = settings
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *words: str, **settings: str) -> Done:
        code = 0
        with self._monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("ORCHESTRATOR_")]:
                patch.delenv(name)
            for name, value in {**self.settings, **settings}.items():
                patch.setenv(f"ORCHESTRATOR_{name.upper()}", value)
            patch.setattr(sys, "argv", ["orchestrator", *words])
            patch.setattr(sys, "path", list(sys.path))
            patch.chdir(self.folder)
            current.cache_clear()
            self._capsys.readouterr()
            try:
                main()
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                current.cache_clear()
        said = self._capsys.readouterr()
        return Done(said.out, said.err, code)

    def process(self, *words: str, **settings: str) -> Done:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
        environment |= {f"ORCHESTRATOR_{name.upper()}": value for name, value in {**self.settings, **settings}.items()}
        argv = [sys.executable, "-m", "orchestrator.cli", *words]
        environment["PYTHONPATH"] = str(ROOT)
        done = subprocess.run(argv, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
        return Done(done.stdout, done.stderr, done.returncode)

    def json(self, *words: str):
        done = self(*words, "--json")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1, "one line"
        return json.loads(done.stdout)


@pytest.fixture
def shell(tmp_path, sqlite_url, capsys, monkeypatch):
    return Shell(tmp_path, capsys, monkeypatch, database_url=sqlite_url, broker_url=DEAD_BROKER)


@pytest.fixture
def bare_shell(tmp_path, empty_sqlite_url, capsys, monkeypatch):
    """Nobody has migrated its database."""
    return Shell(tmp_path, capsys, monkeypatch, database_url=empty_sqlite_url, broker_url=DEAD_BROKER)


@pytest.fixture
def store(sqlite_url):
    store = Store.open(sqlite_url)
    store.upgrade()
    yield store
    store.dispose()


@pytest.fixture
def client(store, sqlite_url, tmp_path):
    class Silent:
        def ring(self, queue, *, delay_s=0.0): ...
        def send(self, activity): ...

    with Client(settings=load({}, database_url=sqlite_url, home=tmp_path), store=store, bell=Silent()) as client:
        yield client


def test_help_is_light_and_names_every_command(shell):
    code = "import sys, orchestrator.cli; print([m for m in ('celery', 'sqlalchemy', 'pydantic', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    shown = shell.process("--help")
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 0.6
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_of_the_table_exists_and_has_help(shell, name):
    become = {"worker", "beat", "flower"}  # these replace their process by Celery's
    shown = (shell.process if name in become else shell)(name, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "Usage" in shown.stdout


def test_a_misspelt_command_is_a_usage_error_that_names_the_right_one(shell):
    done = shell("workflw", "list")
    assert done.returncode == 2
    assert "workflow" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_word_that_the_shell_completes(shell):
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli"],
        env={**os.environ, "_ORCHESTRATOR_COMPLETE": "complete_bash", "COMP_WORDS": "orchestrator workflow te", "COMP_CWORD": "2"},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.stdout.split() == ["terminate"]


def test_version_tells_what_is_installed(shell):
    assert shell.json("version")["celery"].startswith("5.")


@pytest.mark.parametrize(
    "words, settings, sentence",
    [
        (("workflow", "list"), {"database_url": "nonsense"}, "error: the database URL cannot be read"),
        (("workflow", "list"), {"databse_url": "x"}, "did you mean ORCHESTRATOR_DATABASE_URL?"),
        (("workflow", "list"), {}, "orchestrator db upgrade"),
        (("deadletter", "list"), {}, "orchestrator db upgrade"),
        (("workflow", "start", "Order", "--id", "x" * 2_000), {}, "2,000 characters"),
        (("workflow", "start", "Order", "--id", ""), {}, "workflow id"),
        (("workflow", "start", "Order", "--arg", "{oops"), {}, "begins like JSON"),
        (("workflow", "list", "stats=failed"), {}, "did you mean 'status'?"),
    ],
)
def test_what_goes_wrong_is_one_sentence(bare_shell, words, settings, sentence):
    done = bare_shell(*words, **settings)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr


def test_a_process_says_it_in_one_sentence_too(bare_shell):
    done = bare_shell.process("workflow", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_an_option_out_of_range_is_a_usage_error(shell):
    assert shell("workflow", "list", "--limit", "0").returncode == 2
    assert shell("dev", "--workers", "-1").returncode == 2


def test_the_schema_is_shown_and_upgraded(bare_shell):
    shell = bare_shell
    before = shell("db", "status")
    assert before.returncode == 1
    assert "orchestrator db upgrade" in before.stdout
    assert shell.json("db", "upgrade")["after"]
    assert "already" in shell("db", "upgrade").stdout
    assert shell.json("db", "status")["ok"] is True


def test_looking_at_a_home_that_is_not_there_does_not_make_it(tmp_path, capsys, monkeypatch):
    shell = Shell(tmp_path, capsys, monkeypatch)
    assert shell("db", "status").returncode == 1
    assert shell.process("doctor").returncode == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.req("DC-29")
def test_a_workflow_is_shown_with_its_children_and_a_child_with_its_parent(shell, store):
    parent = RunStarted("head", "run-1", type="Order", queue="default")
    child = RunStarted("limb", "run-2", type="Parcel", queue="default", parent_id="head", parent_run_id="run-1")
    with store.transaction() as tx:
        runs.start(tx, [NewRun(parent), NewRun(child)])
    shown = shell("workflow", "show", "head").stdout
    assert "child workflow" in shown
    assert "limb" in shown
    assert [one["workflow_id"] for one in shell.json("workflow", "show", "head")["children"]] == ["limb"]
    assert "head" in shell("workflow", "show", "limb").stdout


def test_a_workflow_is_started_listed_shown_and_ended(shell, store):
    started = shell.json("workflow", "start", "Order", "--id", "order-1", "--arg", '{"total": 3}', "--arg", "plain text", "-q", "orders")
    assert started["workflow_id"] == "order-1"
    shell.json("workflow", "start", "Order", "--id", "order-2", "--arg", "17")

    listed = shell.json("workflow", "list")
    assert [run["workflow_id"] for run in listed] == ["order-2", "order-1"]
    assert shell.json("workflow", "list", "queue=orders", "--count") == {"count": 1}
    assert "order-1" in shell("workflow", "list", "id^=order-", "status=running").stdout
    assert shell.json("workflow", "show", "order-1")["status"] == "running"
    assert "1 of 2" in shell("workflow", "list", "--limit", "1").stdout

    assert shell("workflow", "start", "Order", "--id", "order-1").returncode == 1, "it is open"
    assert shell.json("workflow", "signal", "order-1", "pay", "--arg", "3")["ok"]
    assert shell.json("workflow", "cancel", "order-1", "--reason", "second thoughts")["ok"]
    assert shell.json("workflow", "terminate", "order-1", "--reason", "enough")["ok"]
    assert shell("workflow", "signal", "order-1", "pay").returncode == 1
    assert "terminated" in shell("workflow", "show", "order-1").stdout
    ended = shell("workflow", "result", "order-1")
    assert ended.returncode == 1
    assert "terminated" in ended.stderr
    assert "run_terminated" in shell("workflow", "history", "order-1").stdout
    with store.transaction(readonly=True) as tx:
        acts = [(entry.action, entry.target, entry.outcome) for entry in audit.entries(tx, AuditFilter())][::-1]
    assert acts == [
        ("workflow.start", "workflow:order-1", "ok"),
        ("workflow.start", "workflow:order-2", "ok"),
        ("workflow.start", "workflow:order-1", "workflow_exists"),
        ("workflow.signal", "workflow:order-1", "ok"),
        ("workflow.cancel", "workflow:order-1", "ok"),
        ("workflow.terminate", "workflow:order-1", "ok"),
        ("workflow.signal", "workflow:order-1", "invalid_transition"),
    ]


def test_waiting_has_an_end(shell, client):
    client.start_workflow("Order", id="order-1")
    late = shell("workflow", "result", "order-1", "--timeout", "0.1")
    assert late.returncode == 1
    assert "has no result after 0.1 s" in late.stderr
    assert "no worker answered" in shell("workflow", "query", "order-1", "state", "--timeout", "0.1").stderr


def test_dead_letters_are_listed_and_dropped_only_by_name(shell, store):
    with store.transaction() as tx:
        control.add_dead_letter(tx, DeadLetter("letter-1", "activity", "it killed three workers", 0.0, "run-1", 4, {"type": "charge"}))
    assert [letter["reason"] for letter in shell.json("deadletter", "list")] == ["it killed three workers"]
    assert "it killed three workers" in shell("deadletter", "list").stdout
    assert shell("deadletter", "drop", "letter-1", "letter-2").returncode == 1, "all or nothing"
    assert len(shell.json("deadletter", "list")) == 1
    assert shell.json("deadletter", "drop", "letter-1") == {"dropped": 1}
    assert "no dead letters" in shell("deadletter", "list").stdout


def test_dead_letters_are_replayed_or_say_why_they_stay(shell, store):
    with store.transaction() as tx:
        control.add_dead_letter(tx, DeadLetter("line-1", "message", "no frame", 0.0, None, None, {"agent_id": "a", "line": "oops"}))
    done = shell("deadletter", "replay", "--all", "--json")
    assert done.returncode == 1
    assert [(letter["id"], letter["replayed"]) for letter in json.loads(done.stdout)["letters"]] == [("line-1", False)]
    unknown = shell("deadletter", "replay", "nothing")
    assert unknown.returncode == 1
    assert "there is no such letter" in unknown.stdout
    assert len(shell.json("deadletter", "list")) == 1
    for words in ((), ("line-1", "--all")):
        assert "name the letters" in shell("deadletter", "replay", *words).stderr
    shell.json("deadletter", "drop", "line-1")
    assert shell.json("deadletter", "replay", "--all")["letters"] == []


def test_the_doctor_names_what_is_missing_and_a_remedy(shell, client):
    client.start_workflow("Order", queue="orders")
    done = shell.process("doctor", "--json")
    assert done.returncode == 1
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert {name for name, finding in findings.items() if not finding["ok"]} == {"broker", "workers", "beat"}
    assert all(finding["remedy"] for finding in findings.values() if not finding["ok"])
    assert findings["clock"]["ok"]
    assert "not ok" in shell.process("doctor").stdout


def test_worker_hands_everything_to_celery(shell):
    done = shell.process("worker", "-A", "no_such_module", "-Q", "x")
    assert done.returncode == 2
    assert "no_such_module" in done.stderr
