"""One server process; law: what it logs is JSON, and its settings are those of the environment."""

from __future__ import annotations

from fastapi import FastAPI

from orchestrator.api import create_app
from orchestrator.settings import current
from orchestrator.telemetry import log_json


def application() -> FastAPI:
    """What uvicorn makes in each of its processes."""
    settings = current()
    log_json(settings.api_log_level, service=settings.api_name)
    return create_app(settings)
