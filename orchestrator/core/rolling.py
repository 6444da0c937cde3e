"""A rolling restart: who is next, who is well again, and whether to go on; pure; law: at most so many are away at once, and none after one that failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from schemas.agents import Agent, AgentStatus, DesiredState, Health

AT_A_TIME_MAX = 100
HEALTHY_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What somebody wants: all agents of a type restarted, `at_a_time` of them at once."""

    agent_type: str
    actor: str
    at_a_time: int = 1
    healthy_within_s: float = HEALTHY_WITHIN_S  # beyond the time that an agent may drain
    reason: str = ""


class Gate(StrEnum):
    """What a look at an agent says."""

    AWAIT = "await"
    WELL = "well"  # it was restarted, runs, and is healthy
    FAILED = "failed"
    LEFT = "left"  # it is no part of this any more


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at one agent found; `drain_s` is what it may take to finish what it has."""

    gate: Gate
    why: str = ""
    drain_s: float = 0.0


@dataclass(slots=True)
class Progress:
    """How far a rolling restart is; agents by id."""

    waiting: list[str] = field(default_factory=list)
    under_way: list[str] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)  # with the reason why they were left alone
    failed: dict[str, str] = field(default_factory=dict)

    def begin(self) -> str | None:
        """The agent to restart next; None when nobody is left, or somebody failed."""
        if self.failed or not self.waiting:
            return None
        agent_id = self.waiting.pop(0)
        self.under_way.append(agent_id)
        return agent_id

    def end(self, agent_id: str, gate: Gate, why: str) -> None:
        """Enter what became of one."""
        self.under_way.remove(agent_id)
        match gate:
            case Gate.WELL:
                self.restarted.append(agent_id)
            case Gate.LEFT:
                self.left[agent_id] = why
            case _:
                self.failed[agent_id] = why


STANDING: Mapping[AgentStatus, Gate] = {
    AgentStatus.RUNNING: Gate.WELL,
    AgentStatus.PAUSED: Gate.WELL,  # it was paused before, and has come back so
    AgentStatus.STARTING: Gate.AWAIT,
    AgentStatus.STOPPING: Gate.AWAIT,
    AgentStatus.STOPPED: Gate.FAILED,
    AgentStatus.ERROR: Gate.FAILED,
    AgentStatus.INACTIVE: Gate.FAILED,
}
"""What the state of an agent means once it was told to restart, provided that it has a new process and is healthy."""

RESTARTABLE = frozenset({AgentStatus.RUNNING, AgentStatus.PAUSED})
"""Whom a rolling restart restarts. Who stands still starts with the new code anyway; who is ill is for its operator to see to."""


def judge(agent: Agent | None, *, since: float) -> tuple[Gate, str]:
    """What an agent's row says of its restart that was ordered at `since`, and why."""
    if agent is None:
        return Gate.LEFT, "it is not in the fleet any more"
    if agent.desired is DesiredState.STOPPED:
        return Gate.LEFT, "somebody has stopped it"
    gate = STANDING[agent.status]
    if gate is not Gate.WELL:
        return gate, f"it is {agent.status}" + (f": {agent.reason}" if agent.reason else "")
    if not renewed(agent, since=since):
        return Gate.AWAIT, "it has not begun to restart"
    if agent.health is Health.DEGRADED:
        return Gate.AWAIT, "it is degraded" + (f": {agent.reason}" if agent.reason else "")
    return Gate.WELL, ""


def renewed(agent: Agent, *, since: float) -> bool:
    """Whether it has come up anew since then."""
    return agent.started_at is not None and agent.started_at > since
