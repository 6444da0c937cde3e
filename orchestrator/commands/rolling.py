"""`orchestrator agent rolling-restart`; law: what it shows while it waits is the run's own progress, and Ctrl-C ends the looking, not the restart."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator import rolling_restarts
from orchestrator import settings as settings_module
from orchestrator.auditing import audited
from orchestrator.client import Client
from orchestrator.clock import SYSTEM
from orchestrator.commands.printing import AsJson, actor, notes, put, put_json
from orchestrator.core.rolling import AT_A_TIME_MAX, HEALTHY_WITHIN_S, Plan, Progress
from orchestrator.errors import QueryFailed
from orchestrator.fleet import Fleet
from orchestrator.rolling_restarts import RollingRestartState
from orchestrator.store import Store
from schemas.runs import Status

LOOK_EVERY_S = 0.5
ANSWER_S = 10.0
STOPPED_EARLY = 1


def rolling_restart(
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="The type whose agents are restarted.")],
    *,
    at_a_time: Annotated[int, typer.Option("--at-a-time", help="How many may be away at once.", min=1, max=AT_A_TIME_MAX)] = 1,
    healthy_within: Annotated[
        float, typer.Option("--healthy-within", help="Seconds, besides its drain time, until an agent must be healthy again.", min=0.1)
    ] = HEALTHY_WITHIN_S,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is kept with what happens.")] = "",
    wait: Annotated[bool, typer.Option(help="Wait for the end and show each agent; --no-wait: only begin.")] = True,
    as_json: AsJson = False,
) -> None:
    """Restart all agents of a type, some at a time; stop at the first that does not become healthy."""
    settings = settings_module.current()
    plan = Plan(type_, actor(), at_a_time, healthy_within, reason)
    given = {"at_a_time": at_a_time, "healthy_within_s": healthy_within, "reason": reason}
    with Store.of(settings) as store, Fleet(settings, store=store) as fleet, Client(settings=settings, store=store) as client:
        with audited(store, actor=plan.actor, action="agent.rolling_restart", target=f"type:{type_}", params=given):
            handle = rolling_restarts.start(fleet, client, plan)
        if not wait:
            _put_begun(handle.id, handle.run_id or "", as_json=as_json)
            return
        try:
            state = _watch(fleet, client, type_, quiet=as_json)
        except KeyboardInterrupt:
            notes.print(f"It goes on: `orchestrator workflow show {handle.id}`; `orchestrator workflow cancel {handle.id}` stops it.")
            raise
    _put_end(state, as_json=as_json)
    if state.status is not Status.COMPLETED:
        raise typer.Exit(STOPPED_EARLY)


def _watch(fleet: Fleet, client: Client, agent_type: str, *, quiet: bool) -> RollingRestartState:
    told: set[str] = set()
    complained = False
    while True:
        try:
            state = rolling_restarts.look(fleet, client, agent_type, timeout_s=ANSWER_S)
        except QueryFailed as error:
            if not complained:
                notes.print(f"no agent host answers yet, it goes on when there is one: {error.message}")
            complained = True
            continue
        if not quiet:
            _tell(state.progress, told)
        if state.status is not Status.RUNNING:
            return state
        SYSTEM.sleep(LOOK_EVERY_S)


def _tell(progress: Progress, told: set[str]) -> None:
    """A line for each agent that has come to its end since the last look."""
    done = len(progress.restarted)
    count = done + len(progress.failed) + len(progress.under_way) + len(progress.waiting)
    news = {**dict.fromkeys(progress.restarted, "restarted"), **{id_: f"left alone: {why}" for id_, why in progress.left.items()}}
    news |= {id_: f"failed: {why}" for id_, why in progress.failed.items()}
    for agent_id, what in news.items():
        if agent_id not in told:
            told.add(agent_id)
            place = f"  ({done} of {count})" if what == "restarted" else ""
            put(f"{agent_id}: {what}{place}")


def _put_begun(workflow_id: str, run_id: str, *, as_json: bool) -> None:
    if as_json:
        put_json({"workflow_id": workflow_id, "run_id": run_id})
    else:
        put(f"begun: orchestrator workflow show {workflow_id}")


def _put_end(state: RollingRestartState, *, as_json: bool) -> None:
    if as_json:
        put_json(asdict(state))
    elif state.status is Status.COMPLETED:
        put(f"all {len(state.progress.restarted)} agents were restarted and are healthy")
    else:
        untouched = [*state.progress.under_way, *state.progress.waiting]
        rest = f"; not restarted: {', '.join(untouched)}" if untouched else ""
        notes.print(f"stopped ({state.status}): {state.reason}{rest}", style="red", markup=False)
