"""What the documents show works: every Python block runs, every `celery -A orchestrator` line starts, every link leads somewhere.

A Python block that begins with `# name.py` becomes that file; all files of one document are in one folder, where a stack runs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.dev import Plan, Stack
from orchestrator.errors import DatabaseNotMigrated, DatabaseUnavailable
from orchestrator.servers import Valkey, ask_tcp, free_ports
from orchestrator.settings import environment, load
from orchestrator.store import Store, health, workers
from schemas.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
READY_MAX_S = 30
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"# (\w+\.py)\n")


def blocks(document: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(document.read_text()) if kind == language]


def celery_lines() -> list[str]:
    lines = [line for document in DOCUMENTS for block in blocks(document, "console") for line in block.splitlines()]
    return sorted({line.removeprefix("$ ").partition("  #")[0] for line in lines if line.startswith("$ celery -A orchestrator ")})


@pytest.fixture
def folder(open_home, monkeypatch):
    monkeypatch.chdir(open_home)
    return open_home


def test_the_documents_show_something():
    assert len(celery_lines()) == 3
    assert len(blocks(ROOT / "README.md", "python")) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("document", [document for document in DOCUMENTS if blocks(document, "python")], ids=lambda document: document.name)
def test_python_blocks_run_as_they_stand(document, folder):
    files = []
    for text in blocks(document, "python"):
        named = NAME.match(text)
        assert named, f"a block of {document.name} has no `# name.py` in its first line: {text[:60]!r}"
        (folder / named[1]).write_text(text)
        files.append(named[1])
    modules = tuple(name.removesuffix(".py") for name in files if "workflow.defn" in (folder / name).read_text())
    settings = load({}, home=folder / "home", include=modules)
    with Stack(settings, Plan()):
        for name in files:
            done = subprocess.run(
                [sys.executable, name],
                cwd=folder,
                env=environment(settings) | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.fixture
def broker(folder) -> Iterator[Valkey]:
    with Valkey(folder / "home" / "valkey") as broker:
        yield broker


@pytest.mark.slow
@pytest.mark.parametrize("line", celery_lines())
def test_celery_lines_start(line, folder, broker):
    settings = load({}, home=folder / "home")
    argv = [sys.executable, "-m", *shlex.split(line)]
    (port,) = free_ports(1)
    if "flower" in argv:
        argv.append(f"--port={port}")  # the documented one may be taken on this machine
    env = environment(settings) | {"PYTHONPATH": str(ROOT)}
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(argv, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = SYSTEM.monotonic() + READY_MAX_S
        while not works(argv, settings, port):
            assert process.poll() is None, (folder / "output").read_text()
            assert SYSTEM.monotonic() < deadline, (folder / "output").read_text()
            threading.Event().wait(0.1)
        process.send_signal(signal.SIGTERM)
        process.wait(READY_MAX_S)
        assert "Traceback" not in (folder / "output").read_text()
    finally:
        process.kill()
        process.wait()


def works(argv: list[str], settings: Settings, port: int) -> bool:
    """What shows that a process does its work: its row, its lease, its port."""
    if "flower" in argv:
        return ask_tcp(port, b"GET / HTTP/1.0\r\n\r\n") is not None
    store = Store.open(settings.database_url)
    try:
        with store.transaction(readonly=True) as tx:
            return bool(workers.list_workers(tx) if "worker" in argv else health.lease(tx, "beat"))
    except (DatabaseUnavailable, DatabaseNotMigrated):
        return False  # the process has not made its file yet
    finally:
        store.dispose()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    assert [target for target in targets if "://" not in target and not (document.parent / target).exists()] == []


@pytest.mark.req("S1-45")
@pytest.mark.slow
def test_what_a_newcomer_from_elsewhere_types_works_as_it_is_written(tmp_path):
    document = ROOT / "docs" / "README-migration.md"
    lines = [line.removeprefix("$ ") for block in blocks(document, "console") for line in block.splitlines()]
    assert len(lines) >= 6
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    env = environment(load({}, home=tmp_path / "home")) | {
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for line in lines:
        done = subprocess.run(shlex.split(line), cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


@pytest.mark.req("S2-47")
def test_what_operators_must_know_is_said_and_every_setting_that_is_named_exists():
    text = (ROOT / "docs" / "OPERATIONS.md").read_text()
    parts = {
        "Requirements": ("System resources", "Network", "File system", "Security"),
        "Limitations": ("Resource limits", "Network limits", "Security limits", "Performance limits"),
        "Considerations": ("Scalability", "Reliability", "Security in operation", "Performance in operation", "Maintainability"),
    }
    for part, titles in parts.items():
        body = text.partition(f"\n## {part}\n")[2].partition("\n## ")[0]
        sections = dict(re.findall(r"### (.+)\n\n((?:.+\n)+)", body + "\n"))
        assert tuple(sections) == titles
        assert all(len(words.split()) > 20 for words in sections.values())
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)(?:=[^`]*)?`", text))
    assert len(named) > 15
    assert named <= set(Settings.model_fields), named - set(Settings.model_fields)


def test_the_example_of_the_readme_is_short():
    assert len([line for line in blocks(ROOT / "README.md", "python")[0].splitlines() if line.strip()]) <= 21


SAYS = {
    "hello": "Hello Ada\n",
    "basket": "lamp shipped\npiano came back: activity 'ship' (1) did not complete: too heavy\nshelf shipped\n",
}
"""Example -> what it prints."""


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(path.stem for path in (ROOT / "examples").glob("*.py")))
def test_the_examples_run(folder, example):
    settings = load({}, home=folder / "home", include=(example,))
    (folder / f"{example}.py").write_text((ROOT / "examples" / f"{example}.py").read_text())
    with Stack(settings, Plan()):
        env = environment(settings) | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, f"{example}.py"], cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
        )
    assert (done.stdout, done.returncode) == (SAYS[example], 0), done.stderr
