"""Which agent a work with requirements goes to; law: pure, judged by what agents' hosts measured last, and better refused than misplaced."""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.core.machines import REFUSALS
from schemas.agents import Agent
from schemas.messages import Requirements


def accepts(agent: Agent) -> bool:
    """Whether an agent takes work now."""
    return agent.status not in REFUSALS and agent.registered


def fits(agent: Agent, wanted: Requirements) -> bool:
    """Whether an agent's machine had enough free; what was never measured counts as nothing free."""
    free = agent.last_resources
    if wanted.min_free_mem_mb is not None and float(free.get("free_mem_mb") or 0.0) < wanted.min_free_mem_mb:
        return False
    if wanted.gpu_vram_mb is not None and float(free.get("gpu_vram_available_mb") or 0.0) < wanted.gpu_vram_mb:
        return False
    return wanted.max_load is None or ("load" in free and float(free["load"]) <= wanted.max_load)


def choose(agents: Iterable[Agent], wanted: Requirements) -> Agent | None:
    """The agent that takes it: of those that accept and fit the one with the least to do, then the least load; None if there is none."""
    fitting = [agent for agent in agents if accepts(agent) and fits(agent, wanted)]
    return min(fitting, key=_business, default=None)


def _business(agent: Agent) -> tuple[float, float, str]:
    return len(agent.current_work) / agent.spec.concurrency, float(agent.last_resources.get("load") or 0.0), agent.id
