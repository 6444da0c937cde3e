"""What is started for an agent, and in which environment; law: an argument list that no shell sees, and no secret that is not meant for it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from orchestrator.core.patience import drain_s
from orchestrator.errors import FleetError
from orchestrator.settings import environment
from schemas.agents import AgentKind, AgentSpec
from schemas.messages import ErrorCode
from schemas.settings import Settings

SECRET = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|PRIVATE_?KEY|API_?KEY|ACCESS_?KEY|_DSN$", re.IGNORECASE)
"""Names of variables that agents do not get, unless the settings name them."""
WITH_PASSWORD = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
"""A URL that has a password in it."""
OURS = "ORCHESTRATOR_"
"""How our own settings begin; among them are URLs with passwords."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One process to be."""

    agent_id: str
    kind: AgentKind
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path | None = None


def launch_of(
    spec: AgentSpec,
    settings: Settings,
    *,
    argv: tuple[str, ...] | None = None,
    extra: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Launch:
    """What to start for this agent; `argv` and `extra` variables win over what its spec says. Raises FleetError if there is nothing to start."""
    return Launch(spec.id, spec.kind, argv or _argv(spec), _environment(spec, settings) | dict(extra or {}), cwd)


def _argv(spec: AgentSpec) -> tuple[str, ...]:
    if spec.kind is AgentKind.NATIVE:
        return (sys.executable, "-m", "orchestrator", "agent", "run", spec.type, "--id", spec.id)
    if spec.executable:
        program = sys.executable if spec.executable in {"python", "python3"} else spec.executable
        return (program, *spec.args)
    if spec.entry_point:
        return (sys.executable, spec.entry_point, *spec.args)
    raise FleetError(
        f"agent {spec.id!r} has neither an executable nor an entry point, so it cannot be started", code=ErrorCode.START_FAILED
    )


def _environment(spec: AgentSpec, settings: Settings) -> dict[str, str]:
    inherited = environment(settings)
    native = spec.kind is AgentKind.NATIVE  # it is one of our workers, and loads these settings
    kept = {name for name in inherited if (native and name.startswith(OURS)) or name in settings.agent_secrets}
    known = {name: text for name, text in inherited.items() if name in kept or not _hidden(name, text)}
    # A child needs no broker; what it is told about it is for compatibility, and not worth a password.
    broker_url = _without_password(settings.broker_url) if spec.kind is AgentKind.CHILD else settings.broker_url
    told = {
        "AGENT_ID": spec.id,
        "AGENT_TYPE": spec.type,
        "AGENT_NAME": spec.title,
        "AGENT_VERSION": spec.version,
        "AGENT_HEARTBEAT_INTERVAL_S": f"{spec.heartbeat_interval_s:g}",
        "BROKER_URL": broker_url,
        "NATS_URL": broker_url,
    }
    # Whoever forgets to flush its lines is heard all the same, if it is Python.
    unbuffered = {"PYTHONUNBUFFERED": "1"} if spec.kind is AgentKind.CHILD else {}
    return unbuffered | known | told | (_of_service(spec, settings) if spec.kind is AgentKind.HTTP else {})


def _of_service(spec: AgentSpec, settings: Settings) -> dict[str, str]:
    """What a service needs to be found and to know its manager; the token is meant for it."""
    return {
        "MANAGER_URL": settings.manager_url or f"http://127.0.0.1:{settings.api_port}",
        "MANAGER_TOKEN": ",".join(settings.manager_tokens),
        "DRAIN_TIMEOUT_SECONDS": f"{drain_s(spec, settings):g}",
        **({"AGENT_PORT": str(spec.port)} if spec.port else {}),
    }


def _hidden(name: str, text: str) -> bool:
    return name.startswith(OURS) or SECRET.search(name) is not None or WITH_PASSWORD.search(text) is not None


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.username}@{parts.netloc.rpartition('@')[2]}"))
