"""Workers of agents, started as people start them, on the site of the other end-to-end tests."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from orchestrator.dispatch import celery_for
from orchestrator.errors import AgentNotFound
from orchestrator.fleet import Fleet
from orchestrator.store import works
from orchestrator.works import Works
from schemas.agents import Agent, AgentStatus
from schemas.messages import WorkRequest, WorkResult
from tests.e2e.processes import ROOT, Site, Worker, wait_until

numbers = itertools.count(1)
READY_MAX_S = 60.0  # two interpreters start one after the other
QUICK = {"heartbeat_timeout_s": 4.0, "registry_ttl_s": 2.0, "lease_s": 3.0, "lease_beat_s": 1.0, "agent_drain_s": 20.0}


class AgentWorker(Worker):
    """The worker process of one agent."""

    def __init__(self, agent_id: str, argv: list[str], environment: dict[str, str], log: Path) -> None:
        self.agent_id, self.log = agent_id, log
        self.node = f"{agent_id}@{os.uname().nodename}"
        self.out = log.open("ab")
        self.lines = log.with_suffix(".jsonl")
        with self.lines.open("ab") as lines:
            self.process = subprocess.Popen([sys.executable, *argv], cwd=ROOT, env=environment, stdout=lines, stderr=self.out)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace") + self.lines.read_text(errors="replace")


class AgentSite(Site):
    """A site with a fleet."""

    include = "tests.e2e.site_agents"

    def __init__(self, folder: Path, database: str, broker: str, **settings: object) -> None:
        super().__init__(folder, database, broker, **{**QUICK, **settings})
        self.fleet = Fleet(self.settings, store=self.store)
        self.works = Works(self.settings, store=self.store)
        self.asker = celery_for(self.settings, "asker")

    def agent(
        self, agent_id: str = "", kind: str = "echo", *options: str, wait: bool = True, doom: str = "", **settings: object
    ) -> AgentWorker:
        """An agent that runs; with `doom`, one that exits at that crash point."""
        agent_id = agent_id or f"{kind}-{next(numbers)}"
        environment = {**self.environment, **self._variables(settings), "DOOM": doom}
        argv = ["-m", "orchestrator", "agent", "run", kind, "--id", agent_id, *options, "--without-mingle", "--without-gossip"]
        worker = AgentWorker(agent_id, argv, environment, self.home / f"{agent_id}.out")
        self.programs.append(worker)
        if wait:
            wait_until(lambda: self.pid(agent_id) == worker.process.pid or not worker.alive, f"{agent_id} is there", READY_MAX_S)
            self.await_status(agent_id, AgentStatus.RUNNING, AgentStatus.PAUSED, worker=worker)
        return worker

    def open_gate(self, name: str) -> None:
        (self.home / "gates" / name).touch()

    def pid(self, agent_id: str) -> int | None:
        try:
            return self.fleet.get(agent_id).pid
        except AgentNotFound:
            return None

    def status(self, agent_id: str) -> AgentStatus | None:
        try:
            return self.fleet.get(agent_id).status
        except AgentNotFound:
            return None

    def await_status(self, agent_id: str, *wanted: AgentStatus, worker: AgentWorker | None = None, max_s: float = READY_MAX_S) -> Agent:
        wait_until(lambda: self.status(agent_id) in wanted or (worker and not worker.alive), f"{agent_id} is {wanted}", max_s)
        assert self.status(agent_id) in wanted, worker.text if worker else ""
        return self.fleet.get(agent_id)

    def ask(self, agent_id: str = "", agent_type: str = "", work_type: str = "echo", **parameters: Any) -> str:
        """Submit a work; its request id."""
        request = WorkRequest(work_type=work_type, parameters=parameters)
        return self.works.submit(request, agent_id=agent_id, agent_type=agent_type).work.request_id

    def result(self, request_id: str, max_s: float = 30.0) -> WorkResult:
        return self.works.wait(request_id, timeout_s=max_s)

    def do(self, agent_id: str = "", **asked: Any) -> WorkResult:
        return self.result(self.ask(agent_id, **asked))

    def begun(self, request_id: str) -> int:
        """How often a work was begun."""
        return self.works.get(request_id).executions

    def await_begun(self, request_id: str, times: int = 1) -> None:
        wait_until(lambda: self.begun(request_id) >= times, f"work {request_id} is begun")

    def open_works(self, agent_id: str) -> list[str]:
        with self.store.transaction(readonly=True) as tx:
            return works.open_of(tx, agent_id)

    def order(self, worker: AgentWorker, order: str, timeout_s: float = 5.0, **arguments: Any) -> Any:
        """A remote control command to an agent's worker; its answer, or None."""
        with self.asker.connection_for_write() as line:
            replies = self.asker.control.broadcast(
                f"agent_{order}",
                arguments={"id": worker.agent_id, **arguments},
                destination=[worker.node],
                reply=True,
                timeout=timeout_s,
                limit=1,
                connection=line,
            )
        return next((reply[worker.node] for reply in replies or ()), None)

    def consumed(self, worker: AgentWorker) -> set[str]:
        """The queues that a worker consumes, by its own account."""
        with self.asker.connection_for_write() as line:
            found = self.asker.control.inspect(destination=[worker.node], timeout=5.0, connection=line, limit=1).active_queues()
        return {queue["name"] for queue in (found or {}).get(worker.node, ())}

    def close(self) -> None:
        self.fleet.close()
        self.works.close()
        self.asker.close()
        super().close()
