"""What hosts, beat and supervisors report about agents; law: a change and the word to its supervisor are one transaction.

Hosts say that an agent is `ready`, has `drained` or has `exited`, and bring its heartbeats and summaries; beat looks for the silent and the
abandoned (`monitor`); supervisors write down what they are about to do (`starting`, `ending`) and what came of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

from orchestrator import settings as settings_module
from orchestrator.clock import SYSTEM, Clock, utc
from orchestrator.connection import Connection
from orchestrator.core import machines, patience
from orchestrator.core.machines import Trigger
from orchestrator.core.payloads import PayloadConverter
from orchestrator.core.supervision import News, Tidings
from orchestrator.dispatch import Broker
from orchestrator.store import Store, Transaction, agents, runs, vitals, workers, works
from orchestrator.store.agents import Update
from schemas.agents import Agent, AgentCommand, AgentKind, AgentSpec, AgentStatus, DesiredState, Heartbeat, Summary
from schemas.history import RunStarted, SignalReceived
from schemas.messages import ErrorCode
from schemas.runs import IdConflictPolicy, NewRun
from schemas.settings import Settings

log = logging.getLogger("orchestrator.fleet")

T = TypeVar("T")

SUPERVISION = "orchestrator.agent"  # the type of the supervising workflow
TELL = "tell"  # its signal
BATCH_MAX = 1000
PRUNES_MAX = 100  # batches of one cleanup; the next one goes on
ORPHANED = "orphaned"  # beside a state: it is so only because no agent host is there


@dataclass(frozen=True, slots=True)
class Told:
    """What a supervisor is told: news for its table, or a command to carry out."""

    news: str = ""
    command_id: str = ""
    drain_s: float = 0.0
    forget: bool = False

    def tidings(self) -> Tidings:
        """As the table of supervision wants it."""
        return Tidings(News(self.news), self.drain_s, self.forget)


def supervision_id(agent_id: str) -> str:
    """The workflow id of an agent's supervisor."""
    return f"agent:{agent_id}"


class Reports:
    """What is reported, and by whom it is written down. Nothing is opened before the first use; safe after a fork, as a `Client` is."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        store: Store | None = None,
        bell: Broker | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self.settings = settings or settings_module.current()
        converter = PayloadConverter(None, self.settings.payload_bytes_max)
        self._connection = Connection(self.settings, converter, store=store, bell=bell, clock=clock)
        self._clock = clock

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def converter(self) -> PayloadConverter:
        """Turns news into payloads and back."""
        return self._connection.converter

    def close(self) -> None:
        """Send what is to be sent and close what was opened here."""
        self._connection.close()

    def look(self, ask: Callable[[Transaction], T]) -> T:
        """What `ask` finds in the store."""
        return self._connection.read(ask)

    def find(self, agent_id: str) -> Agent | None:
        """One agent, if there is one."""
        return self.look(lambda tx: agents.get(tx, agent_id))

    # --- what hosts report ---------------------------------------------------------------------------------------------------------

    def ready(
        self,
        spec: AgentSpec,
        *,
        node: str,
        pid: int,
        pid_started_at: float,
        capabilities: Mapping[str, Any],
        service_url: str | None = None,
    ) -> Agent:
        """An agent's host says that it is there, before it takes any work; what comes back says whether it is to be paused.

        An agent that nobody has entered enters itself. Raises IllegalTransition while a former self still drains.
        """

        def act(tx: Transaction) -> Agent:
            agent = agents.get(tx, spec.id, lock=True)
            if agent is None:
                agents.add(tx, spec, desired=DesiredState.RUNNING, discovery="registration")
                agent = agents.need(tx, spec.id, lock=True)
            found = Update(
                node=node,
                pid=pid,
                pid_started_at=pid_started_at,
                capabilities=capabilities,
                service_url=service_url,
                # One that replaces itself keeps its number.
                started=agent.status is AgentStatus.STARTING or (agent.pid, agent.pid_started_at) != (pid, pid_started_at),
            )
            return self._ready(tx, agent, found)

        return self._write_and_ring(act)

    def launched(self, agent_id: str, *, keeper: str, node: str, pid: int, pid_started_at: float) -> Agent:
        """An agent host has started the process of an agent; `node` is the worker that hosts it, once it is ready."""

        def act(tx: Transaction) -> Agent:
            agent = agents.need(tx, agent_id, lock=True)
            at = agent.node or node  # it may have said itself that it is ready, before us
            agents.place(tx, agent_id, keeper=keeper, node=at, pid=pid, pid_started_at=pid_started_at)
            agents.note(tx, agent_id, "launched", meta={"pid": pid, "keeper": keeper})
            return replace(agent, keeper=keeper, node=at, pid=pid, pid_started_at=pid_started_at)

        return self._write(act)

    def leaving(self, agent_id: str, *, pid: int | None = None) -> Agent | None:
        """The worker that hosts an agent leaves in good order, asked or not: the agent takes no more work, and its end is no crash."""

        def act(tx: Transaction) -> Agent | None:
            agent = agents.get(tx, agent_id, lock=True)
            if agent is None or (pid is not None and agent.pid not in {None, pid}):
                return None
            if agent.status is AgentStatus.STOPPING:
                agents.remark(tx, agent_id, {**agent.meta, "ending": True})
            elif agent.status is not AgentStatus.STARTING and Trigger.DRAIN in machines.AGENT[agent.status]:
                meta = {"then": News.STOP.value, "ending": True, ORPHANED: bool(agent.keeper)}
                return agents.change(tx, agent, Trigger.DRAIN, Update(reason="its worker leaves", meta=meta))
            return agent

        return self._write(act)

    def attached(self, agent_id: str, node: str) -> None:
        """A worker takes its works to the service of an agent."""

        def act(tx: Transaction) -> None:
            agent = agents.need(tx, agent_id, lock=True)
            agents.host(tx, agent_id, node)
            agents.note(tx, agent_id, "attached", meta={"node": node, "before": agent.node})

        self._write(act)

    def drained(self, agent_id: str) -> None:
        """An agent that was to drain has nothing left to do."""
        self._inform(agent_id, News.DRAINED)

    def exited(self, agent_id: str, code: int | None, *, pid: int | None = None, reason: str = "") -> Agent | None:
        """The process of an agent has ended, with `code` if anybody knows; what that means depends on what was asked of it.

        A report about a process that is not the agent's any more changes nothing. Returns the agent as it is now; None if it is unknown.
        """

        def act(tx: Transaction) -> Agent | None:
            agent = agents.get(tx, agent_id, lock=True)
            if agent is None:
                return None
            if pid is not None and agent.pid not in {None, pid}:
                agents.note(tx, agent_id, "exited", reason="a former process", meta={"pid": pid, "exit_code": code})
                return agent
            return self._exited(tx, agent, code, reason)

        return self._write_and_ring(act)

    def record_heartbeats(self, beats: Sequence[Heartbeat]) -> list[str]:
        """Write signs of life; agents that were silent or out of the registry are back. Returns those. Unknown ids are left out."""

        def act(tx: Transaction) -> list[str]:
            returned = vitals.record_heartbeats(tx, beats)
            for agent in agents.get_many(tx, returned, lock=True):
                if agent.status is AgentStatus.INACTIVE:
                    agents.change(tx, agent, Trigger.HEARD, Update(registered=True, reason="heard of again"))
                elif not agent.registered and agent.status not in {AgentStatus.STOPPED, AgentStatus.ERROR}:
                    agents.register(tx, agent.id)
            return returned

        if self.settings.console_heartbeats:
            for beat in beats:
                log.info("heartbeat of agent %s: %s", beat.agent_id, beat.status or "it lives")
        return self._write(act)

    def flush_asked(self, agent_ids: Sequence[str]) -> None:
        """These agents were asked for their summaries, and owe them from now on."""
        self._write(lambda tx: vitals.flush_asked(tx, agent_ids))

    def rhythms(self) -> tuple[list[vitals.Rhythm], float]:
        """The agents that want heartbeats and flushes from beat, with when they had them last; and the time of the database."""
        return self._connection.read(lambda tx: (vitals.rhythms(tx), tx.now()))

    def add_summary(
        self, agent_id: str, document: str, *, start: float | None = None, end: float | None = None, count: int | None = None
    ) -> str:
        """Keep what an agent gathered, word for word; return the id of the summary."""
        summary = Summary(self._clock.fresh_id(), agent_id, 0.0, document, start, end, count)
        self._write(lambda tx: vitals.add_summary(tx, summary))
        return summary.id

    def turned(self, agent_id: str, trigger: Trigger | None, *, actor: str) -> Agent:
        """An agent has paused or resumed itself, as somebody told it directly. Raises IllegalTransition."""

        def act(tx: Transaction) -> Agent:
            agent = agents.need(tx, agent_id, lock=True)
            if trigger is None or trigger not in machines.AGENT[agent.status]:
                return agent
            desired = {Trigger.PAUSED: DesiredState.PAUSED, Trigger.RESUMED: DesiredState.RUNNING}[trigger]
            return agents.change(tx, agent, trigger, Update(reason=f"{trigger} by {actor}", desired=desired))

        return self._write(act)

    def flushed(self, agent_id: str) -> None:
        """An agent was asked for its summary and has nothing to tell: it owes none any more."""
        self._write(lambda tx: vitals.settle_flush(tx, agent_id))

    def note(self, agent_id: str, trigger: str, *, reason: str = "", meta: Mapping[str, Any] | None = None) -> None:
        """Append something that happened to an agent and changes no state: an error it told of, a frame that was not understood."""
        self._write(lambda tx: agents.note(tx, agent_id, trigger, reason=reason, meta=meta))

    # --- what beat looks for -------------------------------------------------------------------------------------------------------

    def recover(self) -> int:
        """Report the agents whose worker is gone; return how many."""
        if not self._connection.read(lambda tx: agents.abandoned(tx, limit=1)):
            return 0
        return self._write_and_ring(self._abandoned)

    def revive(self) -> int:
        """Start again the agents that stand still only because no agent host was there for them; return how many."""

        def look(tx: Transaction) -> list[str]:
            hosts = [row for row in workers.list_workers(tx) if not row.expired and self.settings.fleet_queue in row.identity.queues]
            return [agent.id for agent in agents.unwillingly_still(tx, limit=BATCH_MAX) if agent.meta.get(ORPHANED)] if hosts else []

        def act(tx: Transaction) -> int:
            waiting = [agent for agent in agents.get_many(tx, orphans, lock=True) if Trigger.START in machines.AGENT[agent.status]]
            for agent in waiting:
                agents.change(tx, agent, Trigger.START, Update(reason="an agent host is there again", meta={}))
                self._tell(tx, agent.id, Told(News.START))
            return len(waiting)

        orphans = self._connection.read(look)
        return self._write_and_ring(act) if orphans else 0

    def monitor(self, *, beat_up_s: float) -> int:
        """Unregister the quiet, call the silent inactive, note the summaries that are owed; return how many changed.

        `beat_up_s`: for how long beat has been up. Nobody is called silent for a silence in which nobody asked.
        """
        return self._write_and_ring(lambda tx: self._silent(tx, beat_up_s) + self._overdue(tx))

    def prune(self) -> int:
        """Forget heartbeats, commands and works that are older than the settings say; return how many.

        A work is kept for as long as a broker may deliver its envelope again, whatever the settings say.
        """
        kept_s = self.settings.heartbeat_retention_s
        works_s = max(self.settings.idempotency_retention_s, 2 * self.settings.visibility_timeout_s)
        forgotten = self._write(lambda tx: vitals.prune(tx, "heartbeats", kept_s) + vitals.prune(tx, "agent_commands", kept_s))
        for _ in range(PRUNES_MAX):
            batch = self._write(lambda tx: works.prune(tx, works_s, batch_max=BATCH_MAX))
            forgotten += batch
            if batch < BATCH_MAX:
                break
        return forgotten

    # --- what supervisors do -------------------------------------------------------------------------------------------------------

    def starting(self, agent_id: str) -> Agent | None:
        """Its process is about to be started; None: it shall not run any more, or runs already."""

        def act(tx: Transaction) -> Agent | None:
            agent = agents.get(tx, agent_id, lock=True)
            if agent is None or agent.status is AgentStatus.STARTING:
                return agent
            if agent.status is AgentStatus.STOPPING and agent.meta.get("then") == News.RESTART:
                return agents.change(tx, agent, Trigger.RESTARTED, Update(reason="restarted", meta={}, node="", keeper="", pid=0))
            if agent.status is AgentStatus.ERROR and agent.desired is not DesiredState.STOPPED:
                return agents.change(tx, agent, Trigger.START, Update(reason=agent.reason, meta=agent.meta, restarts=agent.restarts + 1))
            return None

        return self._write(act)

    def replacing(self, agent_id: str) -> Agent | None:
        """A drained agent is about to become its own successor; None: it is not to be restarted any more."""

        def act(tx: Transaction) -> Agent | None:
            agent = agents.get(tx, agent_id, lock=True)
            if agent is None or agent.status is not AgentStatus.STOPPING or agent.meta.get("then") != News.RESTART:
                return None
            return agents.change(tx, agent, Trigger.RESTARTED, Update(reason="restarted", meta={"restarting": True}))

        return self._write(act)

    def start_failed(self, agent_id: str, reason: str, *, orphaned: bool = False) -> None:
        """It could not be started, or was not ready in time; `orphaned`: because no agent host is there."""

        def act(tx: Transaction) -> None:
            agent = agents.get(tx, agent_id, lock=True)
            if agent is not None and agent.status is AgentStatus.STARTING:
                failed = Update(reason=reason, meta={ORPHANED: orphaned}, registered=False, node="", keeper="", pid=0)
                agents.change(tx, agent, Trigger.START_FAILED, failed)

        self._write(act)

    def ending(self, agent_id: str, *, forced: bool) -> Agent | None:
        """Its process is about to be ended, so that its end is no crash; None: it is over already."""

        def act(tx: Transaction) -> Agent | None:
            agent = agents.get(tx, agent_id, lock=True)
            if agent is None or agent.status is not AgentStatus.STOPPING:
                return None
            agents.remark(tx, agent_id, {**agent.meta, "ending": True, "forced": forced or bool(agent.meta.get("forced"))})
            return agent

        return self._write(act)

    def given_up(self, agent_id: str) -> None:
        """Nobody can say what became of its process: it counts as gone."""

        def act(tx: Transaction) -> None:
            agent = agents.get(tx, agent_id, lock=True)
            if agent is not None and agent.status is AgentStatus.STOPPING and agent.meta.get("then") != News.RESTART:
                gone = Update(reason="its end could not be confirmed", meta={"forced": True}, registered=False, node="", keeper="", pid=0)
                agents.change(tx, agent, Trigger.GONE, gone)

        self._write(act)

    def forget(self, agent_id: str) -> None:
        """It was to be removed once it had stopped."""

        def act(tx: Transaction) -> None:
            agent = agents.get(tx, agent_id, lock=True)
            if agent is not None and agent.status in {AgentStatus.STOPPED, AgentStatus.ERROR}:
                agents.remove(tx, agent_id)

        self._write(act)

    def begin_command(self, command_id: str) -> AgentCommand | None:
        """A command to act on now; None: it is over or has expired."""
        return self._write(lambda tx: vitals.get_command(tx, command_id) if vitals.begin_command(tx, command_id) else None)

    def end_command(self, command: AgentCommand, trigger: Trigger | None, result: Mapping[str, Any]) -> None:
        """A command was carried out: change the agent's state as `trigger` says, and let whoever waits know."""

        def act(tx: Transaction) -> None:
            agent = agents.need(tx, command.agent_id, lock=True)
            if trigger is not None and trigger in machines.AGENT[agent.status]:
                desired = {Trigger.PAUSED: DesiredState.PAUSED, Trigger.RESUMED: DesiredState.RUNNING}[trigger]
                agent = agents.change(tx, agent, trigger, Update(reason=f"{command.command} by {command.actor}", desired=desired))
            vitals.end_command(tx, command.id, {"state": agent.status.value, "changed": True, **result})

        self._write(act)

    def fail_command(self, command_id: str, code: ErrorCode, message: str) -> None:
        """A command could not be carried out; nothing has changed."""
        self._write(lambda tx: vitals.end_command(tx, command_id, {}, code.value, message))

    # --- how it is done ---------------------------------------------------------------------------------------------

    def _ready(self, tx: Transaction, agent: Agent, found: Update) -> Agent:
        agent = agents.change(tx, agent, Trigger.READY, replace(found, registered=True, meta={}))
        self._tell(tx, agent.id, Told(News.READY))
        return agent

    def _exited(self, tx: Transaction, agent: Agent, code: int | None, reason: str) -> Agent:
        well = code == 0 or bool(agent.meta.get("ending"))
        meta = {"exit_code": code, "terminated_at": utc(self._clock.now()).isoformat(), "forced": bool(agent.meta.get("forced"))}
        if agent.status is AgentStatus.STARTING and agent.meta.get("restarting") and code == 0:
            agents.note(tx, agent.id, "exited", meta=meta)  # it makes room for its successor
            self._tell(tx, agent.id, Told(News.GONE))
            return agent
        restarting = agent.status is AgentStatus.STOPPING and agent.meta.get("then") == News.RESTART
        if restarting and ((well and code in {0, None}) or agent.meta.get("forced")):
            # It makes room for its successor: still draining, for whoever looks, until that is being started.
            agents.note(tx, agent.id, "exited", meta=meta)
            self._tell(tx, agent.id, Told(News.GONE))
            return agent
        trigger = _meaning(agent.status, well=well, restarting=restarting)
        if trigger is None:
            agents.note(tx, agent.id, "exited", reason=reason, meta=meta)
            return agent
        if agent.meta.get(ORPHANED):
            meta[ORPHANED] = True
        why = Trigger.RESTART_FAILED if agent.meta.get("restarting") else trigger
        gone = Update(reason=reason or why.value, meta=meta, registered=False, node="", keeper="", pid=0)
        changed = agents.change(tx, agent, trigger, gone)
        self._tell(tx, agent.id, Told(News.GONE if changed.status is AgentStatus.STOPPED else News.CRASHED))
        return changed

    def _abandoned(self, tx: Transaction) -> int:
        found = agents.get_many(tx, [agent.id for agent in agents.abandoned(tx, limit=BATCH_MAX)], lock=True)
        for agent in found:
            if agent.spec.kind is AgentKind.HTTP and not agent.keeper:
                agents.host(tx, agent.id, "")  # a service of its own lives on: it needs another worker
                self._tell(tx, agent.id, Told(News.READY))
            else:
                self._exited(tx, agent, None, "its worker is gone")
        return len(found)

    def _silent(self, tx: Transaction, beat_up_s: float) -> int:
        count = 0
        shortest_s = min(self.settings.registry_ttl_s, self.settings.heartbeat_timeout_s)
        quiet = agents.silent(tx, silent_s=shortest_s, limit=BATCH_MAX)
        now = tx.now()
        for agent in agents.get_many(tx, [agent.id for agent in quiet], lock=True):
            heard_at = agent.last_heartbeat_at or agent.registered_at or agent.created_at
            silent_s, timeout_s = now - heard_at, patience.heartbeat_timeout_s(agent.spec, self.settings)
            if silent_s >= timeout_s and beat_up_s >= timeout_s and Trigger.SILENT in machines.AGENT[agent.status]:
                meta = {"last_seen": utc(heard_at).isoformat()}
                agents.change(tx, agent, Trigger.SILENT, Update(reason="no heartbeat", meta=meta, registered=False))
                count += 1
            elif silent_s >= patience.registry_ttl_s(agent.spec, self.settings) and agent.status is not AgentStatus.STOPPING:
                count += len(agents.unregister(tx, [agent.id]))
        return count

    def _overdue(self, tx: Transaction) -> int:
        late = vitals.overdue(tx, timeout_s=self.settings.flush_timeout_s)
        for agent_id in late:
            agents.note(tx, agent_id, "flush_timeout", reason=f"no summary within {self.settings.flush_timeout_s:g} s")
        return len(late)

    def _inform(self, agent_id: str, news: News) -> None:
        def act(tx: Transaction) -> None:
            if agents.get(tx, agent_id, lock=True) is not None:
                self._tell(tx, agent_id, Told(news))

        self._write_and_ring(act)

    def _tell(self, tx: Transaction, agent_id: str, told: Told) -> None:
        """Signal the agent's supervisor, or start it with that signal, in this transaction."""
        run_id = self._clock.fresh_id()
        signal_id = self._clock.fresh_id()
        payload = self._connection.converter.encode(told, what="news of an agent")
        started = RunStarted(
            workflow_id=supervision_id(agent_id),
            run_id=run_id,
            type=SUPERVISION,
            queue=self.settings.fleet_queue,
            args=(agent_id,),
            started_at=self._clock.now(),
            first_run_id=run_id,
        )
        signal = SignalReceived(TELL, (payload,), id=signal_id)
        runs.start(tx, [NewRun(started, conflict=IdConflictPolicy.USE_EXISTING, signal=signal)])

    def _write(self, act: Callable[[Transaction], T]) -> T:
        return self._connection.write(act, purpose="fleet.write")

    def _write_and_ring(self, act: Callable[[Transaction], T]) -> T:
        value = self._connection.write(act, purpose="fleet.write")
        self._connection.ring([self.settings.fleet_queue])
        return value


def _meaning(status: AgentStatus, *, well: bool, restarting: bool) -> Trigger | None:
    """What the end of a process means to an agent in this state; None: nothing any more."""
    if status is AgentStatus.STOPPING:
        return Trigger.GONE if well and not restarting else Trigger.RESTART_FAILED if well else Trigger.CRASHED_IN_DRAIN
    if status is AgentStatus.STARTING:
        return Trigger.START_FAILED
    trigger = Trigger.EXITED if well else Trigger.CRASHED
    return trigger if trigger in machines.AGENT[status] else None
