"""`orchestrator agent …`: the fleet from a shell; law: one call of the service each, its error is the answer, and every act is audited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator import logs as agent_logs
from orchestrator import settings as settings_module
from orchestrator.auditing import audited
from orchestrator.clock import SYSTEM
from orchestrator.commands.printing import AsJson, actor, compact, duration, moment, out, put, put_json, put_table
from orchestrator.errors import FleetError, InvalidArgument
from orchestrator.fleet import Fleet
from orchestrator.store import Store
from schemas.agents import Agent, AgentEvent, AgentFilter, AgentStatus, Health
from schemas.codes import ErrorCode
from schemas.history import Json
from schemas.messages import CommandName, CommandParams, CommandResponse

LIST_MAX = 1000
LOOK_EVERY_S = 1.0
FOLLOW_S = 0.3
EVENTS_SHOWN = 10

_STYLES = {
    AgentStatus.RUNNING: "green",
    AgentStatus.PAUSED: "yellow",
    AgentStatus.STARTING: "cyan",
    AgentStatus.STOPPING: "cyan",
    AgentStatus.STOPPED: "dim",
    AgentStatus.ERROR: "bold red",
    AgentStatus.INACTIVE: "red",
}
_COLUMNS = ("id", "type", "kind", "status", "health", "heard", "works", "cpu", "memory", "reason")
_LEVEL_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red", "DEBUG": "dim"}

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The fleet: who is in it, how they do, and what they are told.")

AgentId = Annotated[str, typer.Argument(metavar="ID", help="The agent.")]
Why = Annotated[str, typer.Option("--reason", help="Why; it is kept with what happens.")]
Drain = Annotated[float | None, typer.Option("--drain", help="Seconds it may take to finish what it has.", min=0)]
_NUMBERS = {"ignore_unknown_options": True}  # -1 is a number


# --- looking -------------------------------------------------------------------------------------------------------------------


@app.command("list")
def list_(
    *,
    status: Annotated[AgentStatus | None, typer.Option(help="Only those that stand there.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Only those of this type.")] = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on looking, each second, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """List agents. With --watch the table lives; with --json as well, each look is one line."""
    wanted = AgentFilter(status=status, type=type_, limit=LIST_MAX)
    with Fleet() as fleet:
        if not watch:
            _put_agents(fleet.list_agents(wanted), as_json=as_json)
            return
        try:
            _watch(lambda: fleet.list_agents(wanted), as_json=as_json)
        except KeyboardInterrupt:
            return


@app.command()
def show(agent_id: AgentId, *, as_json: AsJson = False) -> None:
    """All that is known about an agent, and what happened to it last."""
    with Fleet() as fleet:
        agent, events = fleet.get(agent_id), fleet.events(agent_id, limit=EVENTS_SHOWN)
    if as_json:
        put_json({**_facts(agent), "events": [asdict(event) for event in events]})
        return
    put_table(("", ""), [(name, value) for name, value in _rows(agent) if str(value) not in {"", "{}"}], empty="")
    put("")
    put_table(("at", "what", "from", "to", "reason"), map(_event, events), empty="nothing has happened to it yet")


@app.command()
def logs(
    agent_id: AgentId,
    *,
    lines: Annotated[
        int, typer.Option("-n", "--lines", help="How many, at most.", min=1, max=agent_logs.LINES_MAX)
    ] = agent_logs.LINES_SHOWN,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on, until Ctrl-C.")] = False,
    as_json: AsJson = False,
) -> None:
    """The last lines of an agent's log on this machine."""
    settings = settings_module.current()
    with Fleet(settings) as fleet:
        fleet.get(agent_id)
    file = agent_logs.file_of(settings, agent_id)
    if not file.exists() and not follow:
        raise FleetError(f"agent {agent_id!r} has no log on this machine ({file})", code=ErrorCode.NOT_FOUND)
    place = agent_logs.end_of(file)
    for text in agent_logs.tail(file, lines, place.offset if follow else None):
        _put_line(agent_logs.read(text, agent_id), as_json=as_json)
    try:
        for text in agent_logs.following(file, place, SYSTEM, FOLLOW_S) if follow else ():
            _put_line(agent_logs.read(text, agent_id), as_json=as_json)
    except KeyboardInterrupt:
        return


# --- telling -------------------------------------------------------------------------------------------------------------------


@app.command()
def start(agent_id: AgentId, *, reason: Why = "", as_json: AsJson = False) -> None:
    """Start an agent that stands still."""
    _order(agent_id, CommandName.START, CommandParams(reason=reason), as_json=as_json)


@app.command()
def stop(agent_id: AgentId, *, drain: Drain = None, reason: Why = "", as_json: AsJson = False) -> None:
    """Have it take nothing more, finish what it has, and end; or acknowledge its error."""
    _order(agent_id, CommandName.STOP, CommandParams(reason=reason, drain_timeout_s=drain), as_json=as_json)


@app.command()
def restart(agent_id: AgentId, *, drain: Drain = None, reason: Why = "", as_json: AsJson = False) -> None:
    """Stop it and start it again."""
    _order(agent_id, CommandName.RESTART, CommandParams(reason=reason, drain_timeout_s=drain), as_json=as_json)


@app.command()
def pause(agent_id: AgentId, *, reason: Why = "", as_json: AsJson = False) -> None:
    """Have it take nothing more; what it has it finishes."""
    _order(agent_id, CommandName.PAUSE, CommandParams(reason=reason), as_json=as_json)


@app.command()
def resume(agent_id: AgentId, *, reason: Why = "", as_json: AsJson = False) -> None:
    """Have it take work again."""
    _order(agent_id, CommandName.RESUME, CommandParams(reason=reason), as_json=as_json)


@app.command()
def flush(agent_id: AgentId, *, as_json: AsJson = False) -> None:
    """Ask it for the summary of what it has gathered."""
    _order(agent_id, CommandName.FLUSH, CommandParams(), as_json=as_json)


@app.command(context_settings=_NUMBERS)
def scale(
    agent_id: AgentId, delta: Annotated[int, typer.Argument(help="+2: two works more at once; -1: one fewer.")], *, as_json: AsJson = False
) -> None:
    """Have it do more, or fewer, works at once; never fewer than one."""
    _order(agent_id, CommandName.SCALE, CommandParams(delta=delta), as_json=as_json)


@app.command()
def sequence(
    agent_id: AgentId,
    commands: Annotated[list[str], typer.Argument(metavar="COMMAND...", help="stop, flush, shutdown, pause, resume; in this order.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Give a child commands that it acknowledges one by one."""
    try:
        params = CommandParams(sequence=tuple(commands))
    except ValueError:
        raise InvalidArgument(f"a sequence is made of stop, flush, shutdown, pause, resume, not of {' '.join(commands)}") from None
    _order(agent_id, CommandName.SEQUENCE, params, as_json=as_json)


def _order(agent_id: str, command: CommandName, params: CommandParams, *, as_json: bool) -> None:
    settings = settings_module.current()
    given = params.model_dump(exclude_defaults=True, mode="json")
    with (
        Store.of(settings) as store,
        Fleet(settings, store=store) as fleet,
        audited(store, actor=actor(), action=f"agent.{command}", target=f"agent:{agent_id}", params=given),
    ):
        answer = fleet.command(agent_id, command, params, actor=actor())
    if as_json:
        put_json(answer.model_dump(mode="json"))
    else:
        put(f"{agent_id}: {_told(command, answer)}")


def _told(command: CommandName, answer: CommandResponse) -> str:
    result = dict(answer.result)
    state, changed = result.pop("state", ""), result.pop("changed", True)
    parts = [f"is {state}" + ("" if changed else " already")] if state else [f"{command} is done"]
    return ", ".join([*parts, *(f"{name.replace('_', ' ')} {compact(value)}" for name, value in result.items())])


# --- how it looks --------------------------------------------------------------------------------------------------------------


def _put_agents(agents: list[Agent], *, as_json: bool) -> None:
    if as_json:
        put_json([_facts(agent) for agent in agents])
    else:
        put_table(_COLUMNS, map(_row, agents), empty="no agents")


def _watch(look: Callable[[], list[Agent]], *, as_json: bool) -> None:
    if as_json:
        while True:
            put_json([_facts(agent) for agent in look()])
            SYSTEM.sleep(LOOK_EVERY_S)
    with Live(_live(look()), console=out, auto_refresh=False, screen=out.is_terminal) as live:
        while True:
            SYSTEM.sleep(LOOK_EVERY_S)
            live.update(_live(look()), refresh=True)


def _live(agents: list[Agent]) -> Group:
    table = Table(*_COLUMNS, box=None, pad_edge=False, header_style="bold")
    for agent in agents:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in _row(agent)))
    return Group(table, Text(f"{len(agents)} agents at {moment(SYSTEM.now())}; Ctrl-C ends", style="dim"))


def _row(agent: Agent) -> tuple[object, ...]:
    status = Text(agent.status.value, style=_STYLES[agent.status])
    if agent.desired.value not in {agent.status.value, "running"}:
        status.append(f" (to be {agent.desired.value})", style="dim")
    health = Text(agent.health.value, style="red" if agent.health is Health.DEGRADED else "")
    resources = agent.last_resources
    cpu, memory = resources.get("cpu_percent"), resources.get("rss_mb")
    return (
        agent.id,
        agent.spec.type,
        agent.spec.kind.value,
        status,
        health,
        _age(agent.last_heartbeat_at),
        len(agent.current_work),
        "" if cpu is None else f"{float(cpu):.0f} %",
        "" if memory is None else f"{float(memory):,.0f} MB",
        agent.reason,
    )


def _age(at: float | None) -> str:
    return "never" if at is None else f"{duration(max(SYSTEM.now() - at, 0.0))} ago"


def _facts(agent: Agent) -> dict[str, Json]:
    return {"id": agent.id, **asdict(agent), "spec": agent.spec.model_dump(mode="json")}


def _rows(agent: Agent) -> list[tuple[str, object]]:
    status = Text(agent.status.value, style=_STYLES[agent.status])
    return [
        ("id", agent.id),
        ("name", agent.spec.name),
        ("type", f"{agent.spec.type} ({agent.spec.kind.value})"),
        ("status", status),
        ("reason", agent.reason),
        ("desired", agent.desired.value),
        ("registered", f"since {moment(agent.registered_at)}" if agent.registered else "no"),
        ("health", agent.health.value),
        ("heard", _age(agent.last_heartbeat_at)),
        ("works", ", ".join(agent.current_work)),
        ("runs", f"in pid {agent.pid} of {agent.node}" if agent.pid else ""),
        ("address", agent.service_url),
        ("drains until", moment(agent.drain_deadline_at)),
        ("restarts", str(agent.restarts) if agent.restarts else ""),
        ("found by", agent.discovery),
        ("capabilities", compact(agent.capabilities)),
        ("metrics", compact(agent.last_metrics)),
        ("machine", compact(agent.last_resources)),
        ("summary", _age(agent.last_summary_at) if agent.last_summary_at else ""),
        ("meta", compact(agent.meta)),
    ]


def _event(event: AgentEvent) -> tuple[str, ...]:
    return moment(event.at), event.trigger, event.before or "", event.after or "", event.reason


def _put_line(line: dict[str, Json], *, as_json: bool) -> None:
    if as_json:
        put_json(line)
        return
    level = str(line.get("level", ""))
    text = Text.assemble((f"{line.get('ts', '')} ", "dim"), (f"{level:<8} ", _LEVEL_STYLES.get(level, "")), str(line.get("message", "")))
    out.print(text)
