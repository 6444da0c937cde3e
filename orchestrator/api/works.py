"""Work over HTTP: for one agent, or for any of a type; law: a request id counts once, and whoever does not wait gets a receipt."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any
from uuid import UUID

from fastapi import Header, Query, Request, Response, status
from fastapi.responses import JSONResponse

from orchestrator.api.bodies import WAIT_MAX_S
from orchestrator.api.fleet_bodies import AgentId, Execute, WorkBody, WorkOrder, WorkView
from orchestrator.api.guard import router as guarded
from orchestrator.api.services import Caller, Here, Services
from orchestrator.core.machines import REFUSALS
from orchestrator.errors import FleetError, ResultTimeout
from orchestrator.store import workers
from orchestrator.telemetry import current_trace
from orchestrator.works import Receipt, agent_queue
from schemas.access import Principal
from schemas.agents import Agent, AgentKind
from schemas.codes import HTTP_STATUS, ErrorCode
from schemas.messages import WorkRequest, WorkResult

PREFIX = "/api/v1/work"

router = guarded(tags=["work"])

RequestId = Annotated[UUID | None, Header(alias="Idempotency-Key", description="the request id: the same one again is the same work")]
Wait = Annotated[float | None, Query(ge=0, le=WAIT_MAX_S, description="seconds to wait for the result; 0 gives a receipt at once")]
ACCEPTED: dict[int | str, dict[str, Any]] = {
    200: {"model": WorkResult, "description": "It is done"},
    202: {"model": WorkView, "description": "It is accepted and goes on; ask for it by its request id"},
    500: {"model": WorkResult, "description": "It failed"},
}


@router.post(PREFIX, status_code=status.HTTP_202_ACCEPTED, responses=ACCEPTED)
def submit(wanted: WorkOrder, here: Here, caller: Caller, request: Request, *, request_id: RequestId = None, wait: Wait = 0.0) -> Response:
    """Ask any agent of a type, or one agent, for a work."""
    request.state.target = f"agent:{wanted.agent_id}" if wanted.agent_id else f"type:{wanted.agent_type}"
    if not (wanted.agent_id or wanted.agent_type):
        raise FleetError("a work needs agent_type or agent_id", code=ErrorCode.INVALID_REQUEST)
    if wanted.agent_id:
        _check_hosted(here, here.fleet.get(wanted.agent_id))
    receipt = here.works.submit(
        work_request(wanted),
        agent_id=wanted.agent_id or "",
        agent_type=wanted.agent_type or "",
        request_id=request_id,
        trace_id=trace_id(),
        actor=caller.actor,
        priority=wanted.priority,
    )
    return awaited(here, receipt, wait or 0.0)


@router.get(f"{PREFIX}/{{request_id}}")
def show(request_id: UUID, here: Here, *, wait: Wait = 0.0) -> WorkView:
    """A work, and its result once it is done."""
    if wait:
        with here.patience(wait) as seconds, suppress(ResultTimeout):
            here.works.wait(request_id, timeout_s=seconds)
    return WorkView.of(here.works.get(request_id))


@router.post("/api/v1/agents/{agent_id}/execute", responses=ACCEPTED)
def execute(agent_id: AgentId, wanted: Execute, here: Here, caller: Caller, *, request_id: RequestId = None, wait: Wait = None) -> Response:
    """Have this very agent do a work, and wait for it; a receipt if that takes too long."""
    return executed(here, caller, agent_id, wanted, request_id=request_id, wait=wait)


def executed(
    here: Services, caller: Principal, agent_id: str, wanted: WorkBody, *, request_id: UUID | None, wait: float | None
) -> Response:
    """The answer to a work for one agent: of its service, or of our own agents with the same codes."""
    agent = here.fleet.get(agent_id)
    seconds = here.settings.execute_wait_s if wait is None else wait
    if agent.spec.kind is AgentKind.HTTP and wait != 0:
        return _of_service(here, agent, wanted, request_id=request_id, wait=seconds)
    _check_hosted(here, agent)
    receipt = here.works.submit(
        work_request(wanted),
        agent_id=agent_id,
        request_id=request_id,
        trace_id=trace_id(),
        actor=caller.actor,
        priority=wanted.priority,
    )
    return awaited(here, receipt, seconds)


def awaited(here: Services, receipt: Receipt, wait: float) -> Response:
    """The result if it comes in time, with the status that tells it; else the receipt."""
    request_id = receipt.work.request_id
    result = receipt.work.result
    if result is None and wait:
        with here.patience(min(wait, WAIT_MAX_S)) as seconds, suppress(ResultTimeout):
            result = here.works.wait(request_id, timeout_s=seconds)
    if result is not None:
        return JSONResponse(result.model_dump(mode="json"), status_of(result))
    view = WorkView.of(here.works.get(request_id))
    return JSONResponse(view.model_dump(mode="json"), status.HTTP_202_ACCEPTED, headers={"Location": f"{PREFIX}/{request_id}"})


def status_of(result: WorkResult) -> int:
    """How HTTP tells a result."""
    if result.error is None:
        return status.HTTP_200_OK
    try:
        return HTTP_STATUS[ErrorCode(result.error.code)]
    except ValueError:
        return status.HTTP_500_INTERNAL_SERVER_ERROR  # a code of the agent's own


def work_request(wanted: WorkBody) -> WorkRequest:
    """The request as agents get it."""
    return WorkRequest(
        work_type=wanted.work_type,
        parameters=wanted.parameters,
        timeout_s=wanted.timeout_s,
        attempts_max=wanted.attempts_max,
        requirements=wanted.requirements,
    )


def trace_id() -> UUID | None:
    """The trace of this request, as works know it."""
    trace = current_trace()
    return UUID(hex=trace.trace_id) if trace else None


def _check_hosted(here: Services, agent: Agent) -> None:
    """Refuse work that would wait for ever: that of a service for which no worker of ours stands."""
    if agent.spec.kind is not AgentKind.HTTP:
        return
    queue = agent_queue(agent.id)
    with here.store.transaction(readonly=True) as tx:
        served = any(queue in row.identity.queues for row in workers.list_workers(tx) if not row.expired)
    if not served:
        message = (
            f"no worker stands for the service of agent {agent.id!r}, so it can only be asked and waited for: …/execute without wait=0"
        )
        raise FleetError(message, code=ErrorCode.NO_CAPACITY)


def _of_service(here: Services, agent: Agent, wanted: WorkBody, *, request_id: UUID | None, wait: float) -> Response:
    code = REFUSALS.get(agent.status)
    if code in {ErrorCode.AGENT_PAUSED, ErrorCode.AGENT_STOPPING}:
        raise FleetError(f"agent {agent.id!r} is {agent.status} and takes no work", code=code)
    # In any other state it is asked all the same: it may answer where it never managed to register.
    key = request_id or UUID(here.clock.fresh_id())
    body = {"parameters": wanted.parameters, "request_id": str(key)} | ({"work_type": wanted.work_type} if wanted.work_type else {})
    with here.patience(wait) as seconds:
        if not seconds:
            raise FleetError("too many callers wait for agents; come back", code=ErrorCode.NO_CAPACITY)
        return here.proxy.execute(agent, body, request_id=key, answer_s=seconds)
