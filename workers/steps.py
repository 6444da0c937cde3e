"""Where our engine enters Celery's worker; law: Celery calls us through its own seams, and a worker without us is still a worker.

Imported, and `install`ed into the application, when a worker begins (`orchestrator.celery`). `EngineStep` starts the engine in the main process, `worker_process_init` in each
child of `prefork`; doorbells are answered straight from the consumer where the engine is in the same process.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from celery import Celery, bootsteps, current_app, signals
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.exceptions import TimeLimitExceeded
from celery.worker import state

from orchestrator.celery import orchestrator_of, refuse
from orchestrator.dispatch import DOORBELL, task_id
from orchestrator.errors import DatabaseUnavailable, SettingsError
from schemas.history import Failure
from schemas.runs import PendingActivity
from workers import (
    rolling_restart,  # noqa: F401 - whoever can supervise agents can do this as well: being imported makes its workflow known
    supervision,
)
from workers.bus import BusStep
from workers.consumer import FleetConsumer, strategy_hooks
from workers.coroutines import CoroutineLoop
from workers.garbage import calm
from workers.host import Host
from workers.jobs import TaskJob, ThreadJob
from workers.letters import Letters
from workers.pool import ASYNC_CONCURRENCY, FleetPool
from workers.tasks import told_by_celery, wrap_tracers
from workers.threads import Threads

log = logging.getLogger("orchestrator.steps")

SHARED_BYTES = 64 * 1024  # for the names of queues
SHARE_INTERVAL_S = 0.5
CHILD_THREADS = 1  # of a prefork child: the pool has already decided how many things run at once


class Presence:
    """The host of this process, if it has one, and who made it."""

    host: Host | None = None
    pid: int = 0
    node: str = "worker"  # of the worker's main process; children inherit it
    main_pid: int = 0
    shared: Shared | None = None  # of a prefork worker
    drain_s: float | None = None  # how long the host of this process may drain; none: as the settings say

    @classmethod
    def current(cls) -> Host | None:
        """The host of this very process; a host inherited through fork is a dead shell."""
        return cls.host if cls.pid == os.getpid() else None

    @classmethod
    def enter(cls, host: Host) -> None:
        """Start the host of this process."""
        cls.host, cls.pid = host, os.getpid()
        host.start()

    @classmethod
    def leave(cls, drain_s: float) -> list[PendingActivity]:
        """Stop the host of this process; return the activities whose Celery tasks still run."""
        host = cls.current()
        if host is None:
            return []
        try:
            return host.stop(drain_s=drain_s)  # it must be at hand meanwhile: tasks that end now report to it
        finally:
            cls.host = None


class Shared:
    """What a prefork worker consumes and whether monitors listen, in memory that its children share: remote control speaks to the main process alone."""

    def __init__(self, queues: Callable[[], Iterable[str]], shown: Callable[[], bool]) -> None:
        self._queues = queues
        self._shown = shown
        self._memory = mmap.mmap(-1, SHARED_BYTES)
        self._shared = b""  # by the main process
        self._raw, self._seen = b"", (tuple[str, ...](), False)  # by a child

    def share(self) -> None:
        """In the main process: write them down if they have changed."""
        raw = json.dumps([sorted(self._queues()), self._shown()]).encode() + b"\n"
        if len(raw) > SHARED_BYTES:
            log.warning("the names of the queues are too many for the children of this worker: they keep the ones they know")
        elif raw != self._shared:
            self._shared = raw
            self._memory.seek(0)
            self._memory.write(raw)

    def queues(self) -> Sequence[str]:
        """In a child: as the main process wrote them last."""
        return self._read()[0]

    def shown(self) -> bool:
        """In a child: whether monitors listened when the main process looked last."""
        return self._read()[1]

    def _read(self) -> tuple[tuple[str, ...], bool]:
        self._memory.seek(0)
        raw = self._memory.readline()
        if raw != self._raw:
            try:
                queues, shown = json.loads(raw)
            except ValueError:
                return self._seen  # it is being written at this moment
            self._raw, self._seen = raw, (tuple(queues), shown)
        return self._seen


class EngineStep(bootsteps.StartStopStep):
    """The engine as a part of the worker's main process."""

    requires = ("celery.worker.components:Pool",)

    def include_if(self, worker: Any) -> bool:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
        """Always; and note what children of prefork need to know before the first of them is forked."""
        Presence.node, Presence.main_pid = worker.hostname, os.getpid()
        if issubclass(worker.pool_cls, PreforkPool):
            _refuse_spawn(worker)
            Presence.shared = Shared(lambda: worker.app.amqp.queues.consume_from, lambda: _monitored(worker))
            Presence.shared.share()
        return True

    def start(self, worker: Any) -> None:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
        """Begin to work, on the threads and the loop of our pool, or on some of our own."""
        pool = worker.pool
        if Presence.shared is not None:
            # The children have engines, the main process has none: it forks.
            worker.timer.call_repeatedly(SHARE_INTERVAL_S, Presence.shared.share)
            return
        if isinstance(pool, FleetPool):
            threads, loop = pool.threads, pool.loop
        else:
            threads, loop = _own_threads(max(worker.concurrency or 1, 1))
        calm(orchestrator_of(worker.app).settings)
        Presence.enter(_host(worker.app, worker.hostname, threads, loop, lambda: _monitored(worker)))

    def stop(self, worker: Any) -> None:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
        """Drain, give back, leave."""
        leave(worker)

    def terminate(self, worker: Any) -> None:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
        """Leave at once."""
        Presence.leave(0.0)

    def info(self, worker: Any) -> dict[str, Any]:  # type: ignore[override] # noqa: ANN401 - the stub says None, Celery merges what comes
        """What `inspect stats` shows of the engine."""
        host = Presence.current()
        if host is None:
            return {}
        return {"orchestrator": {"worker_id": host.engine.worker_id, "running": host.engine.running, "claims": host.engine.claims}}


def leave(worker: Any) -> None:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
    """Drain the host of this process and give back what is left; the second call does nothing."""
    drain_s = Presence.drain_s if Presence.drain_s is not None else orchestrator_of(worker.app).settings.drain_s
    left = Presence.leave(drain_s)
    if left:
        _give_up(worker.pool, {task_id(pending) for pending in left})


def ring(_queue: str = "") -> None:
    """Answer a doorbell in this process: whatever rang, the engine looks at all its queues."""
    host = Presence.current()
    if host is not None:
        host.ring()


def prepare_consumer(consumer: FleetConsumer) -> None:
    """On every broker connection: wrap the tracers, and answer doorbells without a detour through the pool."""
    wrap_tracers(consumer.app, Presence.current)
    if consumer.letters is None:
        ours = orchestrator_of(consumer.app)
        consumer.letters = Letters(ours.store, ours.clock)
    if DOORBELL in consumer.strategies and Presence.current() is not None:
        consumer.strategies[DOORBELL] = _answering_at_once(consumer)


def _answering_at_once(consumer: FleetConsumer) -> Callable[..., None]:
    def answer(_message: Any, _body: Any, ack: Callable[..., None], *_: Any, **__: Any) -> None:  # noqa: ANN401 - Celery's signature
        ring()  # first: the acknowledgement is a round trip to the broker, and a doorbell that rings twice does no harm
        ack(log, consumer.connection_errors)

    return answer


def enter_child(**_: Any) -> None:  # noqa: ANN401 - signals add what they like
    """A child of prefork has been forked."""
    app: Celery = current_app._get_current_object()  # type: ignore[attr-defined] # noqa: SLF001 - the way behind Celery's proxy
    if Presence.main_pid in {0, os.getpid()}:
        return
    assert Presence.shared is not None, "the main process shares its queues before it forks"
    threads, loop = _own_threads(CHILD_THREADS)
    calm(orchestrator_of(app).settings)
    Presence.enter(_host(app, f"{Presence.node}/{os.getpid()}", threads, loop, Presence.shared.shown))
    wrap_tracers(app, Presence.current)


def leave_child(**_: Any) -> None:  # noqa: ANN401 - signals add what they like
    """A child of prefork ends in good order: what the pool gave it is done, what the engine took on is finished first."""
    host = Presence.current()
    if host is not None and Presence.main_pid != os.getpid():
        Presence.leave(host.orchestrator.settings.drain_s)


def after_failure(sender: Any = None, task_id: str = "", exception: BaseException | None = None, **_: Any) -> None:  # noqa: ANN401 - as above
    """In the main process: a hard time limit has ended a task; if it was an activity, the store must know."""
    if isinstance(exception, TimeLimitExceeded):
        passed = "the hard time limit of the Celery task has passed"
        _tell_store(sender, task_id, Failure(kind="timeout", type="start_to_close", message=passed))


def after_revocation(sender: Any = None, request: Any = None, **_: Any) -> None:  # noqa: ANN401 - as above
    """In the main process: somebody has revoked a task, running or not."""
    _tell_store(sender, request.id, Failure(kind="terminated", message="the Celery task was revoked"))


def after_retry(sender: Any = None, request: Any = None, einfo: object = None, **_: Any) -> None:  # noqa: ANN401 - as above
    """In the main process: a task was cancelled because the broker's connection is lost. Elsewhere this tells of a retry that we know of."""
    if einfo is None:
        stopped = "Celery cancelled the task as it lost its broker"
        _tell_store(sender, request.id, Failure(kind="worker_lost", message=stopped, next_retry_delay_s=0.0))


def install(app: Celery) -> None:
    """Add our step to an application's workers."""
    app.steps["worker"].add(EngineStep)
    app.steps["worker"].add(BusStep)
    supervision.serve(orchestrator_of(app))
    orchestrator_of(app).answer_doorbell = ring


def _tell_store(task: Any, task_id: str, failure: Failure) -> None:  # noqa: ANN401 - a task, or its proxy
    try:
        told_by_celery(orchestrator_of(task.app), task_id, failure)
    except DatabaseUnavailable as error:
        log.warning("task %s has ended (%s), and only a timeout of the activity will tell: %s", task_id, failure.message, error.message)


def _give_up(pool: Any, ids: set[str]) -> None:  # noqa: ANN401 - of any kind
    """Tasks that were handed back still run: let our pool not wait for them. Celery's thread pools cannot but wait."""
    if not isinstance(pool, FleetPool):
        log.warning("%s tasks were handed back to other workers, but this pool waits for them until they end", len(ids))
        return
    for request in tuple(state.active_requests):
        job = request._apply_result() if request.id in ids and request._apply_result else None  # noqa: SLF001 - Celery has no other way
        if isinstance(job, ThreadJob) and job.settle():
            pool.settled(job)
            pool.threads.give_up(job)
        elif isinstance(job, TaskJob):
            job.terminate()


def _refuse_spawn(worker: Any) -> None:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
    """A spawned child imports the world anew and has an application that nobody has made ours: say so, before activities go astray."""
    if worker.pool_start_method == "spawn":
        refuse(SettingsError("prefork children must be forked. Set worker_pool_start_method='fork', or use -P threads or our own pool."))


def _host(app: Celery, node: str, threads: Threads, loop: CoroutineLoop, shown: Callable[[], bool]) -> Host:
    shared = Presence.shared
    queues = shared.queues if shared is not None else lambda: list(app.amqp.queues.consume_from)
    return Host(orchestrator_of(app), node=node, queues=queues, threads=threads, loop=loop, shown=shown)


def _monitored(worker: Any) -> bool:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
    """Whether task events are on, by -E, by the settings or because a monitor has asked; a dispatcher without groups sends all."""
    dispatcher = getattr(getattr(worker, "consumer", None), "event_dispatcher", None)
    return dispatcher is not None and dispatcher.enabled and (not dispatcher.groups or "task" in dispatcher.groups)


def _own_threads(limit: int) -> tuple[Threads, CoroutineLoop]:
    loop = CoroutineLoop(ASYNC_CONCURRENCY, name="orchestrator-loop")
    loop.start()
    return Threads(limit, name="orchestrator"), loop


strategy_hooks.append(prepare_consumer)
signals.worker_process_init.connect(enter_child, weak=False)
signals.worker_process_shutdown.connect(leave_child, weak=False)
signals.task_failure.connect(after_failure, weak=False)
signals.task_revoked.connect(after_revocation, weak=False)
signals.task_retry.connect(after_retry, weak=False)
