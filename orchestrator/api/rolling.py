"""The rolling restart of a type of agents over HTTP; law: it is a run, so this only begins one and says how far it is."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path, Response, status
from pydantic import BaseModel, Field

from orchestrator import rolling_restarts
from orchestrator.api.fleet_bodies import Why
from orchestrator.api.guard import router as guarded
from orchestrator.api.services import Caller, Here
from orchestrator.core.rolling import AT_A_TIME_MAX, HEALTHY_WITHIN_S, Plan
from orchestrator.rolling_restarts import RollingRestartState
from schemas.agents import ID_PATTERN

ADDRESS = "/api/v1/agent-types/{agent_type}/rolling-restart"
HEALTHY_WITHIN_S_MAX = 86400
ANSWER_S = 10.0

router = guarded(tags=["agents"])

AgentType = Annotated[str, Path(pattern=ID_PATTERN, description="all agents of this type")]


class Rolling(Why):
    """How a type is restarted."""

    at_a_time: int = Field(1, ge=1, le=AT_A_TIME_MAX, strict=True, description="how many may be away at once")
    healthy_within_s: float = Field(
        HEALTHY_WITHIN_S, gt=0, le=HEALTHY_WITHIN_S_MAX, description="besides its drain time, until an agent must be healthy again"
    )


class RollingRestartStarted(BaseModel):
    """The run that does it; `/api/v1/workflows/{workflow_id}` knows it, and can cancel it."""

    workflow_id: str
    run_id: str


class RollingRestartView(RollingRestartStarted):
    """How far it is; agents by id."""

    status: str = Field(description="running, completed, failed, canceled, …")
    reason: str = Field(description="why it stopped before its end")
    waiting: list[str]
    under_way: list[str]
    restarted: list[str]
    left: dict[str, str] = Field(description="agents that were left alone, and why")
    failed: dict[str, str] = Field(description="agents that did not become healthy, and why")

    @classmethod
    def of(cls, state: RollingRestartState) -> RollingRestartView:
        """For people outside."""
        found = state.progress
        return cls(
            workflow_id=state.workflow_id,
            run_id=state.run_id,
            status=state.status.value,
            reason=state.reason,
            waiting=found.waiting,
            under_way=found.under_way,
            restarted=found.restarted,
            left=found.left,
            failed=found.failed,
        )


@router.post(ADDRESS, status_code=status.HTTP_202_ACCEPTED)
def begin(agent_type: AgentType, here: Here, caller: Caller, response: Response, given: Rolling = Rolling()) -> RollingRestartStarted:
    """Restart all agents of a type, some at a time; it stops at the first that does not become healthy. One at a time for each type."""
    plan = Plan(agent_type, caller.actor, given.at_a_time, given.healthy_within_s, given.reason)
    handle = rolling_restarts.start(here.fleet, here.client, plan)
    response.headers["Location"] = ADDRESS.format(agent_type=agent_type)
    return RollingRestartStarted(workflow_id=handle.id, run_id=handle.run_id or "")


@router.get(ADDRESS)
def show(agent_type: AgentType, here: Here) -> RollingRestartView:
    """How far the latest rolling restart of a type is, or how it ended."""
    with here.patience(ANSWER_S) as seconds:
        return RollingRestartView.of(rolling_restarts.look(here.fleet, here.client, agent_type, timeout_s=seconds))
