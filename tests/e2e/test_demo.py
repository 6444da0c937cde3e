"""The demo on a small folder: it kills, wipes, recovers, compares, and leaves nothing behind."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.demo import files_of, standard_library
from orchestrator.demo_workflows import FILES_MAX, facts_of, report_of, source_files

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60
FLEET_DEADLINE_S = 300  # two Celery workers start, twice


@pytest.fixture
def folder(tmp_path):
    """Fourteen files: good, empty, broken, in a subfolder, and some that are not to be looked at."""
    code = tmp_path / "code"
    (code / "inner").mkdir(parents=True)
    (code / "site-packages").mkdir()
    for number in range(9):
        (code / f"good_{number}.py").write_text(
            "import os\nfrom json import loads\ndef f():\n    def g(): ...\n    return g\n" * (number + 1)
        )
    (code / "inner" / "empty.py").write_text("")
    (code / "broken.py").write_text("def (:\n")
    (code / "null.py").write_bytes(b"x = 1\0\n")
    (code / "latin.py").write_bytes(b'# coding: latin-1\nx = "\xe9"\n')
    (code / "no_utf8.py").write_bytes(b'x = "\xe9"\n')
    (code / "dangling.py").symlink_to("nothing")
    os.mkfifo(code / "pipe.py")
    (code / "loop").symlink_to(".")
    (code / "notes.txt").write_text("not Python")
    (code / "site-packages" / "theirs.py").write_text("x = 1")
    return code


@pytest.fixture
def temporary(tmp_path) -> Iterator[Path]:
    path = Path(f"/tmp/orch-t{os.getpid()}")  # short: a socket lives below
    path.mkdir()
    yield path
    path.rmdir()  # fails unless the demo cleaned up


def demo(*words: str, temporary: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(temporary)}
    argv = [sys.executable, "-m", "orchestrator.cli", "demo", *words]
    return subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def left_behind(temporary: Path) -> list[str]:
    """Processes that work with files of this demo."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = [*(process.info["cmdline"] or ()), *(process.info["environ"] or {}).values()]
        if process.pid != os.getpid() and any(str(temporary) in word for word in words):
            found.append(" ".join(process.info["cmdline"] or ()))
    return found


def test_nothing_is_lost_and_one_line_of_json_says_so(folder, temporary):
    process = demo(str(folder), "--json", temporary=temporary)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    assert out.count("\n") == 1
    result = json.loads(out)
    assert result.keys() == {"ok", "files", "lost", "executed_twice", "recovered_s", "workflow_id"}
    assert (result["ok"], result["files"], result["lost"]) == (True, 14, 0)
    assert 0 < result["recovered_s"] < 15
    assert left_behind(temporary) == []


def test_an_interrupted_demo_leaves_nothing_behind(folder, temporary):
    process = demo(str(folder), temporary=temporary)
    assert process.stdout is not None
    assert "will be killed" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert left_behind(temporary) == []


@pytest.mark.parametrize(
    "name, sentence", [("nothing", "does not exist"), ("code/good_1.py", "is not a folder"), ("bare", "no Python files")]
)
def test_a_folder_that_cannot_be_surveyed_is_one_sentence(folder, tmp_path, temporary, name, sentence):
    (tmp_path / "bare").mkdir()
    process = demo(str(tmp_path / name), "--json", temporary=temporary)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 1
    assert out == ""
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1


def test_a_broken_file_is_a_finding(folder):
    files = source_files(folder)
    assert len(files) == 14
    report = report_of(facts_of(folder, path) for path in reversed(files))
    assert [path for path, _ in report.broken] == ["broken.py", "no_utf8.py", "null.py"]
    assert all(reason and "\n" not in reason for _, reason in report.broken)
    assert facts_of(folder, "gone.py").broken == "No such file or directory"
    assert report.paths == tuple(files)
    assert report.functions == 2 * 45
    assert report.imports == (("json", 9), ("os", 9))
    assert report.longest == "good_8.py: f"


def test_the_default_is_all_of_the_standard_library():
    library = standard_library()
    packages = [path for path in library.iterdir() if path.is_dir() and path.name not in {"site-packages", "dist-packages", "__pycache__"}]
    all_of_it = [*library.glob("*.py"), *(path for package in packages for path in package.rglob("*.py"))]
    assert files_of(library) == sorted(str(path.relative_to(library)) for path in all_of_it)
    assert len(all_of_it) < FILES_MAX


def test_parsing_leaves_warnings_and_the_collector_as_they_were(folder):
    (folder / "warns.py").write_text("'\\d' is 1\n")
    before = list(warnings.filters)
    assert facts_of(folder, "warns.py").lines == 1
    assert facts_of(folder, "broken.py").broken
    assert gc.isenabled()
    assert warnings.filters == before


@pytest.mark.slow
@pytest.mark.timeout(FLEET_DEADLINE_S + 10)
@pytest.mark.req("S1-01", "S1-40")
def test_of_three_kinds_of_agents_each_survives_its_death_and_nothing_is_lost(temporary):
    process = demo("fleet", "--seconds", "12", "--json", temporary=temporary)
    out, err = process.communicate(timeout=FLEET_DEADLINE_S)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert (result["ok"], result["lost"]) == (True, 0)
    assert {row["kind"] for row in result["agents"]} == {"native", "child", "http"}
    assert all(row["sent"] == row["done"] > 0 and not row["wrong"] for row in result["agents"] if row["kind"] != "child")
    assert all(row["recover_s"] is not None for row in result["agents"])
    assert left_behind(temporary) == []
