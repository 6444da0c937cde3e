"""Our Celery pool: plain tasks on threads, `async def` tasks on one asyncio loop; law: Celery's own state is touched on the hub's thread only.

What threads and coroutines have to tell Celery (accepted, done, failed, out of time) goes into one queue, and the hub is woken to empty
it: acks are prompt, in order, survive a reconnect, and still happen while the pool drains. `worker_pool="workers.pool:FleetPool"` selects it.

Limits. `worker_concurrency` (`-c`, grow, shrink) is the number of threads. `worker_async_concurrency` (default 1000) is the number of
coroutines. What the broker hands out is limited by Celery's prefetch count, concurrency x `worker_prefetch_multiplier`, for both together:
a task that is acked early leaves it when accepted; for a coroutine with `acks_late`, `workers.consumer.FleetConsumer` raises the count by
one while it runs, as Celery does for a task with an ETA. Two settings of Celery defeat that and leave coroutines as many as are
prefetched: quorum queues (their count is static) and `worker_disable_prefetch`. Tasks over the limits wait, not accepted and so not acked.

Time limits and `revoke(terminate=True)` reach a coroutine at its next await, a thread at its next bytecode (see `workers.threads`). A thread
over its hard limit is given up and replaced; its result is TimeLimitExceeded at once, whatever it does later. A coroutine that blocks
the loop blocks every coroutine and every limit: blocking work belongs into a plain task, or into `asyncio.to_thread`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any

from celery import Celery, Task
from celery.concurrency.base import BasePool
from celery.concurrency.prefork import _run_ready_callbacks  # type: ignore[attr-defined] # the stubs lack it
from celery.utils.log import get_logger
from vine import promise

from orchestrator.clock import SYSTEM, Clock
from workers.coroutines import Awaited, CoroutineLoop, is_coroutine_task
from workers.jobs import CoroutineJob, Delivery, TaskJob, ThreadJob
from workers.threads import Call, Job, Threads

ASYNC_CONCURRENCY = 1000
DRAIN_TIMEOUT_S = 600.0
CONCLUDERS = 4
"""Threads that write the results of coroutine tasks."""
DELIVERIES_MAX = 1000
"""Calls into Celery in one turn of the hub."""
DRAIN_POLL_S = 0.02

logger = get_logger(__name__)


def current_pool() -> FleetPool | None:
    """The pool of this worker process, while it runs."""
    return FleetPool.present


class FleetPool(BasePool):
    """Threads and coroutines; see the module for limits and settings."""

    present: FleetPool | None = None

    signal_safe = False
    body_can_be_buffer = True
    task_join_will_block = True  # waiting for another task blocks a thread it may need, or the whole loop

    app: Celery
    lend: Callable[[], Callable[[], None]] | None = None
    """Set by the consumer: take one message out of the prefetch count, until the returned function is called."""

    def __init__(self, limit: int = 1, *, clock: Clock = SYSTEM, **options: Any) -> None:  # noqa: ANN401 - Celery's own
        super().__init__(limit, **options)
        self.limit: int = limit
        self.clock = clock
        self.closing = False
        self._running = False
        self._serials = count(1)
        self._jobs: dict[int, TaskJob] = {}
        self._awaited: dict[str, Awaited | None] = {}
        self._adopted: set[str] = set()
        self._deliveries: deque[Delivery] = deque()
        self._bell = promise(self._handle_deliveries)
        self._hub: Any = None  # kombu.asynchronous.Hub, which has no types

    # --- for code in this process ----------------------------------------------------------------------------------------

    def submit(self, function: Callable[..., Any], *args: object) -> Future[Any]:
        """Call the function on one of the pool's threads, in the caller's context variables, in turn with plain tasks."""
        call = Call(function, args)
        self.threads.submit(call)
        return call.future

    def submit_coroutine(self, coroutine: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Run the coroutine on the pool's loop, in turn with coroutine tasks; cancelling the future cancels it."""
        return self.loop.submit(coroutine)

    def adopt(self, tasks: Iterable[Task[Any, Any]]) -> None:
        """Take over `__trace__` of the coroutine tasks, right after Celery has set it.

        From then on it is what the tracer does after the body, `(uuid, args, kwargs, context)`, and may be wrapped.
        """
        for task in tasks:
            awaited = self.awaited(task)
            if awaited is not None:
                task.__trace__ = awaited.conclude
                self._adopted.add(task.name)

    def awaited(self, task: Task[Any, Any]) -> Awaited | None:
        """How to trace this task if it is a coroutine."""
        name = task.name
        if name not in self._awaited:
            self._awaited[name] = Awaited(task, self.hostname) if is_coroutine_task(task) else None
        return self._awaited[name]

    def tracer(self, task: Task[Any, Any]) -> Callable[..., Any]:
        """The second half of the tracing of a coroutine task."""
        awaited = self.awaited(task)
        assert awaited is not None, "only coroutine tasks have two halves"
        tracer: Callable[..., Any] = task.__trace__ if task.name in self._adopted else awaited.conclude
        return tracer

    @property
    def hostname(self) -> str:
        """The node name that tasks see."""
        initargs = self.options.get("initargs") or (None, None)
        return str(initargs[1] or "fleet@localhost")

    # --- what Celery calls -----------------------------------------------------------------------------------------------

    def on_start(self) -> None:
        """Start the loop; threads start when needed."""
        self.threads = Threads(self.limit, name="fleet")
        self.loop = CoroutineLoop(int(self.app.conf.get("worker_async_concurrency") or ASYNC_CONCURRENCY), name="fleet-loop")
        self.concluders = ThreadPoolExecutor(CONCLUDERS, thread_name_prefix="fleet-conclude")
        self.loop.start()
        self._running = True
        FleetPool.present = self

    def register_with_event_loop(self, loop: Any) -> None:  # noqa: ANN401 - a hub of kombu, which has no types
        """Deliver through this hub; called again for every connection."""
        self._hub = loop
        loop.call_soon(self._bell)

    def on_apply(  # type: ignore[override] # what Celery really passes and takes
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        **options: Any,  # noqa: ANN401 - Celery's own
    ) -> TaskJob:
        """Take a task; never waits, because what is too much is limited by the prefetch count."""
        task = self.app.tasks.get(args[0]) if len(args) == 6 and isinstance(args[0], str) else None  # as Request sends them
        kind = ThreadJob if task is None or self.awaited(task) is None else CoroutineJob
        job = kind(self, next(self._serials), target, args, kwargs, options)
        self._jobs[job.serial] = job
        job.enqueue()
        return job

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """End the task that was accepted under this number."""
        job = self._jobs.get(pid)
        if job is not None:
            job.terminate(signal)

    def grow(self, n: int = 1) -> None:
        """Add n threads."""
        self.limit += n
        self.threads.resize(self.limit)

    def shrink(self, n: int = 1) -> None:
        """Take n threads away, each when its task is done; ValueError if none would be left."""
        if self.limit - n < 1:
            raise ValueError(f"Can't shrink the pool by {n}: it has {self.limit}. To pause a worker, cancel its consumers.")
        self.limit -= n
        self.threads.resize(self.limit)

    def flush(self) -> None:
        """Forget tasks that were not yet accepted: the connection they came from is gone, and the broker will deliver them again."""
        for job in self.threads.drop_queued(lambda job: isinstance(job, ThreadJob)):
            assert isinstance(job, ThreadJob), "only such were asked for"
            self.settled(job)
        for waiting in tuple(self._jobs.values()):
            waiting.forget()

    def on_stop(self) -> None:
        """Wait for what runs, at most `worker_drain_timeout` seconds (default 600); what was not accepted goes back to the broker."""
        if not self._running:
            return
        self.flush()
        for job in self.threads.drop_queued():
            drop(job)
        deadline = self.clock.monotonic() + float(self.app.conf.get("worker_drain_timeout") or DRAIN_TIMEOUT_S)
        while self.busy and self.clock.monotonic() < deadline:
            self._turn()
            self.clock.sleep(DRAIN_POLL_S)
        self._turn()
        if self.busy:
            logger.error("The drain took too long: %d tasks are interrupted; those with acks_late will run again elsewhere", self.busy)
        self.on_terminate()

    def on_terminate(self) -> None:
        """End at once: interrupt whatever runs, and tell Celery nothing about it, so that unacked messages return to the broker."""
        if not self._running:
            return
        self._running = False
        if FleetPool.present is self:
            FleetPool.present = None
        self.closing = True
        self.threads.close()
        self.threads.interrupt_all()
        self.loop.stop()
        self.concluders.shutdown(wait=False, cancel_futures=True)

    @property
    def busy(self) -> int:
        """Tasks and calls that run or conclude, and what Celery has not yet been told."""
        return max(len(self._jobs), self.threads.running) + self.loop.present + len(self._deliveries)

    def _get_info(self) -> dict[str, Any]:
        return {
            **super()._get_info(),  # type: ignore[misc] # the stubs of celery-types lack it
            "threads": self.threads.alive,
            "threads-running": self.threads.running,
            "threads-queued": self.threads.queued,
            "threads-given-up": self.threads.given_up,
            "max-async-concurrency": self.loop.limit,
            "coroutines": self.loop.present,
        }

    # --- what jobs call --------------------------------------------------------------------------------------------------

    def deliver(self, call: Delivery) -> None:
        """Call into Celery on the hub's thread, soon and in order; at once if there is no hub."""
        if self._hub is None:
            self._guard(call)
            return
        self._deliveries.append(call)
        self._hub.call_soon(self._bell)

    def settled(self, job: TaskJob) -> None:
        """Forget a job that has told its outcome, or never will."""
        self._jobs.pop(job.serial, None)

    def _handle_deliveries(self) -> None:
        for _ in range(DELIVERIES_MAX):
            try:
                call = self._deliveries.popleft()
            except IndexError:
                break
            self._guard(call)
        else:
            self._hub.call_later(0.0, self._handle_deliveries)
        # Acks are asked for by these calls, on the hub's own thread, and for that thread the hub does not wake: it would sleep on them for a
        # second, and with them on the room for the next messages.
        _run_ready_callbacks(self._hub)

    def _guard(self, call: Delivery) -> None:
        try:
            call()
        except Exception:
            logger.exception("Celery could not take the outcome of a task")

    def _turn(self) -> None:
        """What the hub would do, while its thread waits for us: deliver, send acks, and keep the broker's heartbeat."""
        if self._hub is None:
            return
        self._handle_deliveries()
        self._hub.fire_timers()
        _run_ready_callbacks(self._hub)


def drop(job: Job) -> None:
    """Tell whoever waits for a call that it will not run."""
    if isinstance(job, Call):
        job.future.cancel()
