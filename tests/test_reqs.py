"""The checklist holds: every row that must have a test has one, and the fast profile is fast because it leaves out what is slow."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections import Counter
from pathlib import Path

import pytest

from tests.reqs import LATER, rows, unproven

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("pyproject.toml", "orchestrator", "workers", "beat", "schemas", "deploy", "tests")
HEAVY = ("torch", "faiss", "sentence-transformers", "transformers", "tensorflow", "numpy", "pandas")
OF_US = ("orchestrator", "workers", "beat", "schemas")


def named() -> Counter[str]:
    """Row -> how many marks name it, read from the files: whatever part of the tests runs just now."""
    found: Counter[str] = Counter()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.req":
                found.update(str(ast.literal_eval(argument)) for argument in node.args)
    return found


def test_every_row_that_must_hold_has_a_test_that_names_it():
    found = named()
    assert unproven(rows(), found) == []
    assert unproven(rows(), {**found, "S0-18": 0}) == ["S0-18"], "and this would tell"
    assert not [row for row in found if row.partition("-")[0] in LATER], "a part that has tests is not for later"


@pytest.mark.slow
def test_the_list_of_requirements_is_printed_and_says_that_nothing_is_owed():
    listed = subprocess.run([str(ROOT / "dev"), "test", "--reqs"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert listed.returncode == 0, listed.stdout[-2000:] + listed.stderr
    assert "S0: 30 of 30 [M] rows have tests" in listed.stdout


@pytest.mark.req("S1-42")
def test_the_fast_profile_leaves_out_what_is_slow_and_needs_neither_docker_nor_heavy_packages(monkeypatch):
    paths = ["tests/cluster/test_containers.py", "tests/core/test_patience.py"]
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    done = subprocess.run(argv, env={**os.environ, "TEST_PROFILE": "fast"}, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert "skipped" in done.stdout.splitlines()[-1]
    assert "passed" in done.stdout.splitlines()[-1]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    assert not [package for package in wanted if package.lower().startswith(HEAVY)]


@pytest.mark.req("DC-01")
def test_the_parts_of_the_project_lie_at_its_top():
    assert all((ROOT / part).exists() for part in PARTS)


@pytest.mark.slow
@pytest.mark.req("DC-01")
def test_what_is_installed_can_be_imported_without_the_checkout(tmp_path):
    """Built and installed into an environment of its own; what it stands on is borrowed from ours, which has it already."""
    venv.create(tmp_path / "clean", with_pip=False)
    python = tmp_path / "clean" / "bin" / "python"
    target = next((tmp_path / "clean").glob("lib/python*/site-packages"))
    install = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--target", str(target), str(ROOT)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    (target / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    look = f"import {', '.join(OF_US)}; print(*(m.__file__ for m in ({', '.join(OF_US)})), sep='\\n')"
    done = subprocess.run([python, "-c", look], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert all(str(target) in file for file in done.stdout.split()), done.stdout
    assert (target / "orchestrator" / "store" / "migrations" / "versions").is_dir()


@pytest.mark.req("S3-27", "S3-28")
def test_types_and_style_are_checked_with_every_change_and_a_deprecated_call_is_an_error():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = " ".join([*project["project"]["dependencies"], *project["project"]["optional-dependencies"]["dev"]])
    assert all(name in wanted for name in ("psutil", "types-psutil", "mypy", "ruff"))
    assert project["tool"]["mypy"]["strict"] is True
    assert project["tool"]["pytest"]["ini_options"]["filterwarnings"][0] == "error"
    assert "./dev lint" in (ROOT / ".ci" / "run").read_text()
    for folder in OF_US:
        assert not [path for path in (ROOT / folder).rglob("*.py") if "utcnow(" in path.read_text(encoding="utf-8")]
