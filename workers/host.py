"""The engine's place in a worker process: its thread, its lease, its attempts; law: one engine a process, made after the last fork.

Under our own pool, `solo` and `threads` it lives in the worker's main process; under `prefork` each child has one.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast
from weakref import WeakSet

from celery import Celery

from orchestrator.celery import Orchestrator
from orchestrator.clock import SYSTEM, Clock
from orchestrator.core import guard
from orchestrator.core.definitions import ACTIVITIES
from orchestrator.dispatch import hand_back
from orchestrator.errors import DatabaseUnavailable
from schemas.history import ActivityScheduled
from schemas.runs import ActivityKey, PendingActivity, Settlement
from workers.attempts import Attempt, AttemptRunner
from workers.claims import Claims
from workers.coroutines import CoroutineLoop
from workers.decider import Decider
from workers.ear import Ear
from workers.instances import Instances
from workers.lease import Lease
from workers.showing import Showing
from workers.threads import Job, Threads
from workers.turns import Engine, Note
from workers.watchdog import Watchdog

log = logging.getLogger("orchestrator.host")

DRAIN_LOOK_S = 0.05  # how often a draining host looks whether its attempts have ended


class Host:
    """Everything of ours that runs in one worker process; monitors are told of its activities while `shown` says so."""

    def __init__(
        self,
        orchestrator: Orchestrator,
        *,
        node: str,
        queues: Callable[[], Sequence[str]],
        threads: Threads,
        loop: CoroutineLoop,
        shown: Callable[[], bool] = lambda: False,
        clock: Clock = SYSTEM,
    ) -> None:
        settings = orchestrator.settings
        notes: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self.orchestrator = orchestrator
        self.watchdog = Watchdog(settings.turn_seconds_max, clock)
        self._lent = Lent(threads)
        self._showing = Showing(orchestrator.app, node=node, wanted=shown, clock=clock)
        self.runner = AttemptRunner(
            cast("Threads", self._lent),  # as much of them as a runner uses
            loop,
            converter=orchestrator.converter,
            report=notes.put,
            eager_s=settings.eager_s,
            clock=clock,
            showing=self._showing,
        )
        decider = Decider(
            Instances(settings.instances_max if settings.cache else 0),
            self.watchdog,
            converter=orchestrator.converter,
            route=lambda scheduled, run_queue: route(orchestrator.app, scheduled, run_queue),
            fresh_id=clock.fresh_id,
        )
        self.engine = Engine(
            orchestrator.store,
            orchestrator.broker,
            settings,
            decider=decider,
            runner=self.runner,
            queues=queues,
            notes=notes,
            clock=clock,
        )
        self._ear = Ear(orchestrator.store, worker_id=lambda: self.engine.worker_id, ring=self.engine.ring) if settings.hints else None
        self.lease = Lease(orchestrator.store, orchestrator.broker, settings, node=node, queues=queues, clock=clock)
        self._clock = clock
        self.claims = Claims()
        self.on_renewed: list[Callable[[], None]] = []  # told after others took our work; must return at once
        self._tasks: dict[ActivityKey, PendingActivity] = {}  # Celery tasks that run here as activities
        self._doors = threading.Lock()
        self._inside = 0  # messages of activities between their arrival and their end
        self._closed = False
        self._drained = threading.Event()
        self._stopping = threading.Event()
        self._renew = threading.Event()
        self._thread = threading.Thread(target=self._work, name="orchestrator-engine", daemon=True)

    def start(self) -> None:
        """Register this worker and begin to work."""
        guard.install()
        self.engine.worker_id, self.engine.skew_s = self.lease.register()
        self._thread.start()
        self.lease.start(lost=self._renew.set, skewed=self._skewed)
        if self._ear is not None:
            self._ear.start()

    def ring(self) -> None:
        """There may be ready work."""
        self.engine.ring()

    def enter(self) -> bool:
        """A message of an activity wants to be claimed here; False: this host is leaving. Whoever entered must `leave`."""
        with self._doors:
            self._inside += not self._closed
            return not self._closed

    def leave(self) -> None:
        """It was claimed and is known, or it is over."""
        with self._doors:
            self._inside -= 1

    def began(self, pending: PendingActivity) -> Attempt:
        """A Celery task runs here as an activity."""
        self._tasks[pending.key] = pending
        return self.runner.adopt(pending)

    def ended(self, pending: PendingActivity, settlement: Settlement | None) -> None:
        """A Celery task that ran as an activity has ended; None: somebody else settles it."""
        self.runner.release(pending.key)
        if settlement is not None:
            self.engine.settle(settlement)
        # Last of all, so that a draining host does not take the moment in between for idleness.
        self._tasks.pop(pending.key, None)

    def stop(self, *, drain_s: float) -> list[PendingActivity]:
        """Take nothing more, wait at most drain_s for what runs, give the rest back, leave; return the Celery tasks among the rest."""
        self.engine.draining = True
        self.engine.ring()
        self.lease.tell_stopping()
        deadline = self._clock.monotonic() + drain_s
        while not self._close_if_quiet() and self._thread.is_alive() and self._clock.monotonic() < deadline:
            self._stopping.wait(DRAIN_LOOK_S)
        with self._doors:
            self._closed = True
        left = list(self._tasks.values())
        self._stopping.set()
        self.engine.ring()
        self._thread.join(self.orchestrator.settings.poll_s + 5.0)
        self.lease.stop()
        if self._ear is not None:
            self._ear.stop()
        self.watchdog.stop()
        try:
            hand_back(
                self.orchestrator.store,
                self.orchestrator.broker,
                self.engine.worker_id,
                batch_max=self.orchestrator.settings.due_batch_max,
            )
            self.orchestrator.broker.flush()
        except DatabaseUnavailable as error:
            log.warning("this worker's unfinished work will be taken over when its lease ends: %s", error.message)
        self._lent.give_up()
        self._showing.stop()
        return left

    def _close_if_quiet(self) -> bool:
        """Let nobody in any more if nobody is inside: what is claimed after this look would be handed back while it runs."""
        with self._doors:
            self._closed = self._drained.is_set() and not (self._inside or self._tasks) and self.engine.idle
            return self._closed

    def _work(self) -> None:
        wait_s = self.orchestrator.settings.poll_s
        looked_at = self._clock.monotonic()
        while not self._stopping.is_set():
            try:
                if self._renew.is_set():
                    self._start_anew()
                if self._clock.monotonic() - looked_at >= wait_s:
                    looked_at = self._clock.monotonic()
                    self.engine.want()  # a message may have been lost
                draining = self.engine.draining
                self.engine.cycle(wait_s=wait_s)
                if draining and self.engine.idle:
                    # Only this thread can tell: in the middle of a cycle, what it is about to start is nowhere to be seen.
                    self._drained.set()
            except Exception:
                # A fault of ours must not end the worker in silence: memory is dropped, the store is compared, work goes on.
                log.exception("the engine failed; it starts over from the store")
                self.engine.start_over()
                self._stopping.wait(wait_s)
        self._finish()

    def _finish(self) -> None:
        """What ended while we were being stopped still counts."""
        try:
            if not self.engine.idle:
                self.engine.cycle(wait_s=0.0)
        except Exception:
            log.exception("the engine failed at its end; its work goes on elsewhere")
        self.engine.close()

    def _start_anew(self) -> None:
        try:
            worker_id, skew_s = self.lease.register()
        except DatabaseUnavailable as error:
            log.warning("this worker could not register again yet: %s", error.message)
            return
        self._renew.clear()
        self.engine.start_anew(worker_id)
        self.engine.skew_s = skew_s
        for told in self.on_renewed:
            told()

    def _skewed(self, skew_s: float) -> None:
        self.engine.skew_s = skew_s


class Lent:
    """The threads of the worker, as the engine uses them: it knows which jobs on them are its own."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._jobs: WeakSet[Job] = WeakSet()  # a job is held by the thread that runs it, and by the queue

    @property
    def limit(self) -> int:
        """Jobs at once."""
        return self._threads.limit

    def submit(self, job: Job) -> None:
        """Run the job when a thread is free."""
        self._jobs.add(job)
        self._threads.submit(job)

    def give_up(self) -> None:
        """Let no job of ours run or wait any longer; what is stuck in a C call ends with the process."""
        ours = set(self._jobs)
        self._threads.drop_queued(lambda job: job in ours)
        for job in ours:
            self._threads.give_up(job)


def route(app: Celery, scheduled: ActivityScheduled, run_queue: str) -> tuple[ActivityScheduled, str]:
    """Whether a scheduled activity is a Celery task, and its queue: the one asked for, the task's own, or that of the run."""
    if not scheduled.task and (scheduled.type in ACTIVITIES or scheduled.type not in app.tasks):
        return scheduled, scheduled.queue or run_queue
    if not scheduled.task:
        scheduled = replace(scheduled, task=True)
    return scheduled, scheduled.queue or task_queue(app, scheduled.type)


def task_queue(app: Celery, name: str) -> str:
    """Where Celery itself would send this task."""
    task = app.tasks.get(name)
    own = getattr(task, "queue", None)
    if own:
        return str(own)
    queue_ = app.amqp.router.route({}, name).get("queue")
    return str(getattr(queue_, "name", queue_) or app.conf.task_default_queue)
