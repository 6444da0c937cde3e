"""The management API: durable workflows and the fleet over HTTP; law: thin over the services, every act audited, every body JSON.

`create_app` makes the application; nothing is opened before the first request. Handlers are plain functions in a bounded thread pool. Who may
call what stands in one table (`permissions`), and a route that is not in it does not start.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio import to_thread
from fastapi import FastAPI

from orchestrator.api import access, agent_services, agents, errors, openapi, operations, records, rolling, stream, workflows, works
from orchestrator.api.requests import Requests
from orchestrator.api.services import Services
from orchestrator.clock import SYSTEM, Clock
from orchestrator.dispatch import Broker
from orchestrator.settings import current
from orchestrator.store import Store
from schemas.settings import Settings

__all__ = ["create_app"]

THREADS_MAX = 100  # handlers at once; further requests queue


def create_app(
    settings: Settings | None = None, *, store: Store | None = None, bell: Broker | None = None, clock: Clock = SYSTEM
) -> FastAPI:
    """The application for these settings, by default those of the environment. Raises SettingsError if they make no sense for it."""
    settings = settings or current()
    services = Services(settings, store=store, bell=bell, clock=clock)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        to_thread.current_default_thread_limiter().total_tokens = THREADS_MAX
        try:
            yield
        finally:
            await to_thread.run_sync(services.close)

    app = FastAPI(
        title=settings.api_name,
        version=services.version,
        summary="Durable workflows and agent fleets on Celery",
        lifespan=lifespan,
        redirect_slashes=False,
        separate_input_output_schemas=True,
    )
    app.state.services = services
    for part in (operations, access, workflows, agents, rolling, works, stream, records, agent_services):
        app.include_router(part.router)
    errors.install(app)
    openapi.install(app)
    app.add_middleware(Requests, clock=clock)
    return app
