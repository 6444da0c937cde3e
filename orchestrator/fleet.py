"""The fleet as a service: who is in it, what it is told, what it reports; law: a change and the word to its supervisor are one transaction.

`Fleet` is what the API, the command line, agent hosts and beat use; what the latter two tell it is in `reports`. The state of an agent changes
in `store.agents.change` only; acts on processes are the supervising workflow's (`workers.supervision`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.clock import utc
from orchestrator.core import machines, patience
from orchestrator.core.machines import Trigger
from orchestrator.core.supervision import News
from orchestrator.errors import FleetError
from orchestrator.reports import Reports, Told
from orchestrator.store import Transaction, agents, vitals
from orchestrator.store.agents import Update
from schemas.agents import (
    Agent,
    AgentCommand,
    AgentEvent,
    AgentFilter,
    AgentKind,
    AgentSpec,
    AgentStatus,
    CommandState,
    DesiredState,
    Heartbeat,
    Summary,
)
from schemas.messages import CommandName, CommandParams, CommandResponse, ErrorCode

LOOK_S = 0.02  # how often a caller looks whether its command is done
CHANGES = frozenset({CommandName.START, CommandName.STOP, CommandName.RESTART})  # carried out after the answer
ACTS = frozenset({CommandName.PAUSE, CommandName.RESUME, CommandName.FLUSH, CommandName.SEQUENCE, CommandName.SCALE})


class Fleet(Reports):
    """The agents of one store. Nothing is opened before the first use; safe after a fork, as a `Client` is."""

    # --- looking ---------------------------------------------------------------------------------------------------------------

    def get(self, agent_id: str) -> Agent:
        """One agent. Raises AgentNotFound."""
        return self._connection.read(lambda tx: agents.need(tx, agent_id))

    def list_agents(self, wanted: AgentFilter | None = None) -> list[Agent]:
        """The agents that a filter admits, by id."""
        return self._connection.read(lambda tx: agents.list_agents(tx, wanted or AgentFilter()))

    def events(self, agent_id: str, *, limit: int = 100) -> list[AgentEvent]:
        """What happened to an agent, newest first; also to one that was removed."""
        return self._connection.read(lambda tx: agents.events(tx, agent_id, limit=limit))

    def events_after(self, after_id: int, *, limit: int = 100) -> list[AgentEvent]:
        """What happened in the fleet since an event, oldest first."""
        return self._connection.read(lambda tx: agents.events_after(tx, after_id, limit=limit))

    def last_event_id(self) -> int:
        """The id of the latest event of the fleet; 0 if there is none."""
        return self._connection.read(agents.last_event_id)

    def heartbeats(self, agent_id: str, *, limit: int = 100) -> list[Heartbeat]:
        """Signs of life of an agent, newest first."""
        return self._connection.read(lambda tx: vitals.heartbeats(tx, agent_id, limit=limit))

    def summaries(self, agent_id: str, *, limit: int = 100) -> list[Summary]:
        """What an agent gathered, newest first."""
        return self._connection.read(lambda tx: vitals.summaries(tx, agent_id, limit=limit))

    def commands(self, agent_id: str, *, limit: int = 100) -> list[AgentCommand]:
        """What an agent was told, newest first."""
        return self._connection.read(lambda tx: vitals.commands(tx, agent_id, limit=limit))

    # --- who is in it ------------------------------------------------------------------------------------------------------------

    def add(self, spec: AgentSpec, *, discovery: str = "api") -> Agent:
        """Enter an agent, stopped. Raises FleetError (agent_exists)."""

        def act(tx: Transaction) -> Agent:
            if not agents.add(tx, spec, desired=DesiredState.STOPPED, discovery=discovery):
                message = f"an agent is called {spec.id!r} already; update it, or choose another id"
                raise FleetError(message, code=ErrorCode.AGENT_EXISTS)
            return agents.need(tx, spec.id)

        return self._write(act)

    def adopt(self, specs: Iterable[AgentSpec], *, discovery: str = "config") -> list[Agent]:
        """Enter agents found in files, or give known ones the spec found; return those that are enabled and stand still: start them."""

        def act(tx: Transaction) -> list[Agent]:
            waiting = []
            for spec in sorted(specs, key=lambda spec: spec.id):
                known = agents.get(tx, spec.id, lock=True)
                if known is None:
                    agents.add(tx, spec, desired=DesiredState.RUNNING if spec.enabled else DesiredState.STOPPED, discovery=discovery)
                    known = agents.need(tx, spec.id)
                elif known.spec != spec:
                    known = agents.respecify(tx, known, spec, version=None)
                if spec.enabled and known.desired is not DesiredState.STOPPED and known.status is AgentStatus.STOPPED:
                    waiting.append(known)
            return waiting

        return self._write(act)

    def update(self, agent_id: str, changes: Mapping[str, Any], *, version: int | None = None) -> Agent:
        """Change an agent's spec; `id` and `kind` stay. Raises FleetError (version_conflict, invalid_request), AgentNotFound."""
        fixed = {"id", "kind"} & changes.keys()
        if fixed:
            raise FleetError(f"{', '.join(sorted(fixed))} of an agent cannot be changed; add another agent", code=ErrorCode.INVALID_REQUEST)

        def act(tx: Transaction) -> Agent:
            agent = agents.need(tx, agent_id, lock=True)
            return agents.respecify(tx, agent, _spec(**{**agent.spec.model_dump(), **changes}), version=version)

        return self._write(act)

    def remove(self, agent_id: str, *, actor: str, drain_s: float | None = None) -> CommandResponse:
        """Stop an agent if it runs, then forget it; `state` of the answer is `removed`, or `stopping` while it drains."""

        def act(tx: Transaction) -> CommandResponse:
            agent = agents.need(tx, agent_id, lock=True)
            if machines.ORDERS[CommandName.STOP].get(agent.status) is Trigger.DRAIN or agent.status is AgentStatus.STOPPING:
                return self._drain(tx, agent, CommandParams(drain_timeout_s=drain_s), actor, forget=True)
            agents.remove(tx, agent_id)
            return _response("delete", agent, state="removed", changed=True)

        return self._write_and_ring(act)

    def register_service(self, agent_id: str, service_url: str, metadata: Mapping[str, Any] | None = None) -> Agent:
        """A service says that it is there. Raises FleetError (agent_exists) if the id is that of an agent of another kind."""

        def act(tx: Transaction) -> Agent:
            agent = agents.get(tx, agent_id, lock=True)
            if agent is None:
                about = dict(metadata or {})
                spec = _spec(
                    id=agent_id,
                    type=str(about.get("type") or agent_id),
                    kind=AgentKind.HTTP,
                    name=str(about.get("name") or ""),
                    service_url=service_url,
                    metadata=about,
                )
                agents.add(tx, spec, desired=DesiredState.RUNNING, discovery="registration")
                agent = agents.need(tx, agent_id, lock=True)
            return self._ready(tx, as_service(agent), Update(service_url=service_url))

        return self._write_and_ring(act)

    def unregister_service(self, agent_id: str) -> Agent:
        """A service says that it goes: it leaves the registry, and if nobody of us has started it, it has ended.

        Raises AgentNotFound, and FleetError (agent_exists) if the id is that of an agent of another kind.
        """

        def act(tx: Transaction) -> Agent:
            agent = as_service(agents.need(tx, agent_id, lock=True))
            if not agent.keeper and agent.status not in {AgentStatus.STOPPED, AgentStatus.ERROR}:
                return self._exited(tx, agent, 0, "unregistered")
            agents.unregister(tx, [agent_id])
            return agents.need(tx, agent_id)

        return self._write_and_ring(act)

    # --- what it is told -----------------------------------------------------------------------------------------------------------

    def command(
        self,
        agent_id: str,
        command: CommandName,
        params: CommandParams | None = None,
        *,
        actor: str,
        trace_id: str = "",
    ) -> CommandResponse:
        """Tell an agent something, and wait for as long as its host may take to do it (`remote_control_s`).

        What changes the state for good (start, stop, restart) is decided at once and carried out by the supervisor. Raises AgentNotFound,
        IllegalTransition, and FleetError (rc_timeout, agent_unavailable, …) when nobody did it.
        """
        params = params or CommandParams()
        if command not in CHANGES | ACTS:
            raise FleetError(f"{command} is a question, not an order; read the agent instead", code=ErrorCode.UNKNOWN_COMMAND)
        command_id = self._clock.fresh_id()

        def act(tx: Transaction) -> CommandResponse | None:
            agent = agents.need(tx, agent_id, lock=True)
            trigger = machines.order(agent.status, command)
            if command in CHANGES:
                return self._change(tx, agent, command, trigger, params, actor)
            if command in machines.ORDERS and trigger is machines.HOLDS:
                return _response(command, agent, state=agent.status, changed=False)
            given = params.model_dump(exclude_defaults=True)
            record = AgentCommand(command_id, agent_id, command.value, given, actor, 0.0, trace_id=trace_id)
            vitals.add_command(tx, record, expires_in_s=self.settings.remote_control_s)
            self._tell(tx, agent_id, Told(command_id=command_id))
            return None

        answer = self._write_and_ring(act)
        return answer if answer is not None else self._outcome(agent_id, command, command_id)

    # --- how it is done --------------------------------------------------------------------------------------------------------------

    def _change(
        self, tx: Transaction, agent: Agent, command: CommandName, trigger: Trigger | None, params: CommandParams, actor: str
    ) -> CommandResponse:
        if trigger is machines.HOLDS:
            return _response(command, agent, state=agent.status, changed=False)
        if trigger is Trigger.DRAIN:
            return self._drain(tx, agent, params, actor, then=News.STOP if command is CommandName.STOP else News.RESTART)
        if trigger is Trigger.ACKNOWLEDGED:
            agents.change(tx, agent, trigger, Update(reason=f"acknowledged by {actor}", desired=DesiredState.STOPPED, restarts=0))
            self._tell(tx, agent.id, Told(News.STOP))
            return _response(command, agent, state=AgentStatus.STOPPED, changed=True)
        assert trigger is Trigger.START, "nothing else is in the table of these commands"
        wanted = Update(reason=f"{command} by {actor}", desired=DesiredState.RUNNING, meta={}, restarts=0)
        changed = agents.change(tx, agent, trigger, wanted)
        self._tell(tx, agent.id, Told(News.START))
        return _response(command, changed, state=changed.status, changed=True)

    def _drain(
        self, tx: Transaction, agent: Agent, params: CommandParams, actor: str, *, then: News = News.STOP, forget: bool = False
    ) -> CommandResponse:
        command = "delete" if forget else then.value
        drain_s = patience.drain_s(agent.spec, self.settings) if params.drain_timeout_s is None else params.drain_timeout_s
        desired = DesiredState.STOPPED if then is News.STOP else None if agent.desired is not DesiredState.STOPPED else DesiredState.RUNNING
        if agent.status is not AgentStatus.STOPPING:
            wanted = Update(reason=params.reason or f"{command} by {actor}", desired=desired, meta={"then": then.value}, drain_s=drain_s)
            agent = agents.change(tx, agent, Trigger.DRAIN, wanted)
        self._tell(tx, agent.id, Told(then, drain_s=drain_s, forget=forget))
        deadline = None if agent.drain_deadline_at is None else utc(agent.drain_deadline_at).isoformat()
        return _response(command, agent, state=agent.status, changed=True, drain_deadline=deadline)

    def _outcome(self, agent_id: str, command: CommandName, command_id: str) -> CommandResponse:
        """Wait until somebody has carried the command out, or the time for that is over."""
        deadline = self._clock.monotonic() + self.settings.remote_control_s
        while True:
            record = self._connection.read(lambda tx: vitals.get_command(tx, command_id))
            if record is not None and record.state not in {CommandState.PENDING, CommandState.RUNNING}:
                break
            if self._clock.monotonic() >= deadline:
                return self._too_late(agent_id, command, command_id)
            self._clock.sleep(LOOK_S)
        if record.error:
            raise FleetError(record.message, code=ErrorCode(record.error))
        return CommandResponse(command=command.value, agent_id=agent_id, result=record.result)

    def _too_late(self, agent_id: str, command: CommandName, command_id: str) -> CommandResponse:
        message = f"nobody has carried out {command} for agent {agent_id!r} within {self.settings.remote_control_s:g} s"
        expired = self._write(lambda tx: vitals.expire_command(tx, command_id, ErrorCode.RC_TIMEOUT, message))
        hint = "; it will not be carried out later" if expired else "; its host is still at it"
        raise FleetError(message + hint, code=ErrorCode.RC_TIMEOUT)


def as_service(agent: Agent) -> Agent:
    """The agent, which speaks for itself by HTTP; raises FleetError (agent_exists) if its id is that of another kind, which nobody else may use."""
    if agent.spec.kind is not AgentKind.HTTP:
        message = f"agent {agent.id!r} is {agent.spec.kind} and does not speak for itself by HTTP; choose another id"
        raise FleetError(message, code=ErrorCode.AGENT_EXISTS)
    return agent


def _spec(**values: Any) -> AgentSpec:  # noqa: ANN401 - checked here
    """The spec of these values; raises FleetError (invalid_request) if they make none."""
    try:
        return AgentSpec(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FleetError(f"the agent is not described well: {place}: {first['msg']}", code=ErrorCode.INVALID_REQUEST) from None


def _response(command: str, agent: Agent, **result: Any) -> CommandResponse:  # noqa: ANN401 - any JSON
    return CommandResponse(command=str(command), agent_id=agent.id, result={k: v for k, v in result.items() if v is not None})
