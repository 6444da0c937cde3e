"""Where our engine enters Celery's worker; law: Celery calls us through its own seams, and a worker without us is still a worker.

Imported by every worker (`imports` of the application). `EngineStep` starts the engine in the main process, `worker_process_init` in each
child of `prefork`; doorbells are answered straight from the consumer where the engine is in the same process.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

from celery import Celery, bootsteps, current_app, signals
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.exceptions import TimeLimitExceeded

from orchestrator.celery import orchestrator_of
from orchestrator.dispatch import DOORBELL
from workers.consumer import FleetConsumer, strategy_hooks
from workers.coroutines import CoroutineLoop
from workers.host import Host
from workers.pool import ASYNC_CONCURRENCY, FleetPool
from workers.tasks import time_limit_passed, wrap_tracers
from workers.threads import Threads

log = logging.getLogger("orchestrator.steps")

CHILD_THREADS = 1  # of a prefork child: the pool has already decided how many things run at once


class Presence:
    """The host of this process, if it has one, and who made it."""

    host: Host | None = None
    pid: int = 0
    node: str = "worker"  # of the worker's main process; children inherit it
    main_pid: int = 0

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
    def leave(cls, drain_s: float) -> None:
        """Stop the host of this process."""
        host = cls.current()
        cls.host = None
        if host is not None:
            host.stop(drain_s=drain_s)


class EngineStep(bootsteps.StartStopStep):
    """The engine as a part of the worker's main process."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **_: Any) -> None:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
        worker.engine = None

    def include_if(self, worker: Any) -> bool:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
        """Under prefork the children have engines, the main process has none: it forks."""
        Presence.node, Presence.main_pid = worker.hostname, os.getpid()
        return not issubclass(worker.pool_cls, PreforkPool)

    def start(self, worker: Any) -> None:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
        """Begin to work, on the threads and the loop of our pool, or on some of our own."""
        pool = worker.pool
        if isinstance(pool, FleetPool):
            threads, loop = pool.threads, pool.loop
        else:
            threads, loop = _own_threads(max(worker.concurrency or 1, 1))
        Presence.enter(_host(worker.app, worker.hostname, threads, loop))

    def stop(self, worker: Any) -> None:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
        """Drain, give back, leave."""
        Presence.leave(orchestrator_of(worker.app).settings.drain_s)

    def terminate(self, worker: Any) -> None:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
        """Leave at once."""
        Presence.leave(0.0)

    def info(self, worker: Any) -> dict[str, Any]:  # type: ignore[override] # noqa: ANN401 - the stub says None, Celery merges what comes
        """What `inspect stats` shows of the engine."""
        host = Presence.current()
        if host is None:
            return {}
        return {"orchestrator": {"worker_id": host.engine.worker_id, "running": host.engine.running, "claims": host.engine.claims}}


def ring(_queue: str = "") -> None:
    """Answer a doorbell in this process: whatever rang, the engine looks at all its queues."""
    host = Presence.current()
    if host is not None:
        host.ring()


def prepare_consumer(consumer: FleetConsumer) -> None:
    """On every broker connection: wrap the tracers, and answer doorbells without a detour through the pool."""
    wrap_tracers(consumer.app, Presence.current, consumer.hostname)
    if DOORBELL in consumer.strategies and Presence.current() is not None:
        consumer.strategies[DOORBELL] = _answering_at_once(consumer)


def _answering_at_once(consumer: FleetConsumer) -> Callable[..., None]:
    def answer(_message: Any, _body: Any, ack: Callable[..., None], *_: Any, **__: Any) -> None:  # noqa: ANN401 - Celery's signature
        ack(log, consumer.connection_errors)
        ring()

    return answer


def enter_child(**_: Any) -> None:  # noqa: ANN401 - signals add what they like
    """A child of prefork has been forked."""
    app: Celery = current_app._get_current_object()  # type: ignore[attr-defined] # noqa: SLF001 - the way behind Celery's proxy
    if Presence.main_pid in {0, os.getpid()}:
        return
    threads, loop = _own_threads(CHILD_THREADS)
    Presence.enter(_host(app, f"{Presence.node}/{os.getpid()}", threads, loop))
    wrap_tracers(app, Presence.current, Presence.node)


def leave_child(**_: Any) -> None:  # noqa: ANN401 - signals add what they like
    """A child of prefork ends in good order."""
    if Presence.main_pid != os.getpid():
        Presence.leave(0.0)


def after_failure(sender: Any = None, task_id: str = "", exception: BaseException | None = None, **_: Any) -> None:  # noqa: ANN401 - as above
    """In the main process: a hard time limit has ended a task; if it was an activity, the store must know."""
    if isinstance(exception, TimeLimitExceeded):
        time_limit_passed(orchestrator_of(sender.app), task_id)


def install(app: Celery) -> None:
    """Add our step to an application's workers."""
    app.steps["worker"].add(EngineStep)
    orchestrator_of(app).answer_doorbell = ring


def _host(app: Celery, node: str, threads: Threads, loop: CoroutineLoop) -> Host:
    return Host(orchestrator_of(app), node=node, queues=lambda: list(app.amqp.queues.consume_from), threads=threads, loop=loop)


def _own_threads(limit: int) -> tuple[Threads, CoroutineLoop]:
    loop = CoroutineLoop(ASYNC_CONCURRENCY, name="orchestrator-loop")
    loop.start()
    return Threads(limit, name="orchestrator"), loop


strategy_hooks.append(prepare_consumer)
signals.worker_process_init.connect(enter_child, weak=False)
signals.worker_process_shutdown.connect(leave_child, weak=False)
signals.task_failure.connect(after_failure, weak=False)
