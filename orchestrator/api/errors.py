"""Errors as HTTP tells them; law: every one has a JSON body, a documented status and a sentence, and none a stack trace."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from orchestrator.api.permissions import methods_of
from orchestrator.api.requests import clock_of
from orchestrator.auditing import code_of
from orchestrator.clock import utc
from orchestrator.errors import FleetError, OrchestratorError, WorkflowAlreadyStarted
from schemas.codes import HTTP_STATUS, ErrorCode
from schemas.messages import ErrorBody, Timestamp

log = logging.getLogger("orchestrator.api")

RETRY_AFTER_S = 2
VALIDATION_ERRORS_SHOWN = 10

_OF_STATUS = {
    401: ErrorCode.UNAUTHORIZED,
    403: ErrorCode.FORBIDDEN,
    404: ErrorCode.NOT_FOUND,
    413: ErrorCode.PAYLOAD_TOO_LARGE,
    503: ErrorCode.NO_CAPACITY,
}


class Problem(BaseModel):
    """A refusal or a failure. `error.code` is for machines, `error.message` a sentence for people."""

    status: Literal["error"] = "error"
    command: str = ""
    agent_id: str = ""
    result: None = None
    error: ErrorBody
    timestamp: Timestamp


def install(app: FastAPI) -> None:
    """Have the application answer every error with a Problem."""
    for kind in (OrchestratorError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    return response_to(request, error)


def response_to(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that has failed with `error`."""
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework names the methods of one route; an address may have several.
        error = HTTPException(error.status_code, headers={"Allow": ", ".join(methods_of(request.url.path)) or "GET"})
    status, body, headers = told(error)
    if body.code is ErrorCode.INTERNAL_ERROR:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    given = request.path_params
    problem = Problem(
        command=str(given.get("command", "")),
        agent_id=str(given.get("agent_id", "")),
        error=body,
        timestamp=utc(clock_of(request).now()),
    )
    return JSONResponse(problem.model_dump(mode="json"), status, headers=dict(headers))


def told(error: Exception) -> tuple[int, ErrorBody, Mapping[str, str]]:
    """Status, body and headers for an error."""
    if isinstance(error, RequestValidationError):
        return 400, ErrorBody(code=ErrorCode.INVALID_REQUEST, message=_sentence(error), details=_details(error)), {}
    if isinstance(error, HTTPException):
        code = _OF_STATUS.get(error.status_code, ErrorCode.INVALID_REQUEST)
        return error.status_code, ErrorBody(code=code, message=_phrase(error)), dict(error.headers or {})
    code = code_of(error)
    status = HTTP_STATUS[code]
    headers = {}
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(RETRY_AFTER_S)
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    message = error.message if isinstance(error, OrchestratorError) and code is not ErrorCode.INTERNAL_ERROR else _OURS
    return status, ErrorBody(code=code, message=message, details=_facts(error)), headers


_OURS = "The server made a mistake; its log has the details, under the X-Request-Id of this answer."


def _facts(error: Exception) -> Any:  # noqa: ANN401 - any JSON
    if isinstance(error, FleetError):
        return error.details
    if isinstance(error, WorkflowAlreadyStarted):
        return {"workflow_id": error.workflow_id, "run_id": error.run_id}
    return None


def _phrase(error: HTTPException) -> str:
    match error.status_code:
        case 404:
            return "there is nothing at this address; /docs lists what there is"
        case 405:
            return f"this address does not understand that method; it understands {(error.headers or {}).get('Allow', 'others')}"
        case 415:
            return "the body must be JSON, and its Content-Type say so: application/json"
        case 413:
            return "the body of the request is larger than the limit; store the value elsewhere and pass a reference to it"
        case _:
            return str(error.detail)


def _sentence(error: RequestValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return f"the body is no JSON: {first.get('ctx', {}).get('error', message)}"
    return f"{place}: {message}" if place else message


def _details(error: RequestValidationError) -> list[dict[str, Any]]:
    return [
        {"where": [str(part) for part in one["loc"]], "message": str(one["msg"]), "type": str(one["type"])}
        for one in error.errors()[:VALIDATION_ERRORS_SHOWN]
    ]
