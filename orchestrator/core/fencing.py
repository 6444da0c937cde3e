"""Which process an agent is: one of those that may think so; law: of two processes with the same id, the row says which one counts.

A process that was frozen, cut off or started twice may wake up and find that the fleet has given it up, or that a successor stands in its
place. Nobody can forbid it to wake up, so it asks before it goes on, and each work that it begins is begun only if the row still names it
(`store.works.begin`): a fence, as Kleppmann's "How to do distributed locking" (2016) calls it, with the process's identity as its token.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.agents import Agent, AgentStatus, DesiredState

START_TOLERANCE_S = 1.0
"""Start times of processes are rounded by the kernel, and follow its clock."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process for ever: a number is given again, but not with the same start; `node` is the worker that it is."""

    node: str
    pid: int
    started_at: float


class Standing(StrEnum):
    """What the row of an agent says of a process that takes itself for it."""

    CURRENT = "current"
    GIVEN_UP = "given_up"  # the fleet took it for dead, and nobody is in its place: it may say that it is there
    SUPERSEDED = "superseded"  # another one counts, or shall


RETURNABLE = frozenset({AgentStatus.ERROR, AgentStatus.INACTIVE})
"""A process that was given up may come back from here; everywhere else somebody has decided otherwise meanwhile."""


def standing(agent: Agent | None, process: Process) -> Standing:
    """Whether a process that has said once that it is this agent still is."""
    if agent is None:
        return Standing.SUPERSEDED
    if agent.pid:
        return Standing.CURRENT if agent.node == process.node and _same(agent, process) else Standing.SUPERSEDED
    wanted = agent.status in RETURNABLE and agent.desired is not DesiredState.STOPPED
    return Standing.GIVEN_UP if wanted else Standing.SUPERSEDED


def kept(agent: Agent | None, process: Process) -> bool:
    """Whether a process that was started for this agent is still wanted; while an agent is starting, nobody can say yet."""
    if agent is None:
        return False
    return agent.status is AgentStatus.STARTING or (bool(agent.pid) and _same(agent, process))


def _same(agent: Agent, process: Process) -> bool:
    return agent.pid == process.pid and abs((agent.pid_started_at or 0.0) - process.started_at) < START_TOLERANCE_S
