"""What the documents show works: every Python block runs, every `celery -A orchestrator` line starts, every link leads somewhere.

A Python block that begins with `# name.py` becomes that file; all files of one document are in one folder, where a stack runs.
"""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.dev import Plan, Stack
from orchestrator.servers import Valkey, free_ports
from orchestrator.settings import environment, load

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
READY_MAX_S = 30
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = re.compile(r"# (\w+\.py)\n")
READY = {"worker": r"\bready\.", "beat": "this beat is active", "flower": "Visit me at"}


def blocks(document: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(document.read_text()) if kind == language]


def celery_lines() -> list[str]:
    lines = [line for document in DOCUMENTS for block in blocks(document, "console") for line in block.splitlines()]
    return sorted({line.removeprefix("$ ").partition("  #")[0] for line in lines if line.startswith("$ celery -A orchestrator ")})


@pytest.fixture
def folder(open_home, monkeypatch) -> Path:
    monkeypatch.chdir(open_home)
    return open_home


def test_the_documents_show_something():
    assert len(celery_lines()) == 3
    assert len(blocks(ROOT / "README.md", "python")) >= 4


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
                [sys.executable, name], cwd=folder, env=environment(settings) | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.fixture
def broker(folder) -> Iterator[Valkey]:
    with Valkey(folder / "home" / "valkey") as broker:
        yield broker


@pytest.mark.parametrize("line", celery_lines())
def test_celery_lines_start(line, folder, broker):
    argv = [sys.executable, "-m", *shlex.split(line)]
    if "flower" in argv:
        argv.append(f"--port={free_ports(1)[0]}")  # the documented one may be taken on this machine
    env = environment(load({}, home=folder / "home")) | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(argv, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    watchdog = threading.Timer(READY_MAX_S, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        said: list[str] = []
        for text in process.stdout:
            said.append(text)
            if re.search(READY[next(word for word in READY if word in argv)], text):
                break
        else:
            pytest.fail(f"{line} ended before it was ready:\n{''.join(said)}")
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(READY_MAX_S) == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document):
    targets = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    assert [target for target in targets if "://" not in target and not (document.parent / target).exists()] == []


def test_the_example_of_the_readme_is_short():
    assert len([line for line in blocks(ROOT / "README.md", "python")[0].splitlines() if line.strip()]) <= 21


def test_the_examples_run(folder):
    settings = load({}, home=folder / "home", include=("hello",))
    (folder / "hello.py").write_text((ROOT / "examples" / "hello.py").read_text())
    with Stack(settings, Plan()):
        env = environment(settings) | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "hello.py"], cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("Hello Ada\n", 0), done.stderr
