"""The processes of agents that a host keeps, and what they report, as the fleet knows it; law: no end and no summary is lost to an outage.

`Keeper` starts them and passes on what they are told. `FleetSink` writes down what they tell; a child is ready with its first heartbeat.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any

from celery.utils.nodenames import gethostname

from orchestrator.clock import Clock
from orchestrator.core import fencing
from orchestrator.core.fencing import Process
from orchestrator.errors import DatabaseUnavailable, FleetError, OrchestratorError
from orchestrator.fleet import Fleet
from orchestrator.store import Store, control
from schemas.agents import Agent, AgentKind, AgentSpec, Heartbeat
from schemas.frames import ErrorFrame, HeartbeatFrame, Member, SummaryFrame
from schemas.messages import ErrorCode
from schemas.runs import DeadLetter
from schemas.settings import Settings
from workers.child import Exit, Processes, Running, Sink, Started
from workers.child.host import log_folder
from workers.sinks import EventFile, Sinks
from workers.vitals import Meter

log = logging.getLogger("orchestrator.agents")

SURE_S = 60.0  # for how long a report is tried again while the database is away
SURE_RETRY_S = 0.5
EVENTS = "events.jsonl"  # in the folder of the logs


class Keeper:
    """The processes of agents that this worker has started."""

    def __init__(self, fleet: Fleet, store: Store, settings: Settings, *, node: str, clock: Clock) -> None:
        self._fleet, self._settings = fleet, settings
        self._sink = FleetSink(fleet, store, node=node, clock=clock)
        self._events = EventFile(log_folder(settings) / EVENTS, clock=clock)
        self._processes = Processes(settings, Sinks(self._events, self._sink), clock=clock)
        self._node = node

    def has(self, agent_id: str) -> bool:
        """Whether a process of this agent runs here."""
        return any(running.agent_id == agent_id for running in self._processes.running())

    def running(self) -> tuple[Running, ...]:
        """The processes that run here now."""
        return self._processes.running()

    def end_former(self, known: Iterable[Running], rows: Mapping[str, Agent]) -> None:
        """Kill those of these processes that their agents, as their rows are later, are not any more: given up, or replaced elsewhere."""
        for running in known:
            process = Process(self._node, running.pid, running.pid_started_at)
            if not (running.ending or fencing.kept(rows.get(running.agent_id), process)):
                log.warning("process %s is agent %s no longer, and is killed", running.pid, running.agent_id)
                self._sink.replaced.add(running.pid)
                self.kill(running.agent_id)

    def start(self, spec: AgentSpec, env: Mapping[str, str] | None = None) -> Future[dict[str, Any]]:
        """Start the process of an agent; answers with its number, and the node that will host it.

        If a former self still runs here, frozen perhaps, it is killed first: whoever starts an agent knows no process of it.
        """
        former = next((running for running in self._processes.running() if running.agent_id == spec.id), None)
        if former is None:
            return self._start(spec, env)
        log.warning("process %s of agent %s makes room for its successor", former.pid, spec.id)
        self._sink.replaced.add(former.pid)
        return after(self._processes.kill(spec.id), lambda: self._start(spec, env))

    def _start(self, spec: AgentSpec, env: Mapping[str, str] | None) -> Future[dict[str, Any]]:
        self._sink.specs[spec.id] = spec
        native = spec.kind is AgentKind.NATIVE
        started = self._processes.start(spec, extra_env={"ORCHESTRATOR_AGENT_LOGGED": "true"} if native else env)
        node = f"{spec.id}@{gethostname()}" if native else self._node
        return then(started, lambda done: {"pid": done.pid, "pid_started_at": done.pid_started_at, "node": node})

    def flush(self, agent_id: str) -> Future[dict[str, Any]]:
        """Ask a child for its summary."""
        return then(self._processes.flush(agent_id), lambda done: {"latency_ms": round(done.latency_s * 1000, 3)})

    def sequence(self, agent_id: str, members: tuple[Member, ...], *, timeout_s: float) -> Future[dict[str, Any]]:
        """Have a child do these in order."""
        done = self._processes.sequence(agent_id, members, timeout_s=timeout_s)
        return then(done, lambda found: {"acknowledged": list(found.acknowledged), "left": found.left})

    def drain(self, agent_id: str, drain_s: float) -> None:
        """Let a child finish and leave; whoever does not within `drain_s` is told by signal."""
        self._sink.asked(agent_id, forced=False)
        self._processes.stop(agent_id, drain_s=drain_s)

    def end(self, agent_id: str, *, forced: bool) -> None:
        """End a process, now."""
        self._sink.asked(agent_id, forced=forced)
        self._processes.stop(agent_id, grace_s=0.0 if forced else None)

    def kill(self, agent_id: str) -> None:
        """End a process and all that it started, at once."""
        self._processes.kill(agent_id)

    def close(self, *, drain_s: float) -> None:
        """End all of them in good order, and wait for it."""
        for running in self._processes.running():
            try:
                self._fleet.leaving(running.agent_id, pid=running.pid)
            except OrchestratorError as error:  # an end must not wait for a database: the fleet will see it as a crash
                log.warning("the fleet could not be told that agent %s goes: %s", running.agent_id, error.message)
        self._processes.close(drain_s=drain_s)
        self._events.close()


class FleetSink(Sink):
    """Writes reports of children into the fleet."""

    def __init__(self, fleet: Fleet, store: Store, *, node: str, clock: Clock) -> None:
        self.specs: dict[str, AgentSpec] = {}
        self.replaced: set[int] = set()  # processes whose end is no news: their agents are others by now
        self.clock = clock
        self._fleet, self._store, self._node = fleet, store, node
        self._started: dict[str, Started] = {}
        self._seqs: dict[str, int] = {}
        self._meters: dict[str, Meter] = {}

    def asked(self, agent_id: str, *, forced: bool) -> None:
        """Its process is about to be ended, so that its end is no crash."""
        try:
            self._fleet.ending(agent_id, forced=forced)
        except OrchestratorError as error:
            log.warning("agent %s is ended, and the fleet could not be told before: %s", agent_id, error.message)

    def started(self, started: Started) -> None:
        """Keep who it is."""
        self._started[started.agent_id] = started
        self._seqs[started.agent_id] = 0
        self._meters[started.agent_id] = Meter(started.pid, clock=self.clock)

    def start_failed(self, agent_id: str, message: str) -> None:
        """Whoever asked for it is told as well, and writes it down."""
        log.error("agent %s could not be started: %s", agent_id, message)

    def heartbeat(self, agent_id: str, frame: HeartbeatFrame) -> None:
        """The first one means that it is ready."""
        started, spec = self._started[agent_id], self.specs[agent_id]
        self._seqs[agent_id] += 1
        seq = self._seqs[agent_id]
        if seq == 1:
            self._fleet.ready(spec, node=self._node, pid=started.pid, pid_started_at=started.pid_started_at, capabilities={})
        resources = self._meters[agent_id].read().model_dump()
        self._fleet.record_heartbeats([Heartbeat(agent_id, 0.0, seq, "", (), dict(frame.metrics), resources)])

    def summary(self, agent_id: str, text: str, frame: SummaryFrame) -> None:
        """Word for word."""
        start, end = frame.start.timestamp(), frame.end.timestamp()
        surely(self.clock, lambda: self._fleet.add_summary(agent_id, text, start=start, end=end, count=frame.data.count))

    def error(self, agent_id: str, frame: ErrorFrame) -> None:
        """It stays among the agent's events."""
        self._fleet.note(agent_id, "error", reason=frame.message, meta={"code": frame.code, "details": frame.details})

    def dead_letter(self, agent_id: str, line: str, reason: str) -> None:
        """A line that is no frame is set aside."""
        letter = DeadLetter(self.clock.fresh_id(), "message", reason, 0.0, None, None, {"agent_id": agent_id, "line": line})
        with self._store.transaction(purpose="letters.add") as tx:
            control.add_dead_letter(tx, letter)

    def flush_missed(self, agent_id: str, missed: int) -> None:
        """It stays among the agent's events; that it is degraded, its vitals say."""
        self._fleet.note(agent_id, "flush_missed", meta={"missed": missed})

    def exited(self, ended: Exit) -> None:
        """It is gone: what that means depends on what was asked of it."""
        if ended.asked:
            self.asked(ended.agent_id, forced=ended.forced)
        if ended.pid in self.replaced:
            self.replaced.discard(ended.pid)
            meta = {"pid": ended.pid, "exit_code": ended.code}
            surely(self.clock, lambda: self._fleet.note(ended.agent_id, "exited", reason="a former process", meta=meta))
        else:
            surely(self.clock, lambda: self._fleet.exited(ended.agent_id, ended.code, pid=ended.pid, reason=ended.reason))
        for kept in (self._started, self._seqs, self._meters):
            kept.pop(ended.agent_id, None)


def surely(clock: Clock, report: Callable[[], object]) -> None:
    """Report, waiting through an outage of the database for at most SURE_S."""
    deadline = clock.monotonic() + SURE_S
    while True:
        try:
            report()
        except DatabaseUnavailable:
            if clock.monotonic() >= deadline:
                raise
            clock.sleep(SURE_RETRY_S)
        else:
            return


def after(first: Future[Any], begin: Callable[[], Future[dict[str, Any]]]) -> Future[dict[str, Any]]:
    """A future of what is begun when another is over, well or not."""
    made: Future[dict[str, Any]] = Future()

    def done(_: Future[Any]) -> None:
        begin().add_done_callback(passed)

    def passed(second: Future[dict[str, Any]]) -> None:
        failure = second.exception()
        made.set_result(second.result()) if failure is None else made.set_exception(failure)

    first.add_done_callback(done)
    return made


def then(future: Future[Any], make: Callable[[Any], Mapping[str, Any]]) -> Future[dict[str, Any]]:
    """A future of what is made of another's value."""
    made: Future[dict[str, Any]] = Future()

    def done(first: Future[Any]) -> None:
        try:
            made.set_result(dict(make(first.result())))
        except BaseException as error:  # noqa: BLE001 - whoever has the future gets it
            made.set_exception(error)

    future.add_done_callback(done)
    return made


def unknown(agent_id: str) -> FleetError:
    """Nothing of that agent runs here."""
    return FleetError(f"agent {agent_id!r} does not run on this worker", code=ErrorCode.AGENT_UNAVAILABLE)
