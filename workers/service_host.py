"""Services as agents of this worker: started, attached, asked, let go; law: a service that does not answer has no heartbeat.

A `ServiceAgent` stands in this process for each service, so that its works are claimed and done like those of any agent here. The service
itself may have been started by this worker (then its process is the keeper's), or have come by itself (then it beats by itself, too).
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from orchestrator.core.fencing import Process
from orchestrator.errors import DatabaseUnavailable, FleetError, OrchestratorError
from orchestrator.store import Transaction, agents
from schemas.agents import Agent, AgentSpec, AgentStatus, Heartbeat
from workers.hosted import HOSTED, Hosted
from workers.services import Service, agent_for

if TYPE_CHECKING:
    from workers.agent_host import AgentHost

log = logging.getLogger("orchestrator.agents")

LOOK_S = 2.0  # how often rows are looked at: who is not ours any more, who is paused
THREADS = 16  # services that are spoken to at once
LOOPBACK = "127.0.0.1"
HOSTED_IN = frozenset({AgentStatus.STARTING, AgentStatus.RUNNING, AgentStatus.PAUSED, AgentStatus.STOPPING})


@dataclass(frozen=True, slots=True)
class Attached:
    """A service that this worker speaks for."""

    hosted: Hosted
    service: Service
    kept: bool  # its process is ours, so its heartbeats are, too


class ServiceHost:
    """The services of one worker."""

    def __init__(self, host: AgentHost) -> None:
        self._host = host
        self._attached: dict[str, Attached] = {}
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="agent-services")
        self._closed = threading.Event()
        self._change = threading.Lock()
        self._watch = threading.Thread(target=self._look, name="agent-services-look", daemon=True)
        self._watch.start()

    def close(self) -> None:
        """Speak for nobody any more."""
        self._closed.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def has(self, agent_id: str) -> bool:
        """Whether this worker speaks for a service."""
        return agent_id in self._attached

    def start(self, spec: AgentSpec) -> Future[dict[str, Any]]:
        """Start the process of a service and attach it once it answers; done when the process runs."""
        keeper = self._host.keeper
        assert keeper is not None, "services are started where processes are kept"
        port = spec.port or free_port()
        started = keeper.start(spec, env={"AGENT_PORT": str(port), "DRAIN_TIMEOUT_SECONDS": f"{self._host.drain_s(spec):g}"})
        started.add_done_callback(lambda done: self._begin(spec, f"http://{LOOPBACK}:{port}", done))
        return started

    def attach(self, spec: AgentSpec, url: str) -> Future[dict[str, Any]]:
        """Speak for a service that has come by itself."""
        return self._threads.submit(self._attach, spec, url, kept=False)

    def detach(self, agent_id: str, *, only: Attached | None = None) -> None:
        """Speak for it no longer, `only` if that is still who stands for it; what it does for us ends by itself."""
        with self._change:
            attached = self._attached.get(agent_id)
            if attached is None or (only is not None and only is not attached):
                return  # a successor has come meanwhile
            del self._attached[agent_id]
            HOSTED.remove(agent_id)
        self._host.align()
        attached.service.close()

    def end(self, agent_id: str) -> Future[dict[str, Any]]:
        """Tell it to finish and leave."""
        service = self._attached[agent_id].service
        return self._threads.submit(lambda: dict(service.act("stop")))

    def restart(self, agent_id: str) -> Future[dict[str, Any]]:
        """Tell it to finish and become its own successor, and attach that."""
        return self._threads.submit(self._restart, self._attached[agent_id])

    def beat(self, agent_ids: set[str]) -> None:
        """Ask those of these services that we started how they are; who answers has a heartbeat."""
        for agent_id, attached in tuple(self._attached.items()):
            if agent_id in agent_ids and attached.kept:
                self._threads.submit(self._beat, attached)

    # --- how it is done --------------------------------------------------------------------------------------------------------------

    def _begin(self, spec: AgentSpec, url: str, started: Future[dict[str, Any]]) -> None:
        if started.cancelled() or started.exception() is not None:
            return  # whoever asked is told
        self._threads.submit(self._ready, spec, url, started.result())

    def _ready(self, spec: AgentSpec, url: str, started: Mapping[str, Any]) -> None:
        try:
            self._attach(spec, url, kept=True)
            self._register(spec, url, int(started["pid"]), float(started["pid_started_at"]))
        except OrchestratorError as error:
            log.warning("the service of agent %s is not ready: %s", spec.id, error.message)
            self.detach(spec.id)

    def _register(self, spec: AgentSpec, url: str, pid: int, pid_started_at: float) -> None:
        attached = self._attached[spec.id]
        capabilities = dict(attached.hosted.agent.capabilities)
        agent = self._host.fleet.ready(
            spec, node=self._host.node, pid=pid, pid_started_at=pid_started_at, capabilities=capabilities, service_url=url
        )
        self._follow(attached, agent)

    def _attach(self, spec: AgentSpec, url: str, *, kept: bool) -> dict[str, Any]:
        settings = self._host.settings
        service = Service(spec.id, url, settings)
        about = service.await_ready(settings.start_timeout_s if kept else settings.remote_control_s)
        self.detach(spec.id)
        node = self._host.node
        hosted = Hosted(agent_for(spec, settings, service, about), self._host.around, process=Process(node, 0, 0.0))
        with self._change:
            self._attached[spec.id] = Attached(hosted, service, kept)
            HOSTED.add(hosted)
        self._host.align()
        log.info("agent %s is served at %s", spec.id, url, extra={"agent_id": spec.id})
        return {"node": node}

    def _restart(self, attached: Attached) -> dict[str, Any]:
        agent = self._host.fleet.get(attached.hosted.id)
        answer = dict(attached.service.act("restart"))
        if attached.kept:
            self._threads.submit(self._come_back, agent)
        return answer

    def _come_back(self, agent: Agent) -> None:
        """A service that replaces its own program keeps its process and its port."""
        attached = self._attached.get(agent.id)
        if attached is None or not agent.pid:
            return
        try:
            attached.service.await_gone(self._host.drain_s(agent.spec))
            self._ready(agent.spec, agent.service_url, {"pid": agent.pid, "pid_started_at": agent.pid_started_at or 0.0})
        except OrchestratorError as error:
            log.warning("the service of agent %s did not come back: %s", agent.id, error.message)

    def _beat(self, attached: Attached) -> None:
        hosted = attached.hosted
        try:
            about = attached.service.get("/status")
            hosted.seq += 1
            metrics = about.get("metrics")
            found = {**hosted.metrics(), **(metrics if isinstance(metrics, dict) else {})}
            beat = Heartbeat(hosted.id, 0.0, hosted.seq, str(about.get("status", "")), tuple(sorted(hosted.running)), found)
            self._host.fleet.record_heartbeats([beat])
        except FleetError as error:
            log.warning("no heartbeat of agent %s: %s", hosted.id, error.message)
        except DatabaseUnavailable as error:
            log.warning("a heartbeat of agent %s could not be written: %s", hosted.id, error.message)

    def _look(self) -> None:
        """Follow the rows: end the processes that have a successor, let go of services that are not ours any more, pause who is paused."""
        while not self._closed.wait(LOOK_S):
            # Before the rows are read: what they say of one that has crashed must not be held against its successor.
            known = dict(self._attached)
            kept = () if self._host.keeper is None else self._host.keeper.running()
            if not (known or kept):
                continue
            try:
                wanted = sorted({*known, *(running.agent_id for running in kept)})
                rows = {agent.id: agent for agent in self._host.fleet.look(partial(_rows, wanted))}
            except DatabaseUnavailable:
                continue
            if self._host.keeper is not None:
                self._host.keeper.end_former(kept, rows)
            for agent_id, attached in known.items():
                agent = rows.get(agent_id)
                if agent is None or agent.status not in HOSTED_IN or agent.node not in {"", self._host.node}:
                    self.detach(agent_id, only=attached)
                else:
                    self._follow(attached, agent)

    def _follow(self, attached: Attached, agent: Agent) -> None:
        paused = agent.status is AgentStatus.PAUSED
        if attached.hosted.paused != paused:
            attached.hosted.paused = paused
            self._host.align()


def _rows(agent_ids: list[str], tx: Transaction) -> list[Agent]:
    return agents.get_many(tx, agent_ids)


def free_port() -> int:
    """A port that nobody listens on at this moment; if somebody takes it meanwhile, the service fails to start and is started again."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
