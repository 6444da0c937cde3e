"""A service stands in the fleet as any agent: what it answers is the result of the work, and silence is unavailability."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import httpx
import pytest
from celery import Celery

from orchestrator.agent import CURRENT, Info, WorkFailed
from orchestrator.errors import FleetError
from schemas.agents import Agent, AgentKind, AgentSpec, AgentStatus, DesiredState, Health
from schemas.messages import ErrorCode, WorkRequest
from schemas.settings import Settings
from tests.workers.test_file_hash import SCRIPT, Running
from workers.service_host import Attached, ServiceHost
from workers.services import Service, ServiceAgent, agent_for
from workers.supervision import Reach

if TYPE_CHECKING:
    from workers.agent_host import AgentHost
    from workers.hosted import Hosted

SETTINGS = Settings(broker_url="memory://", remote_control_s=5.0)
SPEC = AgentSpec(id="h-1", type="file-hash", kind=AgentKind.HTTP)


@pytest.fixture
def running() -> Iterator[Running]:
    started = Running("--id", "h-1")
    yield started
    started.close()


@pytest.fixture
def agent(running: Running) -> Iterator[ServiceAgent]:
    service = Service("h-1", str(running.client.base_url), SETTINGS)
    made = agent_for(SPEC, SETTINGS, service, service.await_ready(10))
    token = CURRENT.set(Info("h-1", "sha256", "r-1", "t-1"))
    yield made
    CURRENT.reset(token)
    made.on_stop()


def ask(agent: ServiceAgent, **fields):
    return agent.execute_work(WorkRequest(**fields))


def test_a_service_has_the_capabilities_that_it_tells_of(agent):
    assert (agent.type, "blake2b" in agent.capabilities, agent.health()) == ("file-hash", True, (Health.HEALTHY, ""))


@pytest.mark.req("S1-14")
def test_its_result_is_the_result_and_the_request_id_goes_along(agent):
    first, again = (ask(agent, work_type="sha256", parameters={"path": str(SCRIPT)}) for _ in range(2))
    assert (first.exit_code, first.output["bytes"], again.cached) == (0, SCRIPT.stat().st_size, True)


@pytest.mark.parametrize(
    "fields, code, retryable",
    [({"work_type": "md6"}, ErrorCode.INVALID_REQUEST, False)],
)
def test_what_it_refuses_fails_the_work_with_its_own_words(agent, fields, code, retryable):
    with pytest.raises(WorkFailed, match="'md6' is none of") as refused:
        ask(agent, **fields)
    assert (refused.value.code, refused.value.retryable) == (code, retryable)


def test_a_service_that_is_paused_may_be_asked_again(agent):
    agent.service.act("pause")
    with pytest.raises(WorkFailed, match="409") as refused:
        ask(agent, parameters={"path": "x"})
    assert refused.value.retryable
    with pytest.raises(FleetError, match="answered 400 to dance"):
        agent.service.act("dance")


@pytest.mark.req("S1-13")
def test_a_service_that_is_gone_is_unavailable_not_broken(agent, running):
    running.close()
    with pytest.raises(WorkFailed, match="does not answer") as gone:
        ask(agent, parameters={"path": "x"})
    assert (gone.value.code, gone.value.retryable) == (ErrorCode.AGENT_UNAVAILABLE, True)
    assert agent.health()[0] is Health.DEGRADED


def test_what_is_no_result_is_the_output(monkeypatch, agent):
    monkeypatch.setattr(agent.service, "execute", lambda *_: httpx.Response(200, json=[1, {"exit_code": "many"}]))
    assert ask(agent).output == [1, {"exit_code": "many"}]


def test_a_service_that_no_worker_speaks_for_is_told_over_http(running):
    reach = Reach(Celery("nobody", broker="memory://", set_as_current=False), SETTINGS)
    alone = Agent(SPEC, AgentStatus.RUNNING, DesiredState.RUNNING, 1, service_url=str(running.client.base_url))
    reach.agent(alone, "pause")
    assert running.client.get("/status").json()["status"] == "paused"
    with pytest.raises(FleetError, match="answered 400 to dance"):
        reach.agent(alone, "dance")
    running.close()
    with pytest.raises(FleetError, match="does not answer") as gone:
        reach.agent(alone, "pause")
    assert gone.value.code is ErrorCode.AGENT_UNAVAILABLE


def test_what_the_row_said_of_a_service_that_crashed_is_not_held_against_its_successor(agent):
    """The rows are read slowly, and meanwhile the next one of the same id has come."""
    looking, come = threading.Event(), threading.Event()

    class SlowFleet:
        def look(self, _ask):
            status = AgentStatus.RUNNING if come.is_set() else AgentStatus.ERROR
            looking.set()
            come.wait(10)
            return [Agent(SPEC, status, DesiredState.RUNNING, 1, node="here")]

    host = SimpleNamespace(fleet=SlowFleet(), node="here", keeper=None, align=lambda: None)
    services = ServiceHost(cast("AgentHost", host))
    crashed, successor = (Attached(cast("Hosted", SimpleNamespace(id="h-1", paused=False)), agent.service, kept=True) for _ in range(2))
    services._attached["h-1"] = crashed
    assert looking.wait(10)
    services._attached["h-1"] = successor
    looking.clear()
    come.set()
    assert looking.wait(10), "the look after that one"
    services.close()
    assert services.has("h-1")
