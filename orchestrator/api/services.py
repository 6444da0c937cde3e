"""What the handlers of one application share; law: opened at first use, closed with the application, and nothing of it is global."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

from fastapi import Depends, Request

from orchestrator.api.gate import Gate
from orchestrator.api.metrics import Metrics
from orchestrator.api.readiness import Readiness
from orchestrator.client import Client
from orchestrator.clock import SYSTEM, Clock
from orchestrator.dispatch import Broker
from orchestrator.store import Store
from schemas.access import Principal
from schemas.settings import Settings

PACKAGE = "orchestrator-fleet"
BODY_OVERHEAD_BYTES = 64 * 1024  # what may stand around the largest payload
WAITING_MAX = 60  # handlers that wait for something; the others of the thread pool never do


class Services:
    """The client, the store and the gate of one application."""

    def __init__(self, settings: Settings, *, store: Store | None = None, bell: Broker | None = None, clock: Clock = SYSTEM) -> None:
        self.settings = settings
        self.clock = clock
        self._owned = store is None
        self.store = store or Store.open(settings.database_url, clock=clock)
        self.client = Client(settings=settings, store=self.store, bell=bell, clock=clock)
        self.gate = Gate(settings, self.store, clock)
        self.readiness = Readiness(settings, self.store, clock)
        self.body_bytes_max = settings.payload_bytes_max + BODY_OVERHEAD_BYTES
        self.metrics = Metrics(self.store, clock)
        self.version = settings.api_version or _installed()
        self._waiting = threading.BoundedSemaphore(WAITING_MAX)

    @contextmanager
    def patience(self, wanted_s: float) -> Iterator[float]:
        """For how long a handler may wait: as long as is wanted, or not at all if WAITING_MAX others wait; the rest can work."""
        mine = wanted_s > 0 and self._waiting.acquire(blocking=False)
        try:
            yield wanted_s if mine else 0.0
        finally:
            if mine:
                self._waiting.release()

    def close(self) -> None:
        """Send what is to be sent, and close what was opened here."""
        self.client.close()
        self.readiness.close()
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
