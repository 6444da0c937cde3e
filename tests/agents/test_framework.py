"""What an author of agents may rely on; law: the promises of `Agent`, one by one."""

from __future__ import annotations

import asyncio
import logging
import threading
from uuid import UUID

import pytest

from orchestrator import agent as agent_module
from orchestrator.agent import AGENTS, Agent, WorkFailed
from orchestrator.errors import InvalidDefinition
from orchestrator.store import works
from orchestrator.telemetry import JsonLines
from schemas.agents import AgentSpec, Health
from schemas.messages import ErrorCode, WorkRequest, WorkResult
from schemas.settings import Settings
from workers.idempotency import IdempotencyCache
from workers.packages.echo import Echo


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def monotonic(self) -> float:
        return self.time


class Counting(Agent):
    """Says how often it was asked; sync."""

    type = "test-counting"
    capabilities = {"count": "1.0", "raise": "1.0", "details": "1.0"}

    def __init__(self, spec: AgentSpec | None = None, settings: Settings | None = None) -> None:
        super().__init__(spec, settings)
        self.asked = 0
        self.seen: list[agent_module.Info | None] = []

    def execute_work(self, work: WorkRequest) -> object:
        self.asked += 1
        self.seen.append(agent_module.info())
        if work.work_type == "raise":
            raise ValueError("out of order")
        if work.work_type == "details":
            raise WorkFailed("no such file", code="not_found", details={"file": "x"}, exit_code=3)
        return {"count": self.asked}


class Held(Agent):
    """Does not come back before it is let go."""

    type = "test-held"
    capabilities = {"thread": "1.0", "coroutine": "1.0", "blocked": "1.0"}

    def __init__(self, spec: AgentSpec | None = None, settings: Settings | None = None) -> None:
        super().__init__(spec, settings)
        self.gate = threading.Event()
        self.cancelled = threading.Event()

    def execute_work(self, work: WorkRequest) -> object:
        if work.work_type == "coroutine":
            return self.wait()
        while not self.gate.wait(0.01):
            pass
        return "let go"

    async def wait(self) -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return "never"


# --- an agent and its class ----------------------------------------------------------------------------------------------------


@pytest.mark.req("S3-19")
def test_an_agent_without_execute_work_cannot_be_made():
    class Idle(Agent):
        type = "test-idle"
        capabilities = {"idle": "1"}

    with pytest.raises(TypeError, match="execute_work"):
        Idle()  # type: ignore[abstract] # the point


@pytest.mark.req("S3-19")
@pytest.mark.parametrize("missing", ["type", "capabilities"])
def test_an_agent_without_a_type_or_capabilities_cannot_be_made(missing):
    whole = {"type": "test-half", "capabilities": {"a": "1"}, "execute_work": lambda self, work: None}
    half = type("Half", (Agent,), {name: value for name, value in whole.items() if name != missing})
    with pytest.raises(TypeError, match=f"it needs {missing}"):
        half()
    AGENTS.pop("test-half", None)


@pytest.mark.req("S3-01")
def test_an_agent_without_a_spec_is_called_as_its_type():
    assert Echo().id == "echo"
    assert Echo().config.spec.type == "echo"


def test_an_agent_has_its_spec_and_the_settings():
    settings = Settings(home="elsewhere")
    echo = Echo(AgentSpec(id="e-1", type="echo", metadata={"region": "north"}), settings)
    assert (echo.id, echo.config.metadata, echo.config.settings) == ("e-1", {"region": "north"}, settings)


def test_a_spec_of_another_type_is_refused():
    with pytest.raises(InvalidDefinition, match="is for type 'other'"):
        Echo(AgentSpec(id="e-1", type="other"))


def test_a_finished_class_is_known_by_its_type():
    assert AGENTS["echo"] is Echo


@pytest.mark.req("S2-05")
def test_an_agent_that_says_nothing_of_itself_is_healthy_and_has_no_metrics_of_its_own(hosted):
    host = hosted(Counting)
    assert host.health() == (Health.HEALTHY, "")
    assert host.metrics() == {"queue": 0, "latency_ms": 0.0, "tasks_total": 0, "tasks_failed": 0}


@pytest.mark.req("S2-12", "S2-13")
def test_an_agent_whose_health_or_metrics_fail_is_degraded_and_lives(hosted):
    class Broken(Counting):
        type = "test-broken"

        def health(self):
            raise RuntimeError("no pulse")

        def metrics(self):
            raise RuntimeError("no numbers")

    host = hosted(Broken)
    assert host.health() == (Health.DEGRADED, "health() failed: RuntimeError('no pulse')")
    assert host.metrics()["tasks_total"] == 0


# --- what it remembers ------------------------------------------------------------------------------------------------------


@pytest.mark.req("S3-14")
def test_a_result_that_was_stored_is_found_again():
    cache = IdempotencyCache()
    result = WorkResult(output=1)
    cache.put("a", result)
    assert cache.get("a") == result
    assert cache.get("b") is None


@pytest.mark.req("S3-14")
def test_the_1001st_result_evicts_the_one_used_longest_ago():
    cache = IdempotencyCache()
    for number in range(1000):
        cache.put(str(number), WorkResult(output=number))
    assert cache.get("0")  # used now, so 1 is the oldest
    cache.put("1000", WorkResult(output=1000))
    assert cache.get("1") is None
    assert cache.get("0")
    assert cache.get("1000")
    assert len(cache) == 1000


@pytest.mark.req("S3-14")
def test_a_result_is_remembered_for_300_seconds_and_no_longer():
    clock = Clock()
    cache = IdempotencyCache(clock=clock)  # type: ignore[arg-type] # as much of a clock as it uses
    cache.put("a", WorkResult())
    clock.time = 299.0
    assert cache.get("a")
    clock.time = 301.0
    assert cache.get("a") is None
    assert len(cache) == 0


@pytest.mark.req("S3-15", "S3-16")
def test_a_work_that_comes_again_is_not_done_again(hosted, work):
    host = hosted(Counting)
    asked = work("test-counting")
    first, second = (host.execute(asked, WorkRequest()) for _ in range(2))
    assert host.agent.asked == 1
    assert not first.cached
    assert second == first.model_copy(update={"cached": True})


@pytest.mark.req("DC-12")
def test_a_work_that_the_agent_has_forgotten_is_known_to_the_store_and_not_done_again(hosted, work, store):
    asked = work("test-counting")
    with store.transaction() as tx:
        works.add(tx, asked)
    first, later = hosted(Counting), hosted(Counting)
    result = first.execute(asked, WorkRequest())
    assert later.execute(asked, WorkRequest()) == result.model_copy(update={"cached": True})
    assert (first.agent.asked, later.agent.asked) == (1, 0)


# --- how a work is done --------------------------------------------------------------------------------------------------------


@pytest.mark.req("S3-17", "S3-24")
def test_a_result_carries_the_ids_of_its_request(hosted, work):
    asked = work()
    result = hosted(agent_id="e-1").execute(asked, WorkRequest(work_type="echo", parameters={"x": 1}))
    assert (result.request_id, result.trace_id) == (UUID(asked.request_id), UUID(asked.trace_id))
    assert (result.agent_id, result.work_type, result.output, result.exit_code) == ("e-1", "echo", {"x": 1}, 0)
    assert result.started_at <= result.completed_at


@pytest.mark.req("S3-18")
def test_what_a_work_raises_is_its_result_and_the_agent_goes_on(hosted, work):
    host = hosted(Counting)
    result = host.execute(work("test-counting"), WorkRequest(work_type="raise"))
    assert (result.status, result.exit_code) == ("error", 1)
    assert result.error.message == "ValueError: out of order"
    assert result.error.code == ErrorCode.EXECUTION_FAILED
    assert host.execute(work("test-counting"), WorkRequest()).status == "success"


def test_a_work_that_fails_on_purpose_says_why_with_its_own_code_and_details(hosted, work):
    result = hosted(Counting).execute(work("test-counting"), WorkRequest(work_type="details"))
    assert (result.exit_code, result.error.code, result.error.details, result.error.retryable) == (3, "not_found", {"file": "x"}, False)


def test_a_request_without_a_work_type_means_the_first_capability(hosted, work):
    assert hosted(Counting).execute(work("test-counting"), WorkRequest()).work_type == "count"


def test_a_work_result_is_passed_on_as_the_agent_made_it(hosted, work):
    class Own(Counting):
        type = "test-own"

        def execute_work(self, work):
            return WorkResult(status="error", exit_code=9, output="partly")

    result = hosted(Own).execute(work("test-own"), WorkRequest())
    assert (result.status, result.exit_code, result.output) == ("error", 9, "partly")


def test_an_output_without_a_json_form_or_too_large_is_an_error_and_not_a_crash(hosted, work):
    class Odd(Counting):
        type = "test-odd"

        def execute_work(self, work):
            return object() if work.work_type == "count" else "x" * 2000

    host = hosted(Odd, settings=Settings(payload_bytes_max=1000))
    assert "no JSON form" in host.execute(work("test-odd"), WorkRequest()).error.message
    assert host.execute(work("test-odd"), WorkRequest(work_type="raise")).error.code == ErrorCode.PAYLOAD_TOO_LARGE


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_a_work_over_its_timeout_ends_with_an_error_and_gives_its_slot_back(hosted, work, kind):
    host = hosted(Held)
    result = host.execute(work("test-held"), WorkRequest(work_type=kind, timeout_s=0.1))
    assert result.error.message == "the work was ended: it took longer than its timeout"
    assert result.error.retryable
    assert not host.running
    if kind == "coroutine":
        assert host.agent.cancelled.wait(5), "the coroutine was told"


@pytest.mark.parametrize("kind", ["thread", "coroutine"])
def test_a_work_that_is_cancelled_ends(hosted, work, kind):
    result = hosted(Held).execute(work("test-held"), WorkRequest(work_type=kind), cancelled=lambda: True)
    assert result.error.message == "the work was ended: it was cancelled"


def test_a_work_that_may_be_tried_again_is_not_yet_a_result(hosted, work):
    host = hosted(Counting)
    asked = work("test-counting")
    for attempt in (1, 2):
        assert host.execute(asked, WorkRequest(work_type="raise"), attempt=attempt, last=attempt == 2).error.retryable
    assert host.agent.asked == 2
    assert [seen.attempt for seen in host.agent.seen] == [1, 2]
    host.execute(asked, WorkRequest(work_type="raise"))
    assert host.agent.asked == 2, "the last attempt was the result"


@pytest.mark.req("S3-23")
def test_every_line_that_an_agent_logs_in_a_work_names_its_trace(hosted, work, caplog):
    caplog.set_level(logging.INFO, "orchestrator.agents")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(JsonLines().format(record))  # type: ignore[method-assign] # a handler that keeps lines
    logger = logging.getLogger("orchestrator.agents")
    logger.addHandler(handler)
    asked = work()
    try:
        hosted(agent_id="e-1").execute(asked, WorkRequest())
    finally:
        logger.removeHandler(handler)
    assert len(lines) == 2
    assert all(f'"trace_id":"{UUID(asked.trace_id).hex}"' in line and '"agent_id":"e-1"' in line for line in lines)


@pytest.mark.req("S3-22")
def test_a_result_says_what_it_cost(hosted, work):
    result = hosted().execute(work(), WorkRequest(work_type="slow_echo", parameters={"delay_s": 0.2}))
    assert result.resources.duration_ms >= 200
    assert result.resources.rss_mb > 1
    assert 0 < result.resources.memory_percent < 100
    assert result.resources.cpu_percent >= 0
