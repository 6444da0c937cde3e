"""The rolling restart of a type of agents as a workflow; law: an agent's restart is its ordinary command, its health is what it answers itself.

Nothing here knows a process: each agent drains, ends and starts through its own supervisor. What may run twice looks first whether it was done.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

from orchestrator import activity, workflow
from orchestrator.core import patience, rolling
from orchestrator.core.rolling import Gate, Plan, Progress
from orchestrator.errors import AgentNotFound, ApplicationError, FleetError
from orchestrator.rolling_restarts import STOPPED, WORKFLOW, of_type
from schemas.agents import AgentStatus, Health
from schemas.messages import CommandName, CommandParams, ErrorCode
from workers.supervision import present

ACT_S = timedelta(seconds=60)
LOOK_FIRST_S = 0.25
LOOK_MAX_S = 5.0


@workflow.defn(name=WORKFLOW)
class RollingRestart:
    """Restarts the agents of a type, so many at a time, and stops at the first that does not become healthy."""

    def __init__(self) -> None:
        self.state = Progress()

    @workflow.query
    def progress(self) -> Progress:
        """How far it is."""
        return self.state

    @workflow.run
    async def run(self, plan: Plan) -> Progress:
        """Go through all; fails with the progress as its details."""
        self.state = await workflow.execute_activity(members, plan.agent_type, start_to_close_timeout=ACT_S)
        await asyncio.gather(*(self._go(plan) for _ in range(plan.at_a_time)))
        if self.state.failed:
            told = "; ".join(f"{agent_id}: {why}" for agent_id, why in self.state.failed.items())
            raise ApplicationError(told, self.state, type=STOPPED, non_retryable=True)
        return self.state

    async def _go(self, plan: Plan) -> None:
        while (agent_id := self.state.begin()) is not None:
            self.state.end(agent_id, *await self._restart(agent_id, plan))

    async def _restart(self, agent_id: str, plan: Plan) -> tuple[Gate, str]:
        since = workflow.time()
        told = await workflow.execute_activity(tell_to_restart, args=[agent_id, plan, since], start_to_close_timeout=ACT_S)
        if told.gate is not Gate.AWAIT:
            return told.gate, told.why
        deadline, pause_s = workflow.time() + told.drain_s + plan.healthy_within_s, LOOK_FIRST_S
        while True:
            seen = await workflow.execute_activity(look_at, args=[agent_id, since], start_to_close_timeout=ACT_S)
            if seen.gate is not Gate.AWAIT:
                return seen.gate, seen.why
            if workflow.time() >= deadline:
                return Gate.FAILED, f"not healthy within {plan.healthy_within_s:g} s: {seen.why}"
            await workflow.sleep(pause_s)
            pause_s = min(pause_s * 2, LOOK_MAX_S)


@activity.defn(name="orchestrator.rolling_restart.members")
def members(agent_type: str) -> Progress:
    """Who is to be restarted, and who is left alone and why."""
    progress = Progress()
    for agent in of_type(present().fleet, agent_type):
        if agent.status in rolling.RESTARTABLE:
            progress.waiting.append(agent.id)
        else:
            progress.left[agent.id] = f"it was {agent.status} from the start"
    return progress


@activity.defn(name="orchestrator.rolling_restart.tell")
def tell_to_restart(agent_id: str, plan: Plan, since: float) -> rolling.Seen:
    """Give one agent its command, unless it was given before."""
    fleet, settings = present().fleet, present().settings
    agent = fleet.find(agent_id)
    if agent is None or agent.status not in rolling.RESTARTABLE | {AgentStatus.STOPPING, AgentStatus.STARTING}:
        gate, why = rolling.judge(agent, since=since)
        return rolling.Seen(gate, why)
    drain_s = patience.drain_s(agent.spec, settings)
    if agent.status in rolling.RESTARTABLE and not rolling.renewed(agent, since=since):
        reason = plan.reason or f"rolling restart of {plan.agent_type} by {plan.actor}"
        try:
            fleet.command(agent_id, CommandName.RESTART, CommandParams(reason=reason), actor=plan.actor)
        except AgentNotFound:
            return rolling.Seen(Gate.LEFT, "it is not in the fleet any more")
        except FleetError as error:
            if error.code is not ErrorCode.INVALID_TRANSITION:  # else somebody was quicker, and the gate sees what came of it
                raise
    return rolling.Seen(Gate.AWAIT, "", drain_s)


@activity.defn(name="orchestrator.rolling_restart.look")
def look_at(agent_id: str, since: float) -> rolling.Seen:
    """What its row says, and when that is well, what it says itself."""
    here = present()
    agent = here.fleet.find(agent_id)
    gate, why = rolling.judge(agent, since=since)
    if gate is Gate.WELL and agent is not None:
        try:
            answer = here.reach.agent(agent, "health")
        except FleetError as error:
            return rolling.Seen(Gate.AWAIT, error.message)
        if answer.get("health") == Health.DEGRADED:
            return rolling.Seen(Gate.AWAIT, f"it is degraded: {answer.get('reason') or 'it does not say why'}")
    return rolling.Seen(gate, why)
