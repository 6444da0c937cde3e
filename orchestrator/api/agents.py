"""Agents over HTTP: who there is, what they are told, how they do; law: one call of the fleet's service each, and its error is the answer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Response, status
from fastapi.responses import JSONResponse

from orchestrator.api.bodies import LogLines
from orchestrator.api.fleet_bodies import (
    AgentChanges,
    AgentId,
    AgentStanding,
    AgentView,
    CommandView,
    Draining,
    EventView,
    HealthOfAgent,
    Scaling,
    Sequence,
    SummaryView,
    Why,
    exactly,
)
from orchestrator.api.guard import router as guarded
from orchestrator.api.services import Caller, Here, Services
from orchestrator.clock import utc
from orchestrator.errors import AgentNotFound, FleetError
from orchestrator.logs import LINES_MAX, LINES_SHOWN
from orchestrator.store.agents import AGENTS_PAGE_MAX, EVENTS_PAGE_MAX
from orchestrator.telemetry import current_trace
from schemas.access import Principal
from schemas.agents import ID_PATTERN, AgentFilter, AgentSpec, AgentStatus, Health
from schemas.codes import ErrorCode
from schemas.messages import CommandName, CommandParams, CommandResponse

PREFIX = "/api/v1/agents"
ONE = f"{PREFIX}/{{agent_id}}"
PAGE = 100
MOVING = frozenset({AgentStatus.STARTING, AgentStatus.STOPPING})
UNKNOWN = {"status": Health.UNKNOWN.value}

router = guarded(tags=["agents"])

UnderWay: dict[int | str, dict[str, Any]] = {202: {"model": CommandResponse, "description": "It is under way"}}
Limit = Annotated[int, Query(ge=1, le=EVENTS_PAGE_MAX)]


# --- who there is --------------------------------------------------------------------------------------------------------------


@router.get(PREFIX)
def list_(
    here: Here,
    *,
    status: AgentStatus | None = None,
    type: Annotated[str | None, Query(pattern=ID_PATTERN)] = None,  # noqa: A002 - the field's name
    registered: bool | None = None,
    limit: Annotated[int, Query(ge=1, le=AGENTS_PAGE_MAX)] = PAGE,
    offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
) -> list[AgentView]:
    """The agents of the fleet, by id."""
    wanted = AgentFilter(status=status, type=type, registered=registered, limit=limit, offset=offset)
    return [AgentView.of(agent) for agent in here.fleet.list_agents(wanted)]


@router.post(PREFIX, status_code=status.HTTP_201_CREATED)
def add(spec: exactly(AgentSpec), here: Here, response: Response) -> AgentView:  # type: ignore[valid-type] # made by a function
    """Enter an agent; it stands still until it is started. In production what an agent executes is written in configuration files."""
    if here.settings.environment == "production" and (spec.executable or spec.args or spec.entry_point):
        message = "in production no call says what is executed on a machine: write the agent into a configuration file"
        raise FleetError(message, code=ErrorCode.FORBIDDEN)
    agent = here.fleet.add(spec)
    response.headers["Location"] = f"{PREFIX}/{agent.id}"
    return AgentView.of(agent)


@router.get(ONE)
def show(agent_id: AgentId, here: Here) -> AgentView:
    """All that is known about an agent."""
    return AgentView.of(here.fleet.get(agent_id))


@router.put(ONE)
def update(agent_id: AgentId, changes: AgentChanges, here: Here) -> AgentView:
    """Change what an agent is, within limits: what it executes and where it stands are not among it."""
    given = changes.model_dump(exclude_unset=True, exclude={"version"})
    nullable = {"drain_timeout_s"}
    wanted = {name: value for name, value in given.items() if value is not None or name in nullable}
    return AgentView.of(here.fleet.update(agent_id, wanted, version=changes.version))


@router.delete(ONE, responses=UnderWay)
def remove(
    agent_id: AgentId,
    here: Here,
    caller: Caller,
    response: Response,
    *,
    drain_timeout_s: Annotated[float | None, Query(ge=0, le=86400)] = None,
) -> CommandResponse:
    """Stop an agent if it runs, then forget it; its history stays."""
    return _told(here.fleet.remove(agent_id, actor=caller.actor, drain_s=drain_timeout_s), here, response)


# --- what it is told -----------------------------------------------------------------------------------------------------------


@router.post(f"{ONE}/start", responses=UnderWay)
def start(agent_id: AgentId, here: Here, caller: Caller, response: Response, given: Why = Why()) -> CommandResponse:
    """Start an agent that stands still."""
    return order(here, caller, response, agent_id, CommandName.START, CommandParams(reason=given.reason))


@router.post(f"{ONE}/stop", responses=UnderWay)
def stop(agent_id: AgentId, here: Here, caller: Caller, response: Response, given: Draining = Draining()) -> CommandResponse:
    """Have an agent take nothing more, finish what it has, and end. Or, if it is in error: acknowledge that."""
    return order(here, caller, response, agent_id, CommandName.STOP, _draining(given))


@router.post(f"{ONE}/restart", responses=UnderWay)
def restart(agent_id: AgentId, here: Here, caller: Caller, response: Response, given: Draining = Draining()) -> CommandResponse:
    """Stop an agent and start it again, with what it was started with."""
    return order(here, caller, response, agent_id, CommandName.RESTART, _draining(given))


@router.post(f"{ONE}/pause", responses=UnderWay)
def pause(agent_id: AgentId, here: Here, caller: Caller, response: Response, given: Why = Why()) -> CommandResponse:
    """Have an agent take nothing more; what it has it finishes."""
    return order(here, caller, response, agent_id, CommandName.PAUSE, CommandParams(reason=given.reason))


@router.post(f"{ONE}/resume", responses=UnderWay)
def resume(agent_id: AgentId, here: Here, caller: Caller, response: Response, given: Why = Why()) -> CommandResponse:
    """Have a paused agent take work again."""
    return order(here, caller, response, agent_id, CommandName.RESUME, CommandParams(reason=given.reason))


@router.post(f"{ONE}/flush", responses=UnderWay)
def flush(agent_id: AgentId, here: Here, caller: Caller, response: Response, given: Why = Why()) -> CommandResponse:
    """Ask an agent for the summary of what it has gathered."""
    return order(here, caller, response, agent_id, CommandName.FLUSH, CommandParams(reason=given.reason))


@router.post(f"{ONE}/pool", responses=UnderWay)
def scale(agent_id: AgentId, given: Scaling, here: Here, caller: Caller, response: Response) -> CommandResponse:
    """Have an agent do more, or fewer, works at once; never fewer than one."""
    return order(here, caller, response, agent_id, CommandName.SCALE, CommandParams(reason=given.reason, delta=given.delta))


@router.post(f"{ONE}/sequence", responses=UnderWay)
def sequence(agent_id: AgentId, given: Sequence, here: Here, caller: Caller, response: Response) -> CommandResponse:
    """Give a child commands that it acknowledges one by one, in this order."""
    return order(here, caller, response, agent_id, CommandName.SEQUENCE, CommandParams(reason=given.reason, sequence=tuple(given.sequence)))


def order(
    here: Services, caller: Principal, response: Response, agent_id: str, command: CommandName, params: CommandParams
) -> CommandResponse:
    """Tell an agent something, and its answer with the status that fits."""
    trace = current_trace()
    answer = here.fleet.command(agent_id, command, params, actor=caller.actor, trace_id=trace.trace_id if trace else "")
    return _told(answer, here, response)


# --- how it does ---------------------------------------------------------------------------------------------------------------


@router.get(f"{ONE}/status")
def standing(agent_id: AgentId, here: Here) -> AgentStanding:
    """Where an agent stands, and what its last heartbeat brought."""
    return AgentStanding.of(here.fleet.get(agent_id))


@router.get(f"{ONE}/metrics", responses={404: {"model": dict[str, Any], "description": "There is no such agent"}})
def metrics(agent_id: AgentId, here: Here) -> dict[str, Any]:
    """The figures of an agent's last heartbeat, and those of its machine."""
    try:
        agent = here.fleet.get(agent_id)
    except AgentNotFound:
        return JSONResponse({}, status.HTTP_404_NOT_FOUND)  # type: ignore[return-value] # FastAPI sends it as it is
    return {"metrics": agent.last_metrics, "resources": agent.last_resources, "current_work": len(agent.current_work)}


@router.get(f"{ONE}/health", responses={404: {"model": HealthOfAgent, "description": "There is no such agent"}})
def health(agent_id: AgentId, here: Here) -> HealthOfAgent:
    """How an agent does."""
    try:
        agent = here.fleet.get(agent_id)
    except AgentNotFound:
        return JSONResponse(UNKNOWN, status.HTTP_404_NOT_FOUND)  # type: ignore[return-value] # FastAPI sends it as it is
    return HealthOfAgent(
        status=agent.health.value,
        agent_id=agent.id,
        agent_status=agent.status,
        registered=agent.registered,
        last_heartbeat=agent.last_heartbeat_at,
    )


@router.get(f"{ONE}/logs")
def logs(agent_id: AgentId, here: Here, *, lines: Annotated[int, Query(ge=1, le=LINES_MAX)] = LINES_SHOWN) -> LogLines:
    """The last lines that an agent has logged."""
    return LogLines(lines=here.logs(here.fleet.get(agent_id), lines))


@router.get(f"{ONE}/events")
def events(agent_id: AgentId, here: Here, *, limit: Limit = PAGE) -> list[EventView]:
    """What happened to an agent, newest first; also to one that was removed."""
    found = here.fleet.events(agent_id, limit=limit)
    if not found:
        raise AgentNotFound(agent_id)
    return [EventView.of(event) for event in found]


@router.get(f"{ONE}/commands")
def commands(agent_id: AgentId, here: Here, *, limit: Limit = PAGE) -> list[CommandView]:
    """What an agent was told, and what came of it, newest first."""
    here.fleet.get(agent_id)
    return [CommandView.of(command) for command in here.fleet.commands(agent_id, limit=limit)]


@router.get(f"{ONE}/summaries")
def summaries(agent_id: AgentId, here: Here, *, limit: Limit = PAGE) -> list[SummaryView]:
    """What an agent gathered, word for word, newest first."""
    here.fleet.get(agent_id)
    return [SummaryView.of(summary) for summary in here.fleet.summaries(agent_id, limit=limit)]


def _draining(given: Draining) -> CommandParams:
    return CommandParams(reason=given.reason, drain_timeout_s=given.drain_timeout_s)


def _told(answer: CommandResponse, here: Services, response: Response) -> CommandResponse:
    if answer.result.get("state") in MOVING:
        response.status_code = status.HTTP_202_ACCEPTED
    return answer.model_copy(update={"timestamp": utc(here.clock.now())})
