"""One server process; law: what it logs is JSON, its settings are those of the environment, and whoever only listens does not hold up its end."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import FrameType
from typing import Any

from fastapi import FastAPI

from orchestrator.api import create_app
from orchestrator.settings import current
from orchestrator.telemetry import log_json

ENDING = (signal.SIGTERM, signal.SIGINT)


def application() -> FastAPI:
    """What uvicorn makes in each of its processes."""
    settings = current()
    log_json(settings.api_log_level, service=settings.api_name)
    app = create_app(settings)
    lives = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with lives(app) as state:
            with _before_the_end(app.state.services.watch.close):
                yield state

    app.router.lifespan_context = lifespan
    return app


@contextmanager
def _before_the_end(act: Callable[[], None]) -> Iterator[None]:
    """Call `act` when the process is told to end, and then whoever was to be told before."""
    before = {which: signal.getsignal(which) for which in ENDING}

    def hear(number: int, frame: FrameType | None) -> None:
        act()
        handler = before[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    for which in ENDING:
        signal.signal(which, hear)
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
