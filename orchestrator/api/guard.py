"""The route class of all handlers: first who, then what, then the audit; law: an act is in the audit exactly once, refused ones included."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute

from orchestrator import auditing
from orchestrator.api import admission
from orchestrator.api.errors import response_to, told
from orchestrator.api.permissions import RULES, Rule
from orchestrator.api.requests import about
from orchestrator.api.services import Services
from orchestrator.store import audit
from schemas.access import Principal

BODY_AUDITED_BYTES_MAX = 64 * 1024  # a longer body is not looked into for the audit


class StrictJson(Request):
    """A request whose body has a limit, and whose JSON is that of the standard: no NaN, no halves of characters."""

    async def body(self) -> bytes:
        """The whole body; raises HTTPException (413) as soon as it is too long."""
        if not hasattr(self, "_body"):
            most: int = self.app.state.services.body_bytes_max
            length = self.headers.get("content-length", "")
            chunks, size = [], int(length) if length.isdecimal() and int(length) > most else 0
            if not size:
                async for chunk in self.stream():
                    chunks.append(chunk)
                    size += len(chunk)
                    if size > most:
                        break
            if size > most:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            self._body = b"".join(chunks)
        return self._body

    async def json(self) -> Any:  # noqa: ANN401 - any JSON
        """The body as a JSON value; raises json.JSONDecodeError."""
        if not hasattr(self, "_json"):
            self._json = orjson.loads(await self.body())
        return self._json


class Guarded(APIRoute):
    """A route that lets in whom the table of permissions names, and enters acts into the audit."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:  # noqa: ANN401 - FastAPI's own
        (method,) = options.get("methods") or {"GET"}
        assert (method, path) in RULES, f"{method} {path} has no row in orchestrator.api.permissions"
        self.rule = RULES[method, path]
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of FastAPI, with a guard before and the audit behind it."""
        handler = super().get_route_handler()
        rule, reads_body = self.rule, self.body_field is not None

        async def handle(given: Request) -> Response:
            request = StrictJson(given.scope, given.receive)
            outcome = str(audit.OK)
            try:
                request.state.principal = await _admitted(request, rule)
                if reads_body:
                    _check_media_type(request)
                response = await handler(request)
                if response.status_code >= HTTPStatus.BAD_REQUEST:  # of a service, or of a work that failed: passed on as it is
                    outcome = f"status_{response.status_code}"
            except Exception as error:  # noqa: BLE001 - every error has an answer, those of ours too
                outcome = told(error)[1].code
                about(request)["actor"] = getattr(error, "actor", "") or about(request)["actor"]
                response = response_to(request, error)
            if rule.action:
                await run_in_threadpool(_enter, request, rule, outcome)
            return response

        return handle


def router(*, tags: list[str]) -> APIRouter:
    """A router of guarded routes."""
    return APIRouter(tags=list(tags), route_class=Guarded)


async def _admitted(request: Request, rule: Rule) -> Principal:
    if rule.role is None:
        return Principal("", admission.ANYBODY.role)
    services: Services = request.app.state.services
    peer = request.client.host if request.client else None
    principal = await run_in_threadpool(services.admission.admit, request.headers, peer, rule.role)
    about(request)["actor"] = principal.actor
    return principal


def _check_media_type(request: Request) -> None:
    """Refuse a body that does not say that it is JSON: a web page can send others without asking."""
    sent = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent and media_type != "application/json" and not (media_type.startswith("application/") and media_type.endswith("+json")):
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE)


def _enter(request: Request, rule: Rule, outcome: str) -> None:
    services: Services = request.app.state.services
    facts = about(request)
    target = getattr(request.state, "target", "") or rule.target.format_map(request.path_params)
    auditing.record(
        services.store,
        actor=facts["actor"] or admission.NOBODY,
        action=rule.action,
        target=target,
        outcome=outcome,
        params=_params(request),
        trace_id=facts["trace"].trace_id,
    )


def _params(request: Request) -> dict[str, Any]:
    """What was asked for, as far as it was read: a refused caller makes us read nothing."""
    params: dict[str, Any] = dict(request.query_params)
    body = getattr(request, "_body", b"")
    if body and len(body) <= BODY_AUDITED_BYTES_MAX:
        try:
            value = orjson.loads(body)
        except orjson.JSONDecodeError:
            return params
        params |= value if isinstance(value, dict) else {"body": value}
    elif body:
        params["body"] = f"{len(body):,} bytes"
    return params
