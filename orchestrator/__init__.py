"""Durable workflows and agent fleets on Celery: the engine, its services and its commands.

Who may import whom, from the ground up; imports point down or sideways, never up, and stand at the top of a module:

    schemas                                       the words; imports nothing of ours
    errors, clock, crashpoints                    what can go wrong; time and chance; where a test may kill us
    core                                          pure decisions: no I/O, no clock, no SQL, no Celery
    store, workflow, activity, agent, telemetry, servers, development_servers
    settings, dispatch
    client, fleet, ingest                         services
    celery, canvas, backend                       where Celery is met
    workers, beat                                 processes; they do not know each other
    api, cli, testing, dev                        the roof

`workflow`, `activity` and `agent` are what authors import: they need neither a database nor a broker. Each outside thing has one door
(SQL: `store`; time: `clock`; the environment: `settings`; and so on). `tests/test_architecture.py` holds the table and enforces it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from orchestrator.errors import SettingsError

if TYPE_CHECKING:
    from orchestrator import activity, workflow
    from orchestrator.celery import AsyncResult, Orchestrator, app

__all__ = ["AsyncResult", "Orchestrator", "activity", "app", "workflow"]

# Imported when first asked for: a file of workflows must not pay for Celery, nor an adopted application for ours.
_WHERE = {
    "AsyncResult": "orchestrator.celery",
    "Orchestrator": "orchestrator.celery",
    "app": "orchestrator.celery",
    "activity": "",
    "workflow": "",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - as the table says
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(_WHERE[name]), name) if _WHERE[name] else import_module(f"{__name__}.{name}")
    except SettingsError as error:
        if name == "app":  # asked for by `celery -A orchestrator`, which would show a page of traceback
            sys.exit(f"orchestrator: {error.message}")
        raise
