"""The agents that live in this process and how they do a work; law: a work has one result, whoever asks and how often it is begun.

`Hosted` is one agent with what surrounds it: its works that run now, its memory of those it has done, its counters. `HOSTED` is all of them.
A work is looked for in that memory, then in the store, and only then done. Sync bodies run on threads of their own and async ones on a
loop, while the worker's thread that began the work waits: so `-c` says how many run at once, and a body that hangs can be given up.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError as Cancelled
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from orchestrator.agent import CURRENT, Agent, Info, WorkFailed
from orchestrator.clock import SYSTEM, Clock, utc
from orchestrator.core.fencing import Process
from orchestrator.store import Store, works
from orchestrator.telemetry import Trace, tracing
from schemas.agents import AgentSpec, Health, Work
from schemas.messages import ErrorCode, WorkError, WorkRequest, WorkResult
from workers.coroutines import CoroutineLoop
from workers.idempotency import IdempotencyCache
from workers.threads import Call, Threads, shield
from workers.vitals import Meter

log = logging.getLogger("orchestrator.agents")

LOOK_S = 0.2  # how often a waiting thread looks whether its work was cancelled
BODIES_MAX = 1000  # bodies at once; the worker's own threads are the limit that counts
HOOK_MAX_S = 10.0  # how long on_flush and on_stop may take
ERROR_CHARACTERS_MAX = 10_000


class WorkCancelled(Exception):
    """The work was cancelled, or took longer than its timeout."""


class Superseded(Exception):
    """The row of the agent names another process: this one begins no work any more."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a hosted agent needs of its process."""

    store: Store
    threads: Threads
    loop: CoroutineLoop
    clock: Clock = SYSTEM


class Hosted:
    """One agent in this process."""

    def __init__(self, agent: Agent, around: Surroundings, *, process: Process | None = None) -> None:
        self.agent = agent
        self.process = process  # that its row must name; without one a work is begun whatever the row says
        self.spec: AgentSpec = agent.config.spec
        settings = agent.config.settings
        self.cache = IdempotencyCache(settings.idempotency_cache_max, settings.idempotency_cache_s, clock=around.clock)
        self.running: dict[str, Info] = {}  # by request id
        self.done = 0
        self.failed = 0
        self.seq = 0  # of its heartbeats
        self.last_ms = 0.0  # how long the last work took
        self.paused = False
        self.draining = False
        self.drained = False
        self.started_at = around.clock.now()
        self._around = around
        self._meter = Meter(clock=around.clock)
        self._lock = threading.Lock()

    @property
    def id(self) -> str:
        """The agent's id."""
        return self.spec.id

    @property
    def status(self) -> str:
        """Where it stands, as far as its host knows."""
        return "stopping" if self.draining else "paused" if self.paused else "running"

    def start(self) -> None:
        """Let the agent prepare itself; what it raises is the caller's."""
        self.call(self.agent.on_start, timeout_s=self.agent.config.settings.start_timeout_s)

    def stop(self) -> None:
        """Let the agent tidy up; its failure is logged."""
        try:
            self.call(self.agent.on_stop, timeout_s=HOOK_MAX_S)
        except Exception:
            log.exception("on_stop of agent %s failed", self.id)

    def flush(self) -> Any:  # noqa: ANN401 - any JSON
        """What the agent gathered since the last flush; None if nothing."""
        return self.call(self.agent.on_flush, timeout_s=HOOK_MAX_S)

    def health(self) -> tuple[Health, str]:
        """How it does, and why; a failure to say is a degradation."""
        try:
            answer = self.agent.health()
        except Exception as error:
            log.exception("health of agent %s failed", self.id)
            return Health.DEGRADED, f"health() failed: {error!r}"
        return answer if isinstance(answer, tuple) else (answer, "")

    def metrics(self) -> dict[str, Any]:
        """Its own numbers, and those of its works."""
        ours = {
            "queue": len(self.running),
            "latency_ms": round(self.last_ms, 3),
            "tasks_total": self.done + self.failed,
            "tasks_failed": self.failed,
        }
        try:
            return {**ours, **self.agent.metrics()}
        except Exception:
            log.exception("metrics of agent %s failed", self.id)
            return ours

    def execute(
        self, work: Work, request: WorkRequest, *, attempt: int = 1, last: bool = True, cancelled: Callable[[], bool] = lambda: False
    ) -> WorkResult:
        """Do a work unless it is done; the result that counts. One that may be tried again, and is not the `last`, is not kept.

        Raises Superseded, and has not begun, if the agent is another process by now.
        """
        remembered = self.cache.get(work.request_id)
        if remembered is not None:
            # Perhaps it comes again because the store could not take the result; if it has it, this changes nothing.
            return self._finished(work.request_id, remembered).model_copy(update={"cached": True})
        kept = self._begun(work)
        if kept is None:
            result = self._execute(work, request, attempt, cancelled)
            if not last and result.error is not None and result.error.retryable:
                self._refused(work.request_id, result.error)
                return result
            self.cache.put(work.request_id, result)  # before the store: what is done must not be done again because that is away
            kept = self._finished(work.request_id, result)
        self.cache.put(work.request_id, kept)
        return kept

    def call(self, function: Callable[..., Any], *args: Any, timeout_s: float | None, cancelled: Callable[[], bool] = lambda: False) -> Any:  # noqa: ANN401 - whatever the author returns
        """Call a method of the agent, sync or async, and wait for it. Raises WorkCancelled if it takes too long or was cancelled."""
        deadline = None if timeout_s is None else self._around.clock.monotonic() + timeout_s
        if inspect.iscoroutinefunction(function):
            return self._wait(self._around.loop.submit(function(*args)), None, deadline, cancelled)
        call = Call(function, args)
        self._around.threads.submit(call)
        value = self._wait(call.future, call, deadline, cancelled)
        if inspect.isawaitable(value):
            return self._wait(self._around.loop.submit(_awaited(value)), None, deadline, cancelled)
        return value

    def _wait(self, future: Future[Any], call: Call | None, deadline: float | None, cancelled: Callable[[], bool]) -> Any:  # noqa: ANN401 - as above
        clock = self._around.clock
        try:
            while True:
                left_s = LOOK_S if deadline is None else min(deadline - clock.monotonic(), LOOK_S)
                try:
                    return future.result(max(left_s, 0.0))
                except NotYet:
                    if future.done():
                        return future.result()  # the body itself raised TimeoutError
                if deadline is not None and clock.monotonic() >= deadline:
                    raise WorkCancelled("it took longer than its timeout")
                if cancelled():
                    raise WorkCancelled("it was cancelled")
        except Cancelled:
            raise WorkCancelled("its coroutine was cancelled") from None
        finally:
            if not future.done():
                future.cancel()
                if call is not None:
                    self._around.threads.give_up(call)

    def _begun(self, work: Work) -> WorkResult | None:
        """Count an execution; the result, if there is one already."""
        shield(up=True)
        try:
            with self._around.store.transaction(purpose="works.begin") as tx:
                if works.begin(tx, work.request_id, self.id, self.process):
                    return None
                known = works.get(tx, work.request_id)
        finally:
            shield(up=False)
        if known is None:
            return None
        if known.result is None:
            raise Superseded(f"agent {self.id!r} is another process by now")
        return known.result.model_copy(update={"cached": True})

    def _finished(self, request_id: str, result: WorkResult) -> WorkResult:
        shield(up=True)
        try:
            with self._around.store.transaction(purpose="works.finish") as tx:
                return works.finish(tx, request_id, result)
        finally:
            shield(up=False)

    def _refused(self, request_id: str, error: WorkError) -> None:
        """An agent that was not there has not begun: that is no execution."""
        if error.code == ErrorCode.AGENT_UNAVAILABLE:
            with self._around.store.transaction(purpose="works.begin") as tx:
                works.not_begun(tx, request_id)

    def _execute(self, work: Work, request: WorkRequest, attempt: int, cancelled: Callable[[], bool]) -> WorkResult:
        work_type = request.work_type or next(iter(self.agent.capabilities))
        trace_id = UUID(work.trace_id)
        info = Info(self.id, work_type, work.request_id, work.trace_id, attempt)
        entered = CURRENT.set(info)
        clock, cost = self._around.clock, self._meter.begin()
        began_at = clock.now()
        with self._lock:
            self.running[work.request_id] = info
        try:
            with tracing(Trace(trace_id.hex, work.request_id.replace("-", "")[-16:])):
                result = self._told(work_type, request, cancelled)
        finally:
            CURRENT.reset(entered)
            with self._lock:
                self.running.pop(work.request_id, None)
        resources = self._meter.end(cost)
        self.last_ms = resources.duration_ms
        with self._lock:
            self.done += result.status == "success"
            self.failed += result.status != "success"
        about = {
            "agent_id": self.id,
            "work_type": work_type,
            "trace_id": trace_id,
            "request_id": UUID(work.request_id),
            "resources": resources,
        }
        return result.model_copy(update={**about, "started_at": utc(began_at), "completed_at": utc(clock.now())})

    def _told(self, work_type: str, request: WorkRequest, cancelled: Callable[[], bool]) -> WorkResult:
        """The result, whatever the agent does."""
        if work_type not in self.agent.capabilities:
            known = ", ".join(self.agent.capabilities)
            message = f"agent {self.id!r} knows no work of type {work_type!r}; it knows {known}"
            return _failed(WorkError(code=ErrorCode.UNKNOWN_WORK_TYPE, message=message))
        self.agent.log.info("work begins")
        try:
            result = self.call(
                self.agent.execute_work,
                request.model_copy(update={"work_type": work_type}),
                timeout_s=request.timeout_s,
                cancelled=cancelled,
            )
        except WorkFailed as error:
            self.agent.log.warning("work failed: %s", error)
            return _failed(error.error, error.exit_code)
        except WorkCancelled as error:
            self.agent.log.warning("work ended: %s", error)
            return _failed(WorkError(code=ErrorCode.EXECUTION_FAILED, message=f"the work was ended: {error}", retryable=True))
        except Exception as error:
            self.agent.log.warning("work failed", exc_info=True)
            message = f"{type(error).__name__}: {error}"[:ERROR_CHARACTERS_MAX]
            details = getattr(error, "details", None)
            return _failed(WorkError(code=ErrorCode.EXECUTION_FAILED, message=message, details=details, retryable=True))
        self.agent.log.info("work is done")
        return self._as_result(result)

    def _as_result(self, value: Any) -> WorkResult:  # noqa: ANN401 - whatever the author returned
        result = value if isinstance(value, WorkResult) else WorkResult(output=value)
        try:
            size = len(result.model_dump_json())
        except ValueError as error:
            return _failed(WorkError(code=ErrorCode.EXECUTION_FAILED, message=f"the output has no JSON form: {error}"))
        limit = self.agent.config.settings.payload_bytes_max
        if size > limit:
            message = (
                f"the output has {size:,} bytes as JSON; at most {limit:,} are allowed. Store it elsewhere and return a reference to it."
            )
            return _failed(WorkError(code=ErrorCode.PAYLOAD_TOO_LARGE, message=message))
        return result


class Fold:
    """The agents of this process, by id and by type; changed by one thread, read by any."""

    def __init__(self) -> None:
        self._by_id: Mapping[str, Hosted] = {}

    def add(self, hosted: Hosted) -> None:
        """Enter an agent."""
        self._by_id = {**self._by_id, hosted.id: hosted}

    def remove(self, agent_id: str) -> None:
        """Forget an agent."""
        self._by_id = {known: hosted for known, hosted in self._by_id.items() if known != agent_id}

    def get(self, agent_id: str) -> Hosted | None:
        """An agent by its id."""
        return self._by_id.get(agent_id)

    def all(self) -> list[Hosted]:
        """All of them."""
        return list(self._by_id.values())

    def of_type(self, agent_type: str) -> list[Hosted]:
        """Those of a type."""
        return [hosted for hosted in self._by_id.values() if hosted.spec.type == agent_type]

    def taker(self, work: Work) -> Hosted | None:
        """Who does this work here: whom it is for, or the one of the type that takes work and has the least to do."""
        if work.agent_id:
            return self.get(work.agent_id)
        willing = [hosted for hosted in self.of_type(work.agent_type) if not (hosted.paused or hosted.draining)] or self.of_type(
            work.agent_type
        )
        return min(willing, key=lambda hosted: (len(hosted.running) / hosted.spec.concurrency, hosted.id), default=None)


HOSTED = Fold()
"""The agents of this process."""


async def _awaited(value: Awaitable[Any]) -> Any:  # noqa: ANN401 - whatever the author returns
    return await value


def _failed(error: WorkError, exit_code: int = 1) -> WorkResult:
    result = WorkResult(status="error", exit_code=exit_code or 1, error=error)
    try:
        result.model_dump_json()
    except ValueError:  # any object may be among the details of an exception
        details = repr(error.details)[:ERROR_CHARACTERS_MAX]
        return result.model_copy(update={"error": error.model_copy(update={"details": details})})
    return result
