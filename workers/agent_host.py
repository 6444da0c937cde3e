"""The agents of one worker process; law: an agent is registered before it takes its first work, takes none while its row says so, leaves in order.

There are two kinds: the worker's own agent (`orchestrator agent run`), which lives in this process and does works, and the processes of
others (`Keeper`), which a worker on the queue `fleet` starts when it is told to. The main thread never waits: what takes time is done on
threads here, and answered when it is done.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import orjson
from celery import Celery
from celery.worker import state

from orchestrator.celery import Orchestrator, orchestrator_of
from orchestrator.core import fencing
from orchestrator.core.fencing import Standing
from orchestrator.dispatch import dead_letter_queue
from orchestrator.errors import AgentNotFound, DatabaseUnavailable, FleetError, IllegalTransition, OrchestratorError, SettingsError
from orchestrator.fleet import Fleet
from orchestrator.store import works
from orchestrator.works import Works, agent_queue, type_queue
from schemas.agents import Agent, AgentSpec, AgentStatus, Heartbeat, RestartMode
from schemas.messages import CommandResponse, ErrorCode
from schemas.settings import Settings
from workers import steps, vitals
from workers.agent_class import agent_class
from workers.coroutines import CoroutineLoop
from workers.gpu import Gpu
from workers.hosted import BODIES_MAX, HOSTED, Hosted, Surroundings
from workers.intake import Intake, register_task
from workers.keeper import Keeper
from workers.pool import FleetPool
from workers.service_host import ServiceHost
from workers.steps import Presence
from workers.threads import Threads

if TYPE_CHECKING:
    from workers.adapter import Adapter

log = logging.getLogger("orchestrator.agents")

WORK = "workers.work"  # what a process imports to do works; not every worker does
READY_RETRY_S = 0.5
FLUSHES = 4  # agents that are asked for their summaries at once
FAILED = 1  # exit code
OPEN_LOOK = 1  # it only matters whether there is one

T = TypeVar("T")


class AgentHost:
    """The agents of one worker process."""

    present: ClassVar[AgentHost | None] = None

    def __init__(self, worker: Any, act_on: Callable[..., CommandResponse]) -> None:  # noqa: ANN401 - a WorkController, which no stub knows
        self.act_on = act_on  # what the adapter is told
        self.app: Celery = worker.app
        self.orchestrator: Orchestrator = orchestrator_of(worker.app)
        self.settings: Settings = self.orchestrator.settings
        self.clock = self.orchestrator.clock
        self.node: str = worker.hostname
        self.fleet = Fleet(self.settings, store=self.orchestrator.store, bell=self.orchestrator.broker, clock=self.clock)
        self.gpu = Gpu(clock=self.clock)
        self.meter = vitals.Meter(clock=self.clock)
        self.own: Hosted | None = None
        self.broken = False  # its own agent could not be started
        self.replace = False  # this process shall become its own successor
        self.superseded = False  # another process is its agent now: its end is no news
        self.keeper: Keeper | None = None
        self.adapter: Adapter | None = None
        self.intake: Intake | None = None  # once there is a consumer

        self.services: ServiceHost | None = None
        self.works = Works(self.settings, store=self.orchestrator.store, bell=self.orchestrator.broker, clock=self.clock)
        self._worker = worker
        self._managed: set[str] = set()  # queues that are consumed because of agents
        self._align = threading.Lock()
        self._acts = ThreadPoolExecutor(1, thread_name_prefix="agent-acts")  # in the order in which they were asked for
        self._beats = ThreadPoolExecutor(1, thread_name_prefix="agent-heartbeats")
        self._flushes = ThreadPoolExecutor(FLUSHES, thread_name_prefix="agent-flushes")
        self._closed = threading.Event()
        self.around = Surroundings(self.orchestrator.store, Threads(BODIES_MAX, name="agent"), _loop_of(worker.pool), self.clock)

    # --- coming and going --------------------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Before the first message: know what works are made of."""
        self.app.loader.import_task_module(WORK)
        register_task(self.app)
        if self.settings.broker_url.startswith("amqp"):
            with self.app.connection_for_write() as connection:
                dead_letter_queue().bind(connection.default_channel).declare()

    def begin(self) -> None:
        """Host this worker's own agent; if that cannot be, say why and end the worker."""
        spec = AgentSpec(id=self.settings.agent_id, type=self.settings.agent_type or self.settings.agent_id)
        try:
            spec = self.own_spec()
            Presence.drain_s = drain_s_of(spec, self.settings)
            self.own = self.host(spec)
        except Exception as error:
            reason = error.message if isinstance(error, OrchestratorError) else f"{type(error).__name__}: {error}"
            log.critical("agent %s could not be started: %s", spec.id, reason, exc_info=not isinstance(error, OrchestratorError))
            self.broken = True
            self._report(partial(self.fleet.exited, spec.id, 1, pid=os.getpid(), reason=f"start_failed: {reason}"))
            stop(FAILED)

    def host(self, spec: AgentSpec) -> Hosted:
        """Make the agent of a spec, let it prepare itself, register it, consume its queues. Raises what it raises, and OrchestratorError."""
        agent = agent_class(spec)(spec, self.settings)
        hosted = Hosted(agent, self.around, process=vitals.this_process(self.node))
        hosted.start()
        port = spec.port if self.settings.agent_port is None else self.settings.agent_port
        if port is not None:
            from workers.adapter import Adapter  # noqa: PLC0415 - an HTTP service takes half as long to load as all of a worker

            self.adapter = Adapter(hosted, self.works, partial(self.act_on, self, hosted), self.settings, port=port)
        registered = self._registered(hosted)
        hosted.paused = registered.status is AgentStatus.PAUSED
        HOSTED.add(hosted)
        self.align()
        if self.adapter is not None:
            self.adapter.start()
        log.info("agent %s of type %s is %s", spec.id, spec.type, registered.status, extra={"agent_id": spec.id})
        return hosted

    def keep(self) -> None:
        """Start the processes of other agents from now on, when told to."""
        self.keeper = Keeper(self.fleet, self.orchestrator.store, self.settings, node=self.node, clock=self.clock)
        self.app.loader.import_task_module(WORK)  # for works of services, which this worker takes to them
        register_task(self.app)
        self.services = ServiceHost(self)

    def own_spec(self) -> AgentSpec:
        """The spec of this worker's own agent: that of the fleet, or a plain one if nobody has entered it."""
        settings = self.settings
        try:
            spec = self.fleet.get(settings.agent_id).spec
        except AgentNotFound:
            return AgentSpec(id=settings.agent_id, type=settings.agent_type or settings.agent_id, concurrency=self._worker.concurrency or 1)
        if settings.agent_type and spec.type != settings.agent_type:
            raise SettingsError(f"agent {spec.id!r} is of type {spec.type!r} in the fleet, not {settings.agent_type!r}")
        return spec

    def leave(self) -> None:
        """Take nothing more; tell the fleet that its agents go."""
        for hosted in HOSTED.all():
            hosted.draining = True
            if not (self.superseded or self._speaks_for(hosted)):
                self._report(partial(self.fleet.leaving, hosted.id, pid=os.getpid()))
        self.align(targeted=True)

    def close(self) -> None:
        """Everything is done or given back: tidy up and report the end of each agent."""
        if self.services is not None:
            self.services.close()
        if self.keeper is not None:
            self.keeper.close(drain_s=self.settings.agent_drain_s)
        for hosted in HOSTED.all():
            hosted.stop()
            HOSTED.remove(hosted.id)
            if not (self.replace or self.superseded or self._speaks_for(hosted)):
                self._report(partial(self.fleet.exited, hosted.id, 0, pid=os.getpid()))
        if self.adapter is not None:
            self.adapter.stop()
        self._closed.set()
        for pool in (self._acts, self._beats, self._flushes):
            pool.shutdown(wait=False, cancel_futures=True)
        self.orchestrator.broker.flush()

    def renewed(self) -> None:
        """This worker's lease was over, and it has a new one: see what the fleet has made of its agents meanwhile."""
        if not self._closed.is_set():
            self._beats.submit(self._see_to_standing)

    # --- queues ------------------------------------------------------------------------------------------------------------------

    def align(self, *, targeted: bool = False) -> Future[None]:
        """Consume what the agents of this process want now; done when the broker has been told.

        A draining agent takes nothing from the queue of its type, and, unless everything stops (`targeted`), goes on with its own.
        """
        wanted: set[str] = set()
        for hosted in HOSTED.all():
            if not (hosted.paused or hosted.draining):
                wanted |= {type_queue(hosted.spec.type), agent_queue(hosted.id)}
            elif hosted.draining and not (targeted or hosted.drained):
                wanted.add(agent_queue(hosted.id))
        consumer = self._worker.consumer
        done: Future[None] = Future()
        with self._align:
            queues: Any = self.app.amqp.queues  # the stub knows names as queues only
            added, gone = wanted - set(queues.consume_from), (self._managed & set(queues.consume_from)) - wanted
            self._managed |= wanted
            for name in sorted(added):
                queues.select_add(queues[name])
            for name in gone:
                queues.deselect(name)
        steps.ring()
        if not (added or gone):
            done.set_result(None)
        else:
            consumer.call_soon(_tell_broker, consumer, sorted(added), sorted(gone), done)
        return done

    # --- what it is told -----------------------------------------------------------------------------------------------------------

    def act(self, function: Callable[..., T], *args: object) -> Future[T]:
        """Do something that takes time, after what was asked for before."""
        return self._acts.submit(function, *args)

    def beat(self, agent_ids: Iterable[str] | None) -> int:
        """Measure these agents, or all, and write their heartbeats; how many will be written."""
        named = None if agent_ids is None else set(agent_ids)
        chosen = [hosted for hosted in HOSTED.all() if (named is None or hosted.id in named) and not self._speaks_for(hosted)]
        if self.services is not None and named is not None:
            self.services.beat(named)
        if chosen:
            self._beats.submit(self._beat, chosen)
        return len(chosen)

    def _speaks_for(self, hosted: Hosted) -> bool:
        return self.services is not None and self.services.has(hosted.id)

    def drain_s(self, spec: AgentSpec) -> float:
        """How long this agent may finish its work."""
        return drain_s_of(spec, self.settings)

    def flush(self, hosted: Hosted) -> Future[dict[str, Any]]:
        """Ask an agent for its summary and keep it; the answer says whether there was one."""
        return self._flushes.submit(self._flush, hosted)

    def drain(self, hosted: Hosted, then: Callable[..., None] | None = None) -> None:
        """Take nothing more for an agent, and report when it has finished what it was asked before.

        `then` is called at that moment, or when the agent has had its time for that; `late` says which.
        """
        hosted.draining = True
        self.align()
        threading.Thread(target=self._watch_drain, args=(hosted, then), name=f"agent-drain-{hosted.id}", daemon=True).start()

    def end(self, *, forced: bool) -> None:
        """End this process in good order; by force, what runs goes on elsewhere."""
        if forced:
            Presence.drain_s = 0.0
        stop()

    def restart(self) -> RestartMode:
        """End this process in good order; with execv it becomes its own successor, else its keeper starts another."""
        assert self.own is not None, "only an agent with a worker of its own can be restarted so"
        mode = restart_mode(self.own.spec, self.settings)
        if mode is RestartMode.EXECV:
            self.replace = True
            atexit.register(self._become_successor)
        stop()
        return mode

    def scale(self, delta: int) -> int:
        """Change how many works run at once; returns how many. Raises FleetError."""
        pool, consumer = self._worker.pool, self._worker.consumer
        if not hasattr(pool, "grow"):
            raise FleetError("the pool of this worker cannot grow or shrink; run it with our own pool", code=ErrorCode.POOL_UNSUPPORTED)
        if pool.limit + delta < 1:
            message = f"an agent does at least one work at once; it has {pool.limit} slots. To have it do none, pause it."
            raise FleetError(message, code=ErrorCode.INVALID_REQUEST)
        (pool.grow if delta >= 0 else pool.shrink)(abs(delta))
        consumer._update_prefetch_count(delta)  # noqa: SLF001 - what Celery's own commands do
        return int(pool.limit)

    # --- how it is done --------------------------------------------------------------------------------------------------------------

    def _registered(self, hosted: Hosted) -> Agent:
        deadline = self.clock.monotonic() + self.settings.start_timeout_s
        process = vitals.this_process(self.node)
        while True:
            try:
                return self.fleet.ready(
                    hosted.spec,
                    node=process.node,
                    pid=process.pid,
                    pid_started_at=process.started_at,
                    capabilities=dict(hosted.agent.capabilities),
                    service_url=None if self.adapter is None else self.adapter.url,
                )
            except (IllegalTransition, DatabaseUnavailable) as error:  # a former self may still be draining
                if self.clock.monotonic() >= deadline:
                    raise
                log.info("agent %s cannot register yet: %s", hosted.id, error.message)
            self.clock.sleep(READY_RETRY_S)

    def _see_to_standing(self) -> bool:
        """Whether this worker's own agent is still this process; one that was given up says that it is there, one with a successor leaves."""
        own = self.own
        if own is None or own.draining or own.process is None:
            return True
        try:
            found = self.fleet.find(own.id)
            match fencing.standing(found, own.process):
                case Standing.SUPERSEDED:
                    now = "nobody" if found is None else f"process {found.pid} of {found.node}" if found.pid else f"{found.status}"
                    log.critical("this process is agent %s no longer, the fleet says that it is %s: it ends", own.id, now)
                    self.superseded = True
                    self.end(forced=True)
                    return False
                case Standing.GIVEN_UP:
                    log.warning("agent %s was given up and is there again", own.id)
                    own.paused = self._registered(own).status is AgentStatus.PAUSED
                    self.align()
        except (DatabaseUnavailable, IllegalTransition) as error:
            log.warning("agent %s cannot tell where it stands: %s", own.id, error.message)
        return True

    def _beat(self, chosen: list[Hosted]) -> None:
        if not self._see_to_standing():
            return
        try:
            vram = self.gpu.read()
            found = self.meter.read().model_copy(update={"gpu_vram_available_mb": vram.available_mb, "gpu_vram_total_mb": vram.total_mb})
            beats = []
            for hosted in chosen:
                hosted.seq += 1
                health, why = hosted.health()
                metrics = {**hosted.metrics(), "health": health.value, **({"health_reason": why} if why else {})}
                working = tuple(sorted(hosted.running))
                beats.append(Heartbeat(hosted.id, 0.0, hosted.seq, hosted.status, working, metrics, found.model_dump()))
            self.fleet.record_heartbeats(beats)
        except DatabaseUnavailable as error:
            log.warning("heartbeats could not be written, the next ones may: %s", error.message)
        except Exception:
            log.exception("heartbeats failed; the next ones will be tried")

    def _flush(self, hosted: Hosted) -> dict[str, Any]:
        gathered = hosted.flush()
        if gathered is None:
            self.fleet.flushed(hosted.id)
            return {"summary": None}
        return {"summary": self.fleet.add_summary(hosted.id, orjson.dumps(gathered, option=orjson.OPT_NON_STR_KEYS).decode())}

    def _watch_drain(self, hosted: Hosted, then: Callable[..., None] | None) -> None:
        store = self.orchestrator.store
        deadline = self.clock.monotonic() + drain_s_of(hosted.spec, self.settings)
        while not self._closed.wait(self.settings.host_tick_s):
            try:
                if then is not None and self.clock.monotonic() >= deadline:
                    then(late=True)
                    return
                if hosted.running:
                    continue
                with store.transaction(readonly=True) as tx:
                    if works.open_of(tx, hosted.id, limit=OPEN_LOOK):
                        continue
                hosted.drained = True
                self.align()
                self.fleet.drained(hosted.id)
                if then is not None:
                    then(late=False)
                return
            except DatabaseUnavailable as error:
                log.warning("it cannot be told whether agent %s has drained: %s", hosted.id, error.message)

    def _report(self, report: Callable[[], object]) -> None:
        try:
            report()
        except OrchestratorError as error:
            log.warning("the fleet could not be told, and will find out by itself: %s", error.message)

    def _become_successor(self) -> None:
        """At the very end of this process."""
        argv = [sys.executable, *sys.orig_argv[1:]]
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        try:
            os.execv(argv[0], argv)  # noqa: S606 - no shell: this very program with the very arguments it was started with
        except OSError as error:
            assert self.own is not None, "only an agent with a worker of its own does this"
            reason = f"restart_failed: {error}"
            log.critical("agent %s cannot become its own successor: %s", self.own.id, error)
            self._report(lambda: self.fleet.exited(self.own.id if self.own else "", 1, pid=os.getpid(), reason=reason))
            os._exit(1)  # the exit code of an atexit function does not count


def stop(exitcode: int = os.EX_OK) -> None:
    """End this worker in good order, as its main thread sees at its next look."""
    asked: Any = state  # whose attributes the stub takes for None
    asked.should_stop = exitcode


def drain_s_of(spec: AgentSpec, settings: Settings) -> float:
    """How long this agent may finish its work."""
    return next(s for s in (settings.drain_override_s, spec.drain_timeout_s, settings.agent_drain_s) if s is not None)


def restart_mode(spec: AgentSpec, settings: Settings) -> RestartMode:
    """How this process is restarted: as the spec says, else the settings, else as the platform allows."""
    mode = settings.restart_mode if spec.restart_mode is RestartMode.AUTO else spec.restart_mode
    if mode is RestartMode.AUTO:
        return RestartMode.EXECV if os.name == "posix" else RestartMode.RESPAWN
    return mode


def _tell_broker(consumer: Any, added: list[str], gone: list[str], done: Future[None]) -> None:  # noqa: ANN401 - Celery's consumer
    """On the hub's thread: consume, or do not any more. Without a connection there is nothing to do: the next one begins with what is selected."""
    try:
        if consumer.task_consumer is not None:
            for name in added:
                consumer.add_task_queue(name)
            for name in gone:
                consumer.cancel_task_queue(name)
        done.set_result(None)
    except Exception as error:
        done.set_exception(error)
        raise


def _loop_of(pool: Any) -> CoroutineLoop:  # noqa: ANN401 - of any kind
    if isinstance(pool, FleetPool):
        return pool.loop
    loop = CoroutineLoop(BODIES_MAX, name="agent-loop")
    loop.start()
    return loop
