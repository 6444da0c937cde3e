"""The HTTP face of one agent: `/health /info /execute /status /action /logs /metrics`; law: JSON always, and alive while every slot is busy.

It lives in a thread of the agent's worker, with a loop of its own, and only where the agent's spec or the worker's settings name a port.
Work that comes by it is accepted, done and remembered like any other. `X-Manager-Token` is asked for where a token is set.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable
from typing import Annotated, Any
from uuid import UUID

import uvicorn
from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from orchestrator import logs
from orchestrator.errors import DatabaseUnavailable, FleetError, OrchestratorError, ResultTimeout, SettingsError
from orchestrator.waiting import drive_async
from orchestrator.works import Works
from schemas.codes import HTTP_STATUS, ErrorCode
from schemas.messages import WORK_TYPE_CHARS_MAX, CommandName, CommandResponse, WorkRequest, WorkResult
from schemas.settings import Settings
from workers.hosted import Hosted

log = logging.getLogger("orchestrator.adapter")

ACTIONS = ("pause", "resume", "stop", "restart")
START_MAX_S = 10.0
RETRY_AFTER_S = 1

Act = Callable[[CommandName], CommandResponse]


class Execute(BaseModel):
    """What somebody asks of the agent."""

    model_config = ConfigDict(extra="forbid")

    parameters: dict[str, Any]
    work_type: str = Field("", max_length=WORK_TYPE_CHARS_MAX)
    request_id: UUID | None = None
    timeout_s: float | None = Field(None, gt=0, le=7 * 86400)


class Action(BaseModel):
    """What somebody tells the agent; nothing here says what is executed."""

    model_config = ConfigDict(extra="forbid")

    action: str


class Adapter:
    """A server of one agent; `act` carries out actions, and may take a moment."""

    def __init__(self, hosted: Hosted, works: Works, act: Act, settings: Settings, *, port: int) -> None:
        _refuse_open(settings)
        self._hosted = hosted
        self._socket = socket.create_server((settings.api_host, port))  # here, so that a port that is taken is told to whoever starts it
        host, self.port = self._socket.getsockname()[:2]
        self.url = f"http://{host}:{self.port}"
        app = application(hosted, works, act, settings)
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        self._thread = threading.Thread(target=self._serve, name=f"adapter-{hosted.id}", daemon=True)

    def start(self) -> None:
        """Serve from now on."""
        self._thread.start()
        log.info("agent %s answers at %s", self._hosted.id, self.url)

    def stop(self) -> None:
        """Answer no more."""
        self._server.should_exit = True
        self._thread.join(START_MAX_S)
        self._socket.close()

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])


def application(hosted: Hosted, works: Works, act: Act, settings: Settings) -> FastAPI:
    """The routes."""
    app = FastAPI(title=hosted.spec.title, version=hosted.spec.version or "1", docs_url=None, redoc_url=None)
    _tell_errors(app)
    _add_looks(app, hosted)
    trusted = Depends(_trust(settings))

    @app.post("/execute", dependencies=[trusted])
    async def execute(asked: Execute) -> JSONResponse:
        """Do a work, and wait for it as long as the settings say; then a receipt."""
        request = WorkRequest(work_type=asked.work_type, parameters=asked.parameters, timeout_s=asked.timeout_s)
        receipt = await asyncio.to_thread(works.submit, request, agent_id=hosted.id, request_id=asked.request_id, actor="http")
        request_id, wait_s = receipt.work.request_id, settings.execute_wait_s
        if receipt.work.result is not None:
            return _result(receipt.work.result.model_copy(update={"cached": True}))
        try:
            result = await drive_async(
                works.steps(request_id), timeout_s=wait_s, late=lambda: works.late(request_id, wait_s), in_thread=asyncio.to_thread
            )
        except ResultTimeout as error:
            return JSONResponse({"request_id": request_id, "status": "accepted", "message": error.message}, 202)
        return _result(result)

    @app.post("/action", dependencies=[trusted])
    async def action(told: Action) -> JSONResponse:
        """Pause, resume, stop or restart."""
        if told.action not in ACTIONS:
            raise FleetError(f"there is no action {told.action!r}; there are {', '.join(ACTIONS)}", code=ErrorCode.UNKNOWN_COMMAND)
        response = await asyncio.to_thread(act, CommandName(told.action))
        return JSONResponse(response.model_dump(mode="json"), 202 if told.action in {"stop", "restart"} else 200)

    @app.get("/logs", dependencies=[trusted])
    def last_lines(lines: str = str(logs.LINES_SHOWN)) -> dict[str, Any]:
        """The last lines of the agent's log."""
        if not lines.isdigit() or not int(lines):
            raise FleetError(f"lines must be a number from 1 to {logs.LINES_MAX:,}, not {lines!r}", code=ErrorCode.INVALID_REQUEST)
        return {"lines": logs.latest(settings, hosted.id, min(int(lines), logs.LINES_MAX))}

    return app


def _add_looks(app: FastAPI, hosted: Hosted) -> None:
    """What anybody may look at; none of it waits."""

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether it is alive."""
        return {"status": "ok"}

    @app.get("/info")
    async def info() -> dict[str, Any]:
        """What it is."""
        spec = hosted.spec
        return {
            "id": spec.id,
            "name": spec.title,
            "type": spec.type,
            "defaultModel": spec.metadata.get("defaultModel"),
            "metadata": spec.metadata,
            "capabilities": dict(hosted.agent.capabilities),
            "version": spec.version,
        }

    @app.get("/status")
    async def status() -> dict[str, Any]:
        """Where it stands and what it does."""
        running = sorted(hosted.running.values(), key=lambda work: work.request_id)
        tasks = [{"request_id": work.request_id, "work_type": work.work_type} for work in running]
        return {
            "status": hosted.status,
            "draining": hosted.draining,
            "current_task": tasks[0] if tasks else None,
            "current_work": tasks,
            "tasks_total": hosted.done + hosted.failed,
            "tasks_failed": hosted.failed,
        }

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """For Prometheus."""
        agent = f'{{agent="{hosted.id}",type="{hosted.spec.type}"}}'
        lines = [
            "# HELP task_running Whether the agent does a work.",
            "# TYPE task_running gauge",
            f"task_running{agent} {int(bool(hosted.running))}",
            "# HELP tasks_total Works that have ended.",
            "# TYPE tasks_total counter",
            f"tasks_total{agent} {hosted.done + hosted.failed}",
        ]
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")


def _trust(settings: Settings) -> Callable[..., None]:
    tokens = settings.manager_tokens  # the present one, and during a rotation the one before

    def check(x_manager_token: Annotated[str | None, Header()] = None) -> None:
        given = (x_manager_token or "").encode()
        if tokens and not sum(hmac.compare_digest(given, token.encode()) for token in tokens):
            raise FleetError("X-Manager-Token is missing or wrong", code=ErrorCode.UNAUTHORIZED)

    return check


def _tell_errors(app: FastAPI) -> None:
    """One shape for all refusals."""

    @app.exception_handler(OrchestratorError)
    async def ours(_: Request, error: OrchestratorError) -> JSONResponse:
        if isinstance(error, FleetError):
            return _refusal(error.code, error.message, error.details)
        code = ErrorCode.DATABASE_UNAVAILABLE if isinstance(error, DatabaseUnavailable) else ErrorCode.EXECUTION_FAILED
        return _refusal(code, error.message)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        told = [f"{'.'.join(map(str, found['loc'][1:])) or 'body'}: {found['msg']}" for found in error.errors()]
        return _refusal(ErrorCode.INVALID_REQUEST, "; ".join(told))

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        code = ErrorCode.NOT_FOUND if error.status_code == 404 else ErrorCode.INVALID_REQUEST
        return _refusal(code, str(error.detail), status=error.status_code)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return _refusal(ErrorCode.EXECUTION_FAILED, f"{type(error).__name__}: {error}")


def _refusal(code: ErrorCode, message: str, details: Any = None, *, status: int | None = None) -> JSONResponse:  # noqa: ANN401 - JSON
    found = status or HTTP_STATUS[code]
    headers = {"Retry-After": str(RETRY_AFTER_S)} if found == 503 else None
    return JSONResponse({"error": {"code": code.value, "message": message, "details": details}}, found, headers)


def _result(result: WorkResult) -> JSONResponse:
    """A result with the status that its error has."""
    status = 200
    if result.error is not None:
        known = result.error.code in set(ErrorCode)
        status = HTTP_STATUS[ErrorCode(result.error.code)] if known else 500
    return JSONResponse(result.model_dump(mode="json"), status)


def _refuse_open(settings: Settings) -> None:
    """In production nobody from outside may speak to an agent without a token."""
    if settings.environment != "production" or settings.manager_tokens:
        return
    try:
        loopback = ipaddress.ip_address(settings.api_host).is_loopback
    except ValueError:
        loopback = settings.api_host == "localhost"
    if not loopback:
        raise SettingsError(f"an agent does not listen on {settings.api_host} in production without ORCHESTRATOR_MANAGER_TOKEN")
