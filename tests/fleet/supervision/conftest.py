"""Workers that host agents, as a supervisor meets them: a twin answers remote control and reports what a process does; time in phases is real and short."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from orchestrator.errors import FleetError
from orchestrator.fleet import Fleet
from orchestrator.store import workers
from schemas.agents import Agent, AgentSpec, AgentStatus
from schemas.messages import ErrorCode
from schemas.runs import WorkerIdentity
from tests.engine.conftest import House, house, quiet  # noqa: F401 - fixtures
from workers import supervision
from workers.supervision import Place, Reach

KEEPER = "host@here"


class Twin(Reach):
    """Workers that host agents: `silent` ones do not answer, `deaf` processes do not do what they are told."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.calls: list[tuple[str, str]] = []
        self.silent: set[str] = set()
        self.deaf: set[str] = set()
        self.refusal = ""
        self.pids = 100

    def node(self, node: str, command: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        self.calls.append((node, command))
        if command in self.silent:
            raise FleetError(f"worker {node} did not answer", code=ErrorCode.RC_TIMEOUT)
        if command == "agent_start":
            return self._start(AgentSpec(**arguments["spec"]))
        if command == "agent_attach":
            return {}
        agent_id = arguments["id"]
        if command in self.deaf:
            return {}
        if command == "agent_drain":
            self.fleet.drained(agent_id)
        elif command in {"agent_end", "agent_kill"}:
            self.fleet.exited(agent_id, -9 if command == "agent_kill" else 0)
        elif command == "agent_restart":
            self._ready(self.fleet.get(agent_id).spec)
        return {"told": command}

    def _start(self, spec: AgentSpec) -> Mapping[str, Any]:
        if self.refusal:
            raise FleetError(self.refusal, code=ErrorCode.START_FAILED)
        self.pids += 1
        if "ready" not in self.deaf:
            self._ready(spec)
        return {"node": f"{spec.id}@here", "pid": self.pids, "pid_started_at": 1.0}

    def _ready(self, spec: AgentSpec) -> Agent:
        return self.fleet.ready(spec, node=f"{spec.id}@here", pid=self.pids, pid_started_at=1.0, capabilities={})


@pytest.fixture
def settings(house: House):  # noqa: F811 - the fixture
    return house.settings.model_copy(update={"remote_control_s": 20.0, "start_timeout_s": 0.3, "terminate_grace_s": 0.2, "restarts_max": 1})


@pytest.fixture
def fleet(house: House, settings) -> Iterator[Fleet]:  # noqa: F811 - the fixture
    with Fleet(settings, store=house.store, bell=house) as fleet:
        yield fleet


@pytest.fixture
def twin(house: House, fleet: Fleet, settings) -> Iterator[Twin]:  # noqa: F811 - the fixture
    twin = Twin(fleet)
    before = list(supervision._PLACE)
    supervision._PLACE[:] = [Place(fleet, twin, settings)]
    house.worker("fleet")
    with house.store.transaction() as tx:
        workers.register(tx, WorkerIdentity("w", KEEPER, "here", "boot", 1, 1.0, ("fleet",), ""), 1000)
    yield twin
    supervision._PLACE[:] = before


@pytest.fixture
def until(house: House, fleet: Fleet):  # noqa: F811 - the fixture
    def wait(*states: AgentStatus, agent_id: str = "a-1") -> Agent:
        house.until(lambda: fleet.get(agent_id).status in states)
        return fleet.get(agent_id)

    return wait


@pytest.fixture
def spec() -> AgentSpec:
    return AgentSpec(id="a-1", type="echo")
