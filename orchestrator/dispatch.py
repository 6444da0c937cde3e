"""Services between the store and the broker: ring, publish, settle, recover; law: commit first, then send, and a message may get lost.

`Broker` is the seam: two verbs. `CeleryBroker` speaks them through Celery; the simulation has its own. The services below it are what both
workers and beat do when time passes: each takes a batch from the store, decides purely, writes once, then rings.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from celery import Celery
from celery.app.amqp import Queues
from kombu import Exchange, Queue

from orchestrator.clock import SYSTEM, Clock
from orchestrator.core.retries import DEFAULT, LOSSES_MAX, NO_RETRY, RetryState, judge
from orchestrator.crashpoints import crashpoint
from orchestrator.errors import BrokerUnavailable
from orchestrator.store import Store, Transaction, activities, control, deadletters, due, relations, workers
from schemas.history import ActivityCanceled, ActivityFailed, Failure, RetryPolicy
from schemas.runs import DeadLetter, PendingActivity, Replayed, Resolved, Settlement, TryAgain, WorkerRow
from schemas.settings import Settings

log = logging.getLogger("orchestrator.dispatch")

DOORBELL = "orchestrator.doorbell"
AGENT_QUEUES = ("work.", "agent.")  # how the names of the queues of agents begin
DEAD_LETTERS = "orchestrator.dead_letter"
HEADER = "orchestrator"  # message header of an activity: run id, number, attempt
RING_PAUSE = 4.0  # after ringing, this many times as long as it took without another ring: it takes at most a fifth of a core
RING_PAUSE_MAX_S = 0.02  # but no ring waits longer for that
FLUSH_MAX_S = 5.0  # how long a process waits at its end for rings that are on their way


class Broker(Protocol):
    """What the engine asks of a broker. Neither call may raise because the broker is away: a sweep makes up for what is lost."""

    def ring(self, queue: str, *, delay_s: float = 0.0) -> None:
        """Say that `queue` has ready work, after `delay_s` if it may have been heard of by then."""
        ...

    def send(self, activity: PendingActivity) -> None:
        """Send a Celery task its message."""
        ...


# --- the broker through Celery -----------------------------------------------------------------------------------------------


class AgentQueues(Queues):
    """Celery's queues; those of agents have a place for what is rejected, where the broker knows of such."""

    def new_missing(self, name: str) -> Queue:
        """As Celery makes it. Whoever declares such a queue must say the same, so every application of ours does."""
        made: Queue = super().new_missing(name)
        if name.startswith(AGENT_QUEUES):
            made.queue_arguments = {**(made.queue_arguments or {}), "x-dead-letter-exchange": DEAD_LETTERS}
        return made


def with_agent_queues(app: Celery) -> None:
    """Let an application declare the queues of agents as all others do; done before it has any queue."""
    if app.amqp.queues_cls is Queues:
        app.amqp.queues_cls = AgentQueues


def dead_letter_queue() -> Queue:
    """Where a broker that knows of dead letters puts what is rejected; the rows in the store are what counts."""
    return Queue(DEAD_LETTERS, Exchange(DEAD_LETTERS, "fanout"), DEAD_LETTERS)


def celery_for(settings: Settings, name: str = "orchestrator") -> Celery:
    """A Celery application that can send to the broker of `settings`."""
    app = Celery(name, broker=settings.broker_url, set_as_current=False)
    with_agent_queues(app)
    app.conf.update(
        task_ignore_result=True,
        task_default_queue=settings.default_queue,
        broker_connection_timeout=4.0,
        task_publish_retry=False,
        broker_transport_options={
            "socket_timeout": 10.0,
            "socket_connect_timeout": 4.0,
            "socket_keepalive": True,
            # One try: a ring that waits for its broker is worth nothing, the sweep has rung by then.
            "max_retries": 1,
            "interval_start": 0.0,
            "interval_max": 0.1,
        },
    )
    return app


class CeleryBroker:
    """Rings and sends through a Celery application, from a thread of its own: a slow broker must not hold up a commit.

    Rings for one queue within `window_s` are one message, and so are those that may wait; the longer the broker takes for a message, the
    longer rings wait for the next one. Safe after fork.
    """

    def __init__(self, app: Celery, *, window_s: float, clock: Clock = SYSTEM) -> None:
        self._app = app
        self._window_s = window_s
        self._clock = clock
        self._reset()
        atexit.register(self.flush)

    def ring(self, queue: str, *, delay_s: float = 0.0) -> None:
        """Say that `queue` has ready work, now or in delay_s seconds; many of the latter are one message as well."""
        with self._condition():
            if not delay_s:
                self._rings[queue] = None
                self._changed.notify()
            elif queue not in self._later:
                self._later[queue] = self._clock.monotonic() + delay_s
                self._changed.notify()

    def send(self, activity: PendingActivity) -> None:
        """Send a Celery task its message."""
        with self._condition():
            self._tasks.append(activity)
            self._changed.notify()

    def forward(self, queue: str, body: str, *, content_type: str | None, headers: Mapping[str, Any]) -> None:
        """Send a message as it once came, at once. Raises BrokerUnavailable."""
        try:
            with self._app.producer_or_acquire() as producer:
                declared = [self._app.amqp.queues[queue]]
                producer.publish(
                    body,
                    exchange="",
                    routing_key=queue,
                    content_type=content_type or "application/data",
                    content_encoding="utf-8",
                    headers=dict(headers),
                    declare=declared,
                )
        except Exception as error:
            raise BrokerUnavailable(f"the broker did not take the message: {type(error).__name__}: {error}") from error

    def flush(self) -> None:
        """Wait until what was asked for has been sent, or the broker refused it."""
        if self._pid != os.getpid():
            return
        with self._changed:
            self._rings |= dict.fromkeys(self._later)
            self._changed.notify_all()
            self._changed.wait_for(lambda: not (self._rings or self._tasks or self._busy) or not self._thread.is_alive(), FLUSH_MAX_S)

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._rings: dict[str, None] = {}  # in order of arrival
        self._later: dict[str, float] = {}  # on the monotonic clock
        self._quiet_until = 0.0  # likewise: rings wait until then
        self._tasks: list[PendingActivity] = []
        self._busy = False
        self._complained = False
        self._thread = threading.Thread(target=self._work, name="orchestrator-broker", daemon=True)

    def _condition(self) -> threading.Condition:
        if self._pid != os.getpid():
            self._reset()  # a child of fork: threads and locks of the parent mean nothing here
        if not self._thread.is_alive():
            with self._changed:
                if not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._work, name="orchestrator-broker", daemon=True)
                    self._thread.start()
        return self._changed

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._tasks or (self._rings and self._clock.monotonic() >= self._quiet_until)):
                    self._ripen()
                rings, tasks = list(self._rings), self._tasks
                self._rings, self._tasks, self._busy = {}, [], True
                for queue in rings:
                    self._later.pop(queue, None)  # this message tells of it as well
            began = self._clock.monotonic()
            self._deliver(rings, tasks)
            ended = self._clock.monotonic()
            if self._window_s and rings:
                self._quiet_until = ended + max(self._window_s, min(RING_PAUSE * (ended - began), RING_PAUSE_MAX_S))
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _ripen(self) -> None:
        """Under the lock: wait for something to do, or for the time of what was to be rung later."""
        now = self._clock.monotonic()
        ripe = [queue for queue, at in self._later.items() if at <= now]
        self._rings.update(dict.fromkeys(ripe))
        moments = [*self._later.values(), *([self._quiet_until] if self._rings else ())]
        if not ripe:
            self._changed.wait(min(moments) - now if moments else None)

    def _deliver(self, rings: Sequence[str], tasks: Sequence[PendingActivity]) -> None:
        try:
            with self._app.producer_or_acquire() as producer:
                for queue in rings:
                    crashpoint("before_ring")
                    self._app.send_task(DOORBELL, args=(queue,), queue=queue, producer=producer, ignore_result=True, expires=60)
                    crashpoint("after_ring")
                for activity in tasks:
                    crashpoint("before_publish")
                    self._publish(activity, producer)
                    crashpoint("after_publish")
            self._complained = False
        except Exception as error:  # noqa: BLE001 - whatever the transport raises: the message is only a hint, sweeps ring again
            if not self._complained:
                log.warning("the broker cannot be reached, work goes on by polling: %s: %s", type(error).__name__, error)
            self._complained = True

    def _publish(self, activity: PendingActivity, producer: Any) -> None:  # noqa: ANN401 - kombu has no public type for it
        scheduled = activity.scheduled
        key = activity.key
        self._app.send_task(
            scheduled.type,
            args=tuple(scheduled.args),
            kwargs=scheduled.kwargs or {},
            task_id=task_id(activity),
            queue=activity.queue,
            headers={HEADER: {"run_id": key.run_id, "seq": key.seq, "attempt": key.attempt, "idempotency_key": f"{key.run_id}-{key.seq}"}},
            producer=producer,
        )


def task_id(activity: PendingActivity) -> str:
    """The Celery task id of an attempt, so that Flower, revoke and logs line up with the history."""
    key = activity.key
    return f"{key.run_id}--{key.seq}-{key.attempt}"


def ring_all(broker: Broker, queues: Iterable[str]) -> None:
    """Ring for each of `queues`."""
    for queue in sorted(queues):  # in one order, so that a recorded simulation can be repeated
        broker.ring(queue)


# --- what becomes of an attempt that did not succeed ---------------------------------------------------------------------------


def settlement(activity: PendingActivity, failure: Failure, *, now: float, losses: int = 0) -> Settlement:
    """Decide about an attempt that failed at `now`: again later, or over."""
    scheduled = activity.scheduled
    give_up_at = None if scheduled.schedule_to_close_s is None else activity.scheduled_at + scheduled.schedule_to_close_s
    verdict = judge(
        _policy(activity, failure),
        failure,
        attempt=activity.key.attempt,
        now=now,
        give_up_at=give_up_at,
        cancel_requested=activity.cancel_requested,
    )
    if verdict.state is RetryState.IN_PROGRESS:
        return TryAgain(activity.key, due_at=now + verdict.delay_s, failure=failure, losses=losses)
    key = activity.key
    if failure.kind == "canceled" and activity.cancel_requested:
        return Resolved(key, ActivityCanceled(key.seq, failure.details, key.attempt))
    if verdict.state is RetryState.TIMEOUT and failure.kind != "timeout":
        failure = Failure(kind="timeout", message="no time was left for another attempt", type="schedule_to_close", cause=failure)
    return Resolved(key, ActivityFailed(key.seq, failure, str(verdict.state), key.attempt))


def loss(activity: PendingActivity, *, now: float, worker: str) -> Settlement:
    """Decide about an attempt whose worker died: again at once, over if it may not run twice, poison if it keeps killing."""
    losses = activity.losses + 1
    key = activity.key
    if losses >= LOSSES_MAX:
        message = f"activity {activity.scheduled.type!r} was running in {losses} workers as they died; it is set aside as a dead letter"
        failure = Failure(kind="worker_lost", message=message, non_retryable=True)
        return Resolved(key, ActivityFailed(key.seq, failure, RetryState.NON_RETRYABLE_FAILURE, key.attempt), dead_letter=True)
    failure = Failure(kind="worker_lost", message=f"worker {worker} died while it ran attempt {key.attempt}", next_retry_delay_s=0.0)
    return settlement(activity, failure, now=now, losses=losses)


def timeout(activity: PendingActivity, *, now: float) -> Settlement:
    """Decide about an attempt whose deadline has passed: say which deadline it was, then as any failure."""
    which = _deadline(activity, now)
    details = activity.heartbeat_details if which == "heartbeat" else ()
    message = f"{which.replace('_', '-')} timeout of activity {activity.scheduled.type!r} ({activity.scheduled.activity_id})"
    return settlement(activity, Failure(kind="timeout", type=which, message=message, details=details, cause=activity.last_failure), now=now)


def _deadline(activity: PendingActivity, now: float) -> str:
    scheduled = activity.scheduled
    if scheduled.schedule_to_close_s is not None and activity.scheduled_at + scheduled.schedule_to_close_s <= now:
        return "schedule_to_close"
    if activity.started_at is None:
        return "schedule_to_start"
    if scheduled.start_to_close_s is not None and activity.started_at + scheduled.start_to_close_s <= now:
        return "start_to_close"
    return "heartbeat"


def _policy(activity: PendingActivity, failure: Failure) -> RetryPolicy:
    if activity.scheduled.retry is not None:
        return activity.scheduled.retry
    if not activity.scheduled.task:
        return DEFAULT
    # A Celery task decides by its own settings: it asks for another try with `retry`; a lost worker is not its doing.
    return DEFAULT if failure.kind == "worker_lost" or failure.next_retry_delay_s is not None else NO_RETRY


# --- when time passes --------------------------------------------------------------------------------------------------------


HEAD_START_S = 0.05
"""For so long a timer that is due is left to the process that has its run in memory (`own_timers`)."""


def head_start_s(settings: Settings) -> float:
    """How long a timer is left to whoever has its run in memory."""
    return HEAD_START_S if settings.own_timers else 0.0


def fire_timers(store: Store, broker: Broker, settings: Settings) -> int:
    """Fire the timers that are due, at most due_batch_max of them; return how many fired."""
    with store.transaction(purpose="timers.fire") as tx:
        fired = due.fire_timers(tx, settings.due_batch_max, head_start_s(settings))
    ring_all(broker, fired.queues)
    return fired.count


def part_children(store: Store, broker: Broker, *, batch_max: int) -> int:
    """Do to children whose parent has closed what their policies say, to at most batch_max of them; return how many."""
    with store.transaction(purpose="children.part") as tx:
        parted = relations.part(tx, batch_max=batch_max)
    ring_all(broker, parted.queues)
    return parted.count


def expire_activities(store: Store, broker: Broker, *, batch_max: int) -> int:
    """Time out the attempts whose deadline has passed, at most batch_max of them; return how many."""
    with store.transaction(purpose="activities.expire") as tx:
        late = activities.expired(tx, batch_max=batch_max)
        queues, _ = activities.settle(tx, [timeout(activity, now=tx.now()) for activity in late])
    ring_all(broker, queues)
    return len(late)


def publish_tasks(store: Store, broker: Broker, settings: Settings) -> int:
    """Send the messages of Celery tasks that are due or whose last message seems lost, at most due_batch_max; return how many."""
    with store.transaction(purpose="tasks.publish") as tx:
        waiting = activities.to_publish(
            tx, batch_max=settings.due_batch_max, again_s=settings.republish_s, again_max_s=settings.republish_max_s
        )
    for activity in waiting:
        broker.send(activity)
    return len(waiting)


def ring_forgotten(store: Store, broker: Broker, *, older_than_s: float) -> int:
    """Ring for queues whose work has waited for longer than that; return how many queues.

    A queue that no live worker serves is left alone: its messages would pile up, and a worker that comes looks for itself first.
    """
    with store.transaction(readonly=True) as tx:
        forgotten = due.forgotten_queues(tx, older_than_s=older_than_s)
        served = (
            {queue for row in workers.list_workers(tx) if not (row.expired or row.stopping) for queue in row.identity.queues}
            if forgotten
            else set()
        )
    ring_all(broker, forgotten & served)
    return len(forgotten & served)


def recover_expired(store: Store, broker: Broker, *, batch_max: int) -> int:
    """Strike off workers whose lease has ended, and make ready again what they had, and those struck off before; return how many workers.

    One that comes back to life a moment later finds its row gone, and drops what it holds.
    """
    with store.transaction(purpose="workers.strike") as tx:
        struck = workers.strike_expired(tx)
        known = {worker.identity.worker_id for worker in struck}
        gone = [*struck, *(orphan for orphan in workers.orphans(tx) if orphan.identity.worker_id not in known)]
    for worker in gone:
        recover(store, broker, worker, batch_max=batch_max)
    return len(gone)


def recover_neighbours(store: Store, broker: Broker, *, host: str, boot_id: str, alive: Callable[[WorkerRow], bool], batch_max: int) -> int:
    """As `recover_expired`, at once, for workers of this host whose process is gone; return how many workers."""
    with store.transaction(readonly=True) as tx:
        gone = [worker for worker in workers.on_host(tx, host, boot_id) if not alive(worker)]
    for worker in gone:
        recover(store, broker, worker, batch_max=batch_max)
    return len(gone)


def recover(store: Store, broker: Broker, worker: WorkerRow, *, batch_max: int) -> int:
    """Make ready again all that a dead worker had, batch by batch, and forget the worker last; return how many activities.

    Recovery never executes, and may itself die at any point: the next one begins again with what is left.
    """
    identity = worker.identity
    recovered = 0
    while True:
        with store.transaction(purpose="workers.recover") as tx:
            lost = workers.running_activities(tx, identity.worker_id, None, batch_max)
            queues, _ = activities.settle(tx, [loss(activity, now=tx.now(), worker=identity.node) for activity in lost])
            released = workers.release_runs(tx, identity.worker_id, batch_max)
            if not (lost or released):
                workers.remove(tx, identity.worker_id)
        ring_all(broker, queues | released)
        recovered += len(lost)
        if not (lost or released):
            log.warning(
                "worker %s (pid %s on %s) is gone; %s activities are ready again", identity.node, identity.pid, identity.host, recovered
            )
            return recovered


def replay_letter(store: Store, broker: CeleryBroker, letter_id: str) -> Replayed:
    """Send what was set aside back to where it came from. Raises BrokerUnavailable if it is a message that the broker does not take.

    A message that cannot be forgotten after it was sent is sent again by the next call: messages may come twice.
    """
    with store.transaction(purpose="deadletters.replay") as tx:
        letter = deadletters.get(tx, letter_id)
        if letter is None:
            replayed = _replayed_before(tx, letter_id)
        elif letter.kind == "activity":
            replayed = deadletters.replay_activity(tx, letter)
        else:
            replayed = _forward(tx, broker, letter)
    ring_all(broker, replayed.queues)
    return replayed


def _replayed_before(tx: Transaction, letter_id: str) -> Replayed:
    run_id, _, numbers = letter_id.partition(":")
    seq, _, attempt = numbers.partition(":")
    if seq.isdigit() and attempt.isdigit() and deadletters.started_again(tx, run_id, int(seq), int(attempt)):
        return Replayed(letter_id, done=True, told="it is on its way already")
    return Replayed(letter_id, done=False, told="there is no such letter: it was dropped, or has been replayed and is over, or never was")


def _forward(tx: Transaction, broker: CeleryBroker, letter: DeadLetter) -> Replayed:
    document = letter.document if isinstance(letter.document, Mapping) else {}
    queue, body = document.get("queue"), document.get("body")
    if not (queue and isinstance(body, str)) or document.get("cut_off"):
        return Replayed(letter.id, done=False, told="it is not whole, or was no message of a queue; whoever sent it must send it again")
    broker.forward(str(queue), body, content_type=document.get("content_type") or None, headers=document.get("headers") or {})
    control.remove_dead_letter(tx, letter.id)
    return Replayed(letter.id, done=True, told=f"sent to queue {queue}")


def hand_back(store: Store, broker: Broker, worker_id: str, *, batch_max: int) -> int:
    """Give back at a worker's orderly end what it has not finished, at once and without counting it as a loss; return how many activities."""
    handed = 0
    while True:
        with store.transaction(purpose="workers.hand_back") as tx:
            left = workers.running_activities(tx, worker_id, None, batch_max)
            stopped = Failure(kind="worker_lost", message="the worker was stopped before the activity ended", next_retry_delay_s=0.0)
            queues, _ = activities.settle(tx, [settlement(activity, stopped, now=tx.now(), losses=activity.losses) for activity in left])
            released = workers.release_runs(tx, worker_id, batch_max)
            if not (left or released):
                workers.remove(tx, worker_id)
        ring_all(broker, queues | released)
        handed += len(left)
        if not (left or released):
            return handed
