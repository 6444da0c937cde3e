"""The workflow that supervises an agent, and its acts; law: the state is the row's, the process is the supervisor's, each act may run twice.

`Supervision` is told what happens (`orchestrator.reports.Told`), asks the table in `core.supervision` and carries out what follows. An act
reaches the agent through Celery's remote control of the worker that hosts it, or its HTTP service; nobody who answers means that nothing
was done, and the deadline of the phase says what then.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

from celery import Celery

from orchestrator import activity, workflow
from orchestrator.celery import Orchestrator
from orchestrator.core import machines
from orchestrator.core.restarts import RestartPolicy
from orchestrator.core.supervision import Act, Limits, News, Supervised, Tidings, step
from orchestrator.errors import FleetError
from orchestrator.fleet import Fleet
from orchestrator.reports import SUPERVISION, TELL, Told
from orchestrator.store import Transaction, workers
from schemas.agents import Agent, AgentKind
from schemas.messages import CommandName, ErrorCode
from schemas.settings import Settings
from workers.services import Service

log = logging.getLogger("orchestrator.supervision")

ACT_S = timedelta(seconds=60)  # for one try of an act; each waits for one answer, of remote_control_s
UNKNOWN_HOST = "no agent host is there to start it: start a worker with `celery -A orchestrator worker -Q fleet`"


@workflow.defn(name=SUPERVISION)
class Supervision:
    """Sees to one agent for as long as it is in the fleet."""

    def __init__(self) -> None:
        self.mail: list[Told] = []
        self.state = Supervised()

    @workflow.signal(name=TELL)
    def tell(self, told: Told) -> None:
        """Something has happened."""
        self.mail.append(told)

    @workflow.query
    def phase(self) -> str:
        """What it waits for."""
        return self.state.phase.value

    @workflow.run
    async def run(self, agent_id: str, state: Supervised | None = None) -> None:
        """Listen, look up what follows, do it."""
        self.state = state or Supervised()
        limits = await workflow.execute_activity(supervision_limits, agent_id, start_to_close_timeout=ACT_S)
        while True:
            told = await self._news()
            if told.command_id:
                await workflow.execute_activity(carry_out, told.command_id, start_to_close_timeout=ACT_S)
                continue
            self.state, acts = step(self.state, told.tidings(), now=workflow.time(), limits=limits)
            for act in acts:
                await self._do(act, agent_id, limits)
            if Act.FORGET in acts:
                return
            if not self.mail and workflow.info().is_continue_as_new_suggested:
                workflow.continue_as_new(args=[agent_id, self.state])

    async def _news(self) -> Told:
        deadline = self.state.deadline_at
        if not self.mail:  # what has come counts, however late somebody looks
            try:
                left_s = None if deadline is None else max(deadline - workflow.time(), 0.0)
                await workflow.wait_condition(lambda: bool(self.mail), timeout=left_s)
            except TimeoutError:
                return Told(News.LATE.value)
        return self.mail.pop(0)

    async def _do(self, act: Act, agent_id: str, limits: Limits) -> None:
        refused = await workflow.execute_activity(ACTS[act], agent_id, start_to_close_timeout=ACT_S)
        if refused:
            self.state, _ = step(self.state, Tidings(News.REFUSED), now=workflow.time(), limits=limits)


# --- acts ------------------------------------------------------------------------------------------------------------------------


@activity.defn(name="orchestrator.agent.limits")
def supervision_limits(_agent_id: str) -> Limits:
    """How long each phase of an agent may last, by the settings of this worker."""
    settings = present().settings
    policy = RestartPolicy(settings.restarts_max, settings.restart_window_s)
    return Limits(settings.start_timeout_s, settings.terminate_grace_s, policy)


@activity.defn(name="orchestrator.agent.spawn")
def spawn(agent_id: str) -> str:
    """Have its process started by an agent host; return why that is impossible, or nothing."""
    here = present()
    agent = here.fleet.starting(agent_id)
    if agent is None or not launchable(agent):
        return ""  # not to run any more; or somebody else starts it, and it will say that it is ready
    keeper = here.host_for(agent)
    if keeper is None:
        here.fleet.start_failed(agent_id, UNKNOWN_HOST, orphaned=True)
        return UNKNOWN_HOST
    try:
        found = here.reach.node(keeper, "agent_start", {"spec": agent.spec.model_dump(mode="json")})
    except FleetError as error:
        if error.code is ErrorCode.RC_TIMEOUT:
            return ""  # it may yet have been started; if not, the deadline says so
        here.fleet.start_failed(agent_id, error.message)
        return error.message
    here.fleet.launched(
        agent_id,
        keeper=keeper,
        node=str(found.get("node", keeper)),
        pid=int(found["pid"]),
        pid_started_at=float(found.get("pid_started_at", 0.0)),
    )
    return ""


@activity.defn(name="orchestrator.agent.attach")
def attach(agent_id: str) -> str:
    """Give a service that is hosted nowhere a worker that takes its works to it; every other agent has its host."""
    here = present()
    agent = here.fleet.find(agent_id)
    if agent is None or agent.spec.kind is not AgentKind.HTTP or agent.node or not agent.service_url:
        return ""
    node = here.host_for(agent)
    if node is None:
        log.warning("the service of agent %s has no worker yet: %s", agent_id, UNKNOWN_HOST)
        return ""
    here.reach.node(node, "agent_attach", {"spec": agent.spec.model_dump(mode="json"), "service_url": agent.service_url})
    here.fleet.attached(agent_id, node)
    return ""


@activity.defn(name="orchestrator.agent.drain")
def drain(agent_id: str) -> str:
    """Have it take nothing more and finish what it has."""
    return _attempt(agent_id, "drain")


@activity.defn(name="orchestrator.agent.end")
def end(agent_id: str) -> str:
    """Have its process end in good order."""
    return _end(agent_id, forced=False)


@activity.defn(name="orchestrator.agent.end_by_force")
def end_by_force(agent_id: str) -> str:
    """Have its process end at once; what it has not finished goes on elsewhere."""
    return _end(agent_id, forced=True)


@activity.defn(name="orchestrator.agent.kill")
def kill(agent_id: str) -> str:
    """Have its process ended by whoever started it."""
    here = present()
    here.fleet.ending(agent_id, forced=True)
    agent = here.fleet.find(agent_id)
    node = "" if agent is None else agent.keeper or agent.node
    if agent is not None and node:
        here.reach.perhaps(node, "agent_kill", {"id": agent_id})
    return ""


@activity.defn(name="orchestrator.agent.replace")
def replace_process(agent_id: str) -> str:
    """Have it become its own successor."""
    here = present()
    agent = here.fleet.replacing(agent_id)
    if agent is not None:
        here.reach.agent_perhaps(agent, "restart")
    return ""


@activity.defn(name="orchestrator.agent.fail_start")
def fail_start(agent_id: str) -> str:
    """It was not ready in time."""
    here = present()
    here.fleet.start_failed(agent_id, f"start_timeout: not ready within {here.settings.start_timeout_s:g} s")
    return ""


@activity.defn(name="orchestrator.agent.give_up")
def give_up(agent_id: str) -> str:
    """Nobody can say what became of its process."""
    present().fleet.given_up(agent_id)
    return ""


@activity.defn(name="orchestrator.agent.forget")
def forget(agent_id: str) -> str:
    """It was to be removed once it had stopped."""
    present().fleet.forget(agent_id)
    return ""


ACTS: Mapping[Act, Callable[[str], str]] = {
    Act.SPAWN: spawn,
    Act.ATTACH: attach,
    Act.DRAIN: drain,
    Act.END: end,
    Act.END_BY_FORCE: end_by_force,
    Act.KILL: kill,
    Act.REPLACE: replace_process,
    Act.FAIL_START: fail_start,
    Act.GIVE_UP: give_up,
    Act.FORGET: forget,
}


@activity.defn(name="orchestrator.agent.carry_out")
def carry_out(command_id: str) -> None:
    """Carry out a command that an operator waits for: once, in time, and with an answer either way."""
    here = present()
    command = here.fleet.begin_command(command_id)
    if command is None:
        return
    name = CommandName(command.command)
    try:
        agent = here.fleet.get(command.agent_id)
        trigger = machines.order(agent.status, name)
        result = {} if name in machines.ORDERS and trigger is None else here.reach.agent(agent, name.value, command.params)
        here.fleet.end_command(command, trigger, result)
    except FleetError as error:
        here.fleet.fail_command(command_id, error.code, error.message)


def launchable(agent: Agent) -> bool:
    """Whether an agent host can start it; a service without an executable starts itself."""
    return agent.spec.kind is not AgentKind.HTTP or bool(agent.spec.executable or agent.spec.entry_point)


def _attempt(agent_id: str, what: str) -> str:
    here = present()
    agent = here.fleet.find(agent_id)
    if agent is not None:
        here.reach.agent_perhaps(agent, what)
    return ""


def _end(agent_id: str, *, forced: bool) -> str:
    here = present()
    agent = here.fleet.ending(agent_id, forced=forced)
    if agent is not None:
        here.reach.agent_perhaps(agent, "end", {"forced": forced})
    return ""


# --- the way to an agent -----------------------------------------------------------------------------------------------------------


class Reach:
    """Speaks to agents: by remote control of their worker, or by HTTP. Raises FleetError (rc_timeout, agent_unavailable, or as they say)."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._settings = settings

    def agent(self, agent: Agent, command: str, params: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Tell an agent something and return its answer."""
        if agent.node:
            return self.node(agent.node, f"agent_{command}", {"id": agent.id, **(params or {})})
        if agent.service_url:
            return self._service(agent, command, params or {})
        raise FleetError(f"agent {agent.id!r} is not hosted anywhere at present", code=ErrorCode.AGENT_UNAVAILABLE)

    def agent_perhaps(self, agent: Agent, command: str, params: Mapping[str, Any] | None = None) -> None:
        """As `agent`, where a deadline stands for the answer that does not come."""
        try:
            self.agent(agent, command, params)
        except FleetError as error:
            log.warning("agent %s could not be told to %s: %s", agent.id, command, error.message)

    def perhaps(self, node: str, command: str, arguments: Mapping[str, Any]) -> None:
        """As `node`, where a deadline stands for the answer that does not come."""
        try:
            self.node(node, command, arguments)
        except FleetError as error:
            log.warning("worker %s could not be told %s: %s", node, command, error.message)

    def node(self, node: str, command: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Call a remote control command of one worker and return its `ok`."""
        timeout_s = self._settings.remote_control_s
        try:
            replies = self._app.control.broadcast(
                command, arguments=dict(arguments), destination=[node], reply=True, timeout=timeout_s, limit=1
            )
        except Exception as error:
            raise FleetError(f"the broker cannot be reached: {type(error).__name__}: {error}", code=ErrorCode.BROKER_UNAVAILABLE) from error
        answer: Any = next((reply[node] for reply in replies or () if node in reply), None)
        if answer is None:
            raise FleetError(f"worker {node} did not answer {command} within {timeout_s:g} s", code=ErrorCode.RC_TIMEOUT)
        if "ok" in answer:
            return cast("Mapping[str, Any]", answer["ok"] or {})
        code = str(answer.get("error"))
        known = code in set(ErrorCode)
        message = str(answer.get("message") or f"worker {node} could not carry out {command}: {code}")
        raise FleetError(message, code=ErrorCode(code) if known else ErrorCode.EXECUTION_FAILED)

    def _service(self, agent: Agent, command: str, params: Mapping[str, Any]) -> Mapping[str, Any]:
        action = {"drain": "stop", "end": "stop"}.get(command, command)
        with closing(Service(agent.id, agent.service_url, self._settings)) as service:
            return service.act(action, params)


@dataclass(frozen=True, slots=True)
class Place:
    """Where acts happen: a worker of ours."""

    fleet: Fleet
    reach: Reach
    settings: Settings

    def host_for(self, agent: Agent) -> str | None:
        """The agent host that shall start an agent: the one its spec names, else the one with the fewest."""

        def look(tx: Transaction) -> list[str]:
            live = [row.identity for row in workers.list_workers(tx) if not row.expired]
            return [identity.node for identity in live if self.settings.fleet_queue in identity.queues]

        nodes = self.fleet.look(look)
        wanted = agent.spec.host
        if wanted:
            return next((node for node in nodes if wanted in {node, node.partition("@")[2]}), None)
        hosted = [one.keeper or one.node for one in self.fleet.list_agents()]
        return min(nodes, key=lambda node: (hosted.count(node), node), default=None)


_PLACE: list[Place] = []


def serve(orchestrator: Orchestrator) -> None:
    """Let the acts of this process go through this application."""
    fleet = Fleet(orchestrator.settings, store=orchestrator.store, bell=orchestrator.broker, clock=orchestrator.clock)
    _PLACE[:] = [Place(fleet, Reach(orchestrator.app, orchestrator.settings), orchestrator.settings)]


def present() -> Place:
    """The place of this process."""
    assert _PLACE, "a worker serves before it takes acts"
    return _PLACE[0]
