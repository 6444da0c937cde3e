"""`orchestrator config`: what holds here and where it comes from, what is wrong with a file; secrets are stars everywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SECRET = "rosebud-17"


@pytest.fixture
def shell(tmp_path):
    def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
        argv = [sys.executable, "-m", "orchestrator.cli", "config", *map(str, words)]
        env = clean | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | variables
        return subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False)

    return run


@pytest.mark.req("S2-30")
def test_every_setting_is_shown_with_where_it_comes_from(shell, tmp_path):
    (tmp_path / "fleet.yaml").write_text(
        "manager:\n  discovery_interval_s: 60\nruntime: {drain_timeout_s: 12}\nagents: [{id: a, port: 8100}]\n"
    )
    done = shell("show", "--json", ORCHESTRATOR_API_PORT="8123", DRAIN_TIMEOUT_SECONDS="5")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["files"] == ["fleet.yaml"]
    assert shown["settings"]["manager.discovery_interval_s"] == {"value": 60.0, "from": "fleet.yaml:2"}
    assert shown["settings"]["manager.heartbeat_timeout_s"] == {"value": 60.0, "from": "default"}
    assert shown["settings"]["runtime.drain_timeout_s"] == {"value": 12.0, "from": "fleet.yaml:3"}
    assert shown["settings"]["runtime.drain_override_s"] == {"value": 5.0, "from": "DRAIN_TIMEOUT_SECONDS"}
    assert shown["settings"]["api.port"] == {"value": 8123, "from": "ORCHESTRATOR_API_PORT"}
    assert [(agent["id"], agent["port"], agent["from"]) for agent in shown["agents"] if agent["discovery"] == "config"] == [
        ("a", 8100, "fleet.yaml:4")
    ]


def test_a_part_is_shown_as_a_table(shell):
    shown = shell("show", "cleanup").stdout.split()
    assert shown == ["key", "value", "from", "manager.cleanup_interval_s", "3600.0", "default"]


@pytest.mark.parametrize("words", [["show"], ["show", "--json"], ["check"], ["check", "--json"]])
def test_no_command_shows_a_secret(shell, tmp_path, words):
    (tmp_path / "fleet.yaml").write_text(
        f"auth: {{manager_token: {SECRET}, jwt_secret: {SECRET}}}\n"
        f"bus: {{broker_url: 'redis://:{SECRET}@broker/0'}}\n"
        f"agents: [{{id: a, kind: child, executable: x, args: ['--password={SECRET}', 'redis://me:{SECRET}@h/'], metadata: {{api_token: {SECRET}}}}}]\n"
        f"nats: {{url: 'nats://x', password: {SECRET}}}\n"
    )
    done = shell(*words, ORCHESTRATOR_DATABASE_URL=f"postgresql://me:{SECRET}@db/x", MANAGER_TOKEN=SECRET)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.req("S2-16")
def test_check_names_what_is_replaced(shell):
    done = shell("check", DEPLOY / "management_api.example.yaml")
    assert done.returncode == 0
    assert "nats.url becomes bus.broker_url = redis://localhost:6379/0" in done.stdout


def test_check_tells_all_that_is_wrong_and_fails(shell, tmp_path):
    (tmp_path / "fleet.yaml").write_text(
        "api: {prot: 1}\nruntime: {drain_timeout_s: soon}\nagents:\n  - {id: a, kind: child}\n  - {id: b}\n"
    )
    done = shell("check", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["wrong"] == [
        "fleet.yaml:1: api.prot is no setting; did you mean 'port'?",
        "fleet.yaml:2: runtime.drain_timeout_s must be a number, but is 'soon'",
        "fleet.yaml:4: agent 'a' is a child, so it needs an executable",
    ]
    assert (told["ok"], told["agents"]) == (False, ["b"])
    refused = shell("show")
    assert refused.returncode == 1
    assert (
        refused.stderr
        == "error: fleet.yaml:1: api.prot is no setting; did you mean 'port'? (1 more: `orchestrator config check` shows them)\n"
    )


def test_check_tells_what_contradicts_itself(shell, tmp_path):
    (tmp_path / "other.yaml").write_text("manager: {registry_ttl_s: 100}")
    assert "an agent leaves the registry before it counts as inactive" in shell("check", "other.yaml").stdout
    assert shell("check").stdout == "ok      no configuration file\n"


def test_check_warns_of_programs_that_are_not_here(shell, tmp_path):
    (tmp_path / "fleet.yaml").write_text(
        "agents: [{id: a, executable: no-such-program}, {id: b, executable: python, args: [nowhere.py]}, {id: c, executable: sh}]"
    )
    done = shell("check")
    assert done.returncode == 0
    assert "agent 'a': the program 'no-such-program' is not on this machine" in done.stdout
    assert "agent 'b': there is no 'nowhere.py' here" in done.stdout
    assert "'c'" not in done.stdout
