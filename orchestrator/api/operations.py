"""How the service does: health, metrics, logs, settings; law: health answers whatever is broken, and nothing here shows a secret."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response
from fastapi.responses import PlainTextResponse

from orchestrator.api.bodies import Check, ConfigView, HealthView, LogLines
from orchestrator.api.guard import router as guarded
from orchestrator.api.metrics import CONTENT_TYPE
from orchestrator.api.services import Here
from orchestrator.logs import LINES_MAX, LINES_SHOWN, latest
from schemas.agents import ID_PATTERN
from schemas.settings import masked

router = guarded(tags=["operations"])


@router.get("/health")
def health(here: Here) -> HealthView:
    """Whether the service lives, and what it misses. It answers 200 as long as it lives; `status` says whether anything is broken."""
    found = {probe.name: probe.verdict() for probe in (here.readiness.store, here.readiness.broker)}
    checks = {name: Check(ok=verdict.ok, problem=verdict.problem) for name, verdict in found.items()}
    status = "ok" if all(check.ok for check in checks.values()) else "degraded"
    return HealthView(status=status, name=here.settings.api_name, version=here.version, checks=checks)


@router.get("/metrics", response_class=PlainTextResponse)
def metrics(here: Here) -> Response:
    """Counts of everything, in the text format of Prometheus."""
    return Response(here.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/api/v1/logs")
def logs(
    here: Here,
    *,
    agent_id: Annotated[str | None, Query(pattern=ID_PATTERN, description="of one agent")] = None,
    lines: Annotated[int, Query(ge=1, le=LINES_MAX)] = LINES_SHOWN,
) -> LogLines:
    """The last lines of the agents' logs on this machine, all together in the order of their times."""
    return LogLines(lines=latest(here.settings, agent_id, lines))


@router.get("/api/v1/config")
def config(here: Here) -> ConfigView:
    """The settings of this process, without their secrets."""
    values = here.settings.model_dump()
    return ConfigView(settings={name: _plain(masked(value)) for name, value in values.items()})


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)
