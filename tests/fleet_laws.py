"""The laws of the fleet, as anybody can check them in a database at rest: states follow the table, works have one result, processes one agent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.core import machines
from orchestrator.core.machines import Trigger
from orchestrator.reports import SUPERVISION, supervision_id
from orchestrator.store import Store, Transaction, agents, works
from orchestrator.works import WORKFLOW
from schemas.agents import Agent, AgentEvent, AgentFilter, AgentKind, AgentStatus, Work
from schemas.runs import Status
from tests.laws import LawBroken, Run, check_laws
from workers import vitals

ALIVE = frozenset({AgentStatus.RUNNING, AgentStatus.PAUSED, AgentStatus.INACTIVE})
STILL = frozenset({AgentStatus.STOPPED, AgentStatus.ERROR})
WAITING = frozenset({AgentStatus.STARTING, AgentStatus.STOPPING})


@dataclass(frozen=True, slots=True)
class Found:
    """What is in the store."""

    agents: list[Agent]
    events: dict[str, list[AgentEvent]]  # oldest first
    works: list[Work]


def check_fleet_laws(store: Store, *, here: bool = True) -> None:
    """Assert all laws of the fleet, and those of runs; `here`: the processes of the agents are on this machine, and are looked for."""
    runs = check_laws(store, orphans=True)
    with store.transaction(readonly=True) as tx:
        found = _read(tx)
    complaints = [
        f"agent {agent.id} ({agent.status}): {what}" for agent in found.agents for what in _of_agent(agent, found, runs, here=here)
    ]
    complaints += [
        f"work {work.request_id} of {work.agent_id or work.agent_type}: {what}" for work in found.works for what in _of_work(work, runs)
    ]
    if complaints:
        raise LawBroken("\n".join(complaints[:40]))


def _read(tx: Transaction) -> Found:
    fleet = agents.list_agents(tx, AgentFilter(limit=agents.AGENTS_PAGE_MAX))
    events = {agent.id: list(reversed(agents.events(tx, agent.id, limit=agents.EVENTS_PAGE_MAX))) for agent in fleet}
    known = [works.get(tx, request_id) for (request_id,) in tx.run("SELECT request_id FROM works ORDER BY request_id")]
    return Found(fleet, events, [work for work in known if work is not None])


def _of_agent(agent: Agent, found: Found, runs: list[Run], *, here: bool) -> Iterator[str]:
    yield from _of_events(agent, found.events[agent.id])
    yield from _of_process(agent, here=here)
    if agent.status in WAITING:
        supervisors = [run for run in runs if run.workflow_id == supervision_id(agent.id) and run.open]
        if [run.type for run in supervisors] != [SUPERVISION]:
            yield f"nobody, or more than one, waits for it: {len(supervisors)} open supervisors"


def _of_events(agent: Agent, events: list[AgentEvent]) -> Iterator[str]:
    """Each change begins where the last one ended and is in the table; the last one ended where the agent stands."""
    status = AgentStatus.STOPPED
    for event in events:
        if event.before is None or event.after is None:
            continue
        if event.before is not status:
            yield f"event {event.id} ({event.trigger}) begins at {event.before}, the last one ended at {status}"
        allowed = machines.AGENT[event.before].get(Trigger(event.trigger))
        paused = Trigger(event.trigger) in machines.RETURNS and event.after is AgentStatus.PAUSED
        if event.after is not allowed and not paused:
            yield f"event {event.id}: {event.trigger} leads from {event.before} to {allowed}, not to {event.after}"
        status = event.after
    if status is not agent.status:
        yield f"its events end at {status}"


def _of_process(agent: Agent, *, here: bool) -> Iterator[str]:
    """Who is there has a process that the row names; who stands still has none."""
    if agent.status in STILL and agent.pid:
        yield f"it stands still, and its row names process {agent.pid}"
    if agent.status not in ALIVE or (agent.spec.kind is AgentKind.HTTP and not agent.keeper):
        return
    if not agent.pid or not agent.node:
        yield "it runs, and its row names no process"
    elif here and agent.status is not AgentStatus.INACTIVE:
        began = vitals.process_started_at(agent.pid)
        if began is None or abs(began - (agent.pid_started_at or 0.0)) >= 1.0:
            yield f"its row names process {agent.pid}, which is another one or gone"


def _of_work(work: Work, runs: list[Run]) -> Iterator[str]:
    """A work has one run; that is over if and only if there is a result, and the result of the run is that of the work."""
    mine = [run for run in runs if run.workflow_id == works.RUN_PREFIX + work.request_id]
    if [run.type for run in mine] != [WORKFLOW]:
        yield f"it has {len(mine)} runs"
        return
    (run,) = mine
    if run.status is Status.COMPLETED and work.result is None:
        yield "its run is over, and it has no result"
    if work.result is not None:
        if work.result.status == "success" and work.executions < 1:
            yield "it succeeded, and nobody has begun it"
        if not (work.accepted_at <= (work.started_at or work.accepted_at) <= (work.completed_at or 0.0)):
            yield f"it was accepted at {work.accepted_at}, begun at {work.started_at}, done at {work.completed_at}"
        if work.result.request_id is not None and str(work.result.request_id) != work.request_id:
            yield f"its result is that of {work.result.request_id}"
