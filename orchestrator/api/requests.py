"""Around every request: ids, trace, limit, one log line; law: it costs no thread and knows no route."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.clock import SYSTEM, Clock, utc
from orchestrator.telemetry import continued, tracing

log = logging.getLogger("orchestrator.api.access")

REQUESTS_MAX = 1000  # at once in one process; more are told to come back

_REQUEST_ID = re.compile(r"^[A-Za-z0-9._:-]{1,100}$")
_STATE = "orchestrator"


class Requests:
    """Gives each request an id and a place in a trace, in and out, and writes the access log."""

    def __init__(self, app: ASGIApp, *, clock: Clock = SYSTEM) -> None:
        self._app = app
        self._clock = clock
        self._open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope)
        request_id = given.get("x-request-id", "")
        request_id = request_id if _REQUEST_ID.match(request_id) else self._clock.fresh_id()
        trace = continued(given.get("traceparent"), clock=self._clock)
        about: dict[str, Any] = {"request_id": request_id, "trace": trace, "actor": "", "clock": self._clock}
        scope.setdefault("state", {})[_STATE] = about
        began = self._clock.monotonic()
        status = 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                headers["traceparent"] = trace.traceparent
                headers.setdefault("Cache-Control", "no-store")
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        with tracing(trace):
            self._open += 1
            try:
                if self._open > REQUESTS_MAX:
                    await _too_many(tell, utc(self._clock.now()).isoformat())
                else:
                    await self._app(scope, receive, tell)
            finally:
                self._open -= 1
                took_ms = round((self._clock.monotonic() - began) * 1000, 1)
                facts = {"method": scope["method"], "path": scope["path"], "status": status, "took_ms": took_ms}
                facts |= {"request_id": request_id, "actor": about["actor"]}
                log.info("%s %s %s", scope["method"], scope["path"], status, extra=facts)


def about(request: Request) -> dict[str, Any]:
    """What is known about a request: `request_id`, `trace`, `actor`."""
    found: dict[str, Any] = request.scope["state"][_STATE]
    return found


def clock_of(request: Request) -> Clock:
    """The clock of the application."""
    found: Clock = about(request)["clock"]
    return found


async def _too_many(send: Send, timestamp: str) -> None:
    message = f"more than {REQUESTS_MAX} requests are being served; come back in a moment"
    body: dict[str, Any] = {"status": "error", "command": "", "agent_id": "", "result": None, "timestamp": timestamp}
    body["error"] = {"code": "no_capacity", "message": message, "details": None}
    headers = [(b"content-type", b"application/json"), (b"retry-after", b"2")]
    await send({"type": "http.response.start", "status": int(HTTPStatus.SERVICE_UNAVAILABLE), "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps(body)})
