"""What the handlers of one application share; law: opened at first use, closed with the application, and nothing of it is global."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import orjson
from fastapi import Depends, Request

from orchestrator.api.admission import Admission
from orchestrator.api.metrics import Metrics
from orchestrator.api.proxy import Proxy
from orchestrator.api.readiness import Readiness
from orchestrator.api.watching import Watch
from orchestrator.client import Client
from orchestrator.clock import SYSTEM, Clock
from orchestrator.dispatch import Broker, CeleryBroker, celery_for
from orchestrator.errors import FleetError
from orchestrator.fleet import Fleet
from orchestrator.logs import latest
from orchestrator.store import Store
from orchestrator.works import Works
from schemas.access import Principal
from schemas.agents import Agent, AgentKind
from schemas.codes import ErrorCode
from schemas.history import Json
from schemas.settings import Settings

PACKAGE = "orchestrator-fleet"
BODY_OVERHEAD_BYTES = 64 * 1024  # what may stand around the largest payload
WAITING_MAX = 60  # handlers that wait for something; the others of the thread pool never do


class Services:
    """The client, the store and the admission of one application."""

    def __init__(self, settings: Settings, *, store: Store | None = None, bell: Broker | None = None, clock: Clock = SYSTEM) -> None:
        self.settings = settings
        self.clock = clock
        self._owned = store is None
        self.store = store or Store.of(settings, clock=clock)
        self._app = celery_for(settings, "orchestrator-api")
        self._sender = CeleryBroker(self._app, window_s=settings.ring_window_s, clock=clock)
        bell = bell or self._sender
        self.client = Client(settings=settings, store=self.store, bell=bell, clock=clock)
        self.fleet = Fleet(settings, store=self.store, bell=bell, clock=clock)
        self.works = Works(settings, store=self.store, bell=bell, clock=clock)
        self.watch = Watch(self.fleet, clock)
        self.proxy = Proxy(settings)
        self.admission = Admission(settings, self.store, clock)
        self.readiness = Readiness(self._app, settings, self.store, clock)
        self.body_bytes_max = settings.payload_bytes_max + BODY_OVERHEAD_BYTES
        self.metrics = Metrics(self.store, clock)
        self.version = settings.api_version or _installed()
        self._waiting = threading.BoundedSemaphore(WAITING_MAX)

    @contextmanager
    def patience(self, wanted_s: float) -> Iterator[float]:
        """For how long a handler may wait: as is wanted, at most execute_wait_s, or not at all if WAITING_MAX others wait; the rest can work."""
        mine = wanted_s > 0 and self._waiting.acquire(blocking=False)
        try:
            yield min(wanted_s, self.settings.execute_wait_s) if mine else 0.0
        finally:
            if mine:
                self._waiting.release()

    def forwarder(self) -> CeleryBroker:
        """The broker, for messages that are to be sent now or not at all."""
        return self._sender

    def logs(self, agent: Agent, lines: int) -> list[dict[str, Json]]:
        """The last lines of an agent's log: of its file on this machine, or as its service tells them."""
        found = latest(self.settings, agent.id, lines)
        if found or agent.spec.kind is not AgentKind.HTTP:
            return found
        reply = self.proxy.get(agent, "/logs", {"lines": lines})
        told = orjson.loads(reply.body)
        listed = told.get("lines") if isinstance(told, dict) else None
        if reply.status_code != HTTPStatus.OK or not isinstance(listed, list):
            message = f"the service of agent {agent.id!r} answered {reply.status_code} and no lines"
            raise FleetError(message, code=ErrorCode.AGENT_UNAVAILABLE)
        return [line if isinstance(line, dict) else {"agent_id": agent.id, "message": str(line)} for line in listed[-lines:]]

    def close(self) -> None:
        """Send what is to be sent, and close what was opened here."""
        for part in (self.client, self.fleet, self.works, self.proxy):
            part.close()
        self._sender.flush()
        self._app.close()
        if self._owned:
            self.store.dispose()


async def services(request: Request) -> Services:
    """The services of the application that serves this request."""
    found: Services = request.app.state.services
    return found


async def caller(request: Request) -> Principal:
    """Who makes this request; the guard of the route has let them in."""
    found: Principal = request.state.principal
    return found


Here = Annotated[Services, Depends(services)]
Caller = Annotated[Principal, Depends(caller)]


def _installed() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "unknown"
