"""Starting the rolling restart of a type, and seeing how far it is; law: one at a time for each type, and it is a run like any other.

The workflow itself is `workers.rolling_restart`; its run has the id `rolling:<type>`, so `orchestrator workflow cancel` and the rest know it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.client import Client
from orchestrator.core.rolling import RESTARTABLE, Plan, Progress
from orchestrator.errors import ApplicationError, FleetError, WorkflowFailure, WorkflowNotFound
from orchestrator.fleet import Fleet
from orchestrator.handle import WorkflowHandle
from orchestrator.store.agents import AGENTS_PAGE_MAX
from schemas.agents import Agent, AgentFilter
from schemas.codes import ErrorCode
from schemas.runs import Status

WORKFLOW = "orchestrator.rolling_restart"
STOPPED = "RollingRestartStopped"
"""The type of the error with which it ends when an agent has not become healthy."""


@dataclass(frozen=True, slots=True)
class RollingRestartState:
    """How a rolling restart stands; `reason` says why it has stopped before its end."""

    workflow_id: str
    run_id: str
    status: Status
    progress: Progress
    reason: str = ""


def workflow_id(agent_type: str) -> str:
    """The id of the rolling restart of a type."""
    return f"rolling:{agent_type}"


def start(fleet: Fleet, client: Client, plan: Plan) -> WorkflowHandle[Progress]:
    """Begin. Raises FleetError (not_found, invalid_transition) if there is nobody to restart, WorkflowAlreadyStarted if one is under way."""
    if not any(agent.status in RESTARTABLE for agent in _known(fleet, plan.agent_type)):
        message = f"no agent of type {plan.agent_type!r} runs, so there is nothing to restart"
        raise FleetError(message, code=ErrorCode.INVALID_TRANSITION)
    return client.start_workflow(WORKFLOW, plan, id=workflow_id(plan.agent_type), queue=fleet.settings.fleet_queue)


def look(fleet: Fleet, client: Client, agent_type: str, *, timeout_s: float) -> RollingRestartState:
    """The state of the latest one of a type. Raises FleetError (not_found) if there was none, QueryFailed if no worker answers in time."""
    handle = client.get_handle(workflow_id(agent_type))
    try:
        run = handle.describe()
    except WorkflowNotFound:
        list(_known(fleet, agent_type))
        raise FleetError(f"the agents of type {agent_type!r} have had no rolling restart", code=ErrorCode.NOT_FOUND) from None
    if run.status is Status.RUNNING:
        found = handle.query("progress", timeout=timeout_s)
        return RollingRestartState(run.workflow_id, run.run_id, run.status, _progress(found))
    try:
        return RollingRestartState(run.workflow_id, run.run_id, run.status, _progress(handle.result(timeout=timeout_s)))
    except WorkflowFailure as failure:
        progress, reason = explained(failure)
        return RollingRestartState(run.workflow_id, run.run_id, run.status, progress, reason)


def explained(failure: WorkflowFailure) -> tuple[Progress, str]:
    """How far one came that did not come to its end, as far as it says, and why."""
    cause = failure.cause
    if isinstance(cause, ApplicationError) and cause.type == STOPPED:
        return _progress(cause.details[0]), str(cause)
    return Progress(), failure.message


def of_type(fleet: Fleet, agent_type: str) -> Iterator[Agent]:
    """All agents of a type, by id."""
    offset = 0
    while page := fleet.list_agents(AgentFilter(type=agent_type, limit=AGENTS_PAGE_MAX, offset=offset)):
        yield from page
        offset += len(page)


def _known(fleet: Fleet, agent_type: str) -> list[Agent]:
    """The agents of a type; raises FleetError (not_found) with the types that there are if there is none."""
    found = list(of_type(fleet, agent_type))
    if not found:
        types = sorted({agent.spec.type for agent in fleet.list_agents(AgentFilter(limit=AGENTS_PAGE_MAX))})
        known = f"; there are {', '.join(types)}" if types else "; the fleet is empty"
        raise FleetError(f"there is no agent of type {agent_type!r}{known}", code=ErrorCode.NOT_FOUND)
    return found


def _progress(found: object) -> Progress:
    """As a caller of a workflow by its name gets it: plain JSON."""
    return found if isinstance(found, Progress) else Progress(**found)  # type: ignore[arg-type] # the fields of a Progress
