"""What is in deploy/ is in order: containers and units run commands that exist, secrets are asked for, and the script brings all of it up."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from celery.bin.celery import celery as celery_command
from click import Context

from orchestrator.cli import app
from orchestrator.servers import free_ports
from orchestrator.settings import OTHER_NAMES, load

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"] == "orchestrator"}
READY_MAX_S = 120
LEAVE_MAX_S = 90


def understood(argv: list[str]) -> None:
    """Is this a command of ours, with options that it or Celery knows?"""
    command = argv[0]
    found: Any = typer.main.get_command(app)
    rest = argv
    while hasattr(found, "commands"):  # a group: the next word is a command of it
        assert rest[0] in found.commands, rest[0]
        _, found, rest = found.resolve_command(Context(found), rest)
    celery = {"worker", "beat"} & {command} or ({"worker"} if (command, argv[1:2]) == ("agent", ["run"]) else set())
    known = {option for parameter in found.params for option in parameter.opts}
    for which in celery:
        known |= {option for parameter in celery_command.commands[which].params for option in parameter.opts}
    if command == "flower":
        known |= {"--address", "--port", "--read-only"}
    assert [word for word in rest if word.startswith("-") and word.partition("=")[0] not in known] == [], known


def environment_of(service) -> dict[str, str]:
    return {**COMPOSE["x-orchestrator"]["environment"], **service.get("environment", {})}


@pytest.mark.req("DC-32")
@pytest.mark.parametrize("name", OURS)
def test_containers_run_commands_that_exist(name):
    understood([str(word) for word in OURS[name]["command"]])


@pytest.mark.req("DC-32")
@pytest.mark.parametrize("name", SERVICES)
def test_containers_fit_together(name):
    service = SERVICES[name]
    for other, wanted in service.get("depends_on", {}).items():
        assert other in SERVICES
        assert wanted["condition"] != "service_healthy" or "healthcheck" in SERVICES[other], f"nobody can tell whether {other} is healthy"
    for volume in service.get("volumes", ()):
        assert volume.partition(":")[0] in COMPOSE["volumes"]
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:"), "nothing is open to the world unasked"


@pytest.mark.req("DC-32")
def test_every_job_has_a_container_and_a_unit():
    jobs = {tuple(str(word) for word in service["command"][:1]) for service in OURS.values()}
    assert {("worker",), ("beat",), ("api",), ("flower",), ("db",)} <= jobs
    assert {"redis", "postgres"} <= set(SERVICES)
    assert {unit.stem for unit in UNITS} == {f"orchestrator-{job}" for job in ("worker", "agents", "beat", "api", "flower")}


@pytest.mark.req("S1-35")
def test_the_environment_of_containers_is_one_of_ours_and_asks_for_its_secrets():
    for service in OURS.values():
        variables = {name: str(text) for name, text in environment_of(service).items()}
        assert all(
            text.startswith("${") and ":?" in text for name, text in variables.items() if name in {"MANAGER_TOKEN", "FLOWER_BASIC_AUTH"}
        )
        settings = load({name: text for name, text in variables.items() if name.startswith("ORCHESTRATOR_") or name in OTHER_NAMES})
        assert (settings.environment, settings.auth_mode) == ("production", "token")
    assert "FLOWER_BASIC_AUTH" in environment_of(OURS["flower"])


def test_the_image_holds_what_the_installation_needs():
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    words = {word for line in copied for word in line.split()}
    assert all((ROOT / word).exists() for word in words)
    kept = {line.removeprefix("!") for line in (DEPLOY / "Dockerfile.dockerignore").read_text().split() if line.startswith("!")}
    assert words == kept


@pytest.mark.req("DC-32")
@pytest.mark.req("S1-36")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_units_run_commands_that_exist_and_gain_no_rights(unit):
    read = configparser.ConfigParser(interpolation=None, strict=False)
    read.optionxform = str  # type: ignore[assignment, method-assign]
    read.read_string(unit.read_text())
    service = dict(read["Service"])
    assert (service["NoNewPrivileges"], service["User"]) == ("yes", "orchestrator")
    program, *argv = shlex.split(service["ExecStart"])
    assert program == "/opt/orchestrator/bin/orchestrator"
    understood(argv)
    assert "%h" not in service["ExecStart"], "to systemd that is a home folder"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd on this machine to ask")
def test_systemd_understands_the_units(tmp_path):
    for unit in (DEPLOY / "systemd").iterdir():
        (tmp_path / unit.name).write_text(unit.read_text().replace("/opt/orchestrator/bin/orchestrator", "/bin/true"))
    units = sorted(map(str, tmp_path.iterdir()))
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"}
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], env=environment, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if "orchestrator" in line] == []


def docker_composes() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode == 0


@pytest.mark.req("DC-32")
@pytest.mark.skipif(not docker_composes(), reason="the docker client of this machine has no compose")
def test_compose_understands_its_file():
    environment = {**os.environ, "MANAGER_TOKEN": "a", "POSTGRES_PASSWORD": "b", "FLOWER_BASIC_AUTH": "c:d"}
    argv = ["docker", "compose", "-f", str(DEPLOY / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_sample_of_the_environment_is_one_of_ours():
    lines = [
        line.lstrip("# ") for line in (DEPLOY / "orchestrator.env.example").read_text().splitlines() if re.match(r"^#? ?[A-Z_]+=", line)
    ]
    variables = dict(line.split("=", 1) for line in lines)
    variables.pop("FLOWER_BASIC_AUTH")
    variables.pop("ORCHESTRATOR_CONFIG")
    assert load(variables).environment == "production"


@pytest.fixture
def local(open_home) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The script, in a folder of its own."""
    api_port, flower_port = free_ports(2)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
        "API_PORT": str(api_port),
        "FLOWER_PORT": str(flower_port),
    }
    process = subprocess.Popen(
        ["sh", str(DEPLOY / "run_local.sh"), "home"],
        cwd=open_home,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    yield process, api_port
    try:
        process.terminate()
        process.wait(LEAVE_MAX_S)
    finally:
        with contextlib.suppress(ProcessLookupError):  # nothing of it stays, whatever happened
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.mark.slow
@pytest.mark.timeout(READY_MAX_S + LEAVE_MAX_S + 30)
@pytest.mark.req("DC-32")
def test_the_script_brings_everything_up_and_it_leaves_in_order(local):
    process, port = local
    line = process.stdout.readline()
    assert line.startswith(f"api: http://127.0.0.1:{port}"), line + process.stdout.read()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
        assert json.loads(answer.read())["status"] == "ok"

    process.terminate()
    assert process.wait(LEAVE_MAX_S) == 143
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
