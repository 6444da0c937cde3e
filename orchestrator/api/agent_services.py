"""Services of others as agents: they register, say that they live, are called, and go; law: what a service answers is passed on as it is."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response
from fastapi.responses import JSONResponse

from orchestrator.api.agents import UnderWay, order
from orchestrator.api.bodies import LogLines
from orchestrator.api.fleet_bodies import (
    Action,
    AgentId,
    AgentStanding,
    Execute,
    Registered,
    Registration,
    ServiceView,
    SignOfLife,
    Unregistered,
    Unregistration,
)
from orchestrator.api.guard import router as guarded
from orchestrator.api.proxy import address
from orchestrator.api.services import Caller, Here, Services
from orchestrator.api.works import ACCEPTED, RequestId, Wait, executed
from orchestrator.core import patience
from orchestrator.errors import FleetError
from orchestrator.fleet import as_service
from orchestrator.logs import LINES_MAX, LINES_SHOWN
from schemas.agents import Agent, AgentFilter, AgentKind, AgentStatus, Heartbeat
from schemas.messages import CommandName, CommandParams, CommandResponse

PREFIX = "/api/agent-services"
ONE = f"{PREFIX}/{{agent_id}}"
LIST_MAX = 1000

router = guarded(tags=["agent services"])


@router.post(f"{PREFIX}/register")
def register(given: Registration, here: Here, request: Request) -> Registered:
    """A service says where it answers. It may do so again at any time; if it says nothing for `ttlSeconds` it leaves the registry."""
    request.state.target = f"agent:{given.id}"
    agent = here.fleet.register_service(given.id, given.serviceUrl, given.metadata)
    return Registered(id=agent.id, registered_at=agent.registered_at, ttlSeconds=_ttl_s(here, agent))


@router.post(f"{PREFIX}/heartbeat")
def heartbeat(given: SignOfLife, here: Here) -> Registered:
    """A service says that it lives. 404: it is not known here, and should register; 409: the id is that of an agent of another kind."""
    work = () if given.current_task is None else (given.current_task,)
    as_service(here.fleet.get(given.id))
    here.fleet.record_heartbeats([Heartbeat(given.id, 0.0, status=given.status, current_work=work, metrics=given.metrics)])
    agent = here.fleet.get(given.id)
    return Registered(id=agent.id, registered_at=agent.registered_at, ttlSeconds=_ttl_s(here, agent))


@router.post(f"{PREFIX}/unregister")
def unregister(given: Unregistration, here: Here, request: Request) -> Unregistered:
    """A service says that it goes."""
    request.state.target = f"agent:{given.id}"
    here.fleet.unregister_service(given.id)
    return Unregistered(id=given.id)


@router.get(PREFIX)
def list_(here: Here) -> list[ServiceView]:
    """The services in the registry, those that drain, and those of configuration files that never managed to register."""
    found = here.fleet.list_agents(AgentFilter(limit=LIST_MAX))
    return [ServiceView.of(agent, _address(agent)) for agent in found if _listed(agent)]


@router.get(ONE)
def show(agent_id: AgentId, here: Here) -> ServiceView:
    """One service."""
    agent = here.fleet.get(agent_id)
    return ServiceView.of(agent, _address(agent))


@router.get(f"{ONE}/status")
def status(agent_id: AgentId, here: Here) -> AgentStanding:
    """Where a service stands."""
    return AgentStanding.of(here.fleet.get(agent_id))


@router.get(f"{ONE}/info")
def info(agent_id: AgentId, here: Here) -> Response:
    """What a service says of itself; of our own agents, what is known."""
    agent = here.fleet.get(agent_id)
    if agent.spec.kind is AgentKind.HTTP:
        return here.proxy.get(agent, "/info")
    about = agent.spec.metadata
    known = {"id": agent.id, "name": agent.spec.title, "defaultModel": about.get("defaultModel"), "metadata": about}
    return JSONResponse(known | {"capabilities": agent.capabilities, "version": agent.spec.version})


@router.get(f"{ONE}/logs")
def logs(agent_id: AgentId, here: Here, *, lines: Annotated[int, Query(ge=1, le=LINES_MAX)] = LINES_SHOWN) -> LogLines:
    """The last lines that a service has logged."""
    return LogLines(lines=here.logs(here.fleet.get(agent_id), lines))


@router.post(f"{ONE}/execute", responses=ACCEPTED)
def execute(agent_id: AgentId, wanted: Execute, here: Here, caller: Caller, *, request_id: RequestId = None, wait: Wait = None) -> Response:
    """Have a service do a work; its status and body are passed on."""
    return executed(here, caller, agent_id, wanted, request_id=request_id, wait=wait)


@router.post(f"{ONE}/action", responses=UnderWay)
def action(agent_id: AgentId, wanted: Action, here: Here, caller: Caller, response: Response) -> CommandResponse:
    """Tell a service something; the answer shows where it stands now."""
    return order(here, caller, response, agent_id, CommandName(wanted.action), CommandParams())


def _listed(agent: Agent) -> bool:
    waiting = agent.discovery == "config" and agent.registered_at is None and bool(_address(agent))
    return agent.registered or agent.status is AgentStatus.STOPPING or waiting


def _address(agent: Agent) -> str:
    try:
        return address(agent)
    except FleetError:
        return ""


def _ttl_s(here: Services, agent: Agent) -> float:
    return patience.registry_ttl_s(agent.spec, here.settings)
