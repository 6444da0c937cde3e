"""Our Celery consumer: lives through a broker that restarts or forgets, and notices when it is deaf; law: liveness is progress (R12).

`worker_consumer="workers.consumer:FleetConsumer"` selects it. It adds to Celery's:

* **Restart.** When Redis or Valkey goes down while messages are unacked, closing the channel asks for the reply of a command whose
  connection is gone, and Celery's worker exits. We read that reply first, if it comes; the reconnect then takes its usual course.
* **Wipe.** FLUSHALL removes the sets in which kombu keeps which queue is bound to which exchange, and publishers then route into the
  void without an error. `Watchdog` declares the queues that we consume again, every `worker_watchdog_interval` seconds (default 10).
* **Deafness.** A consumer can lose its ear while its process and its heartbeat live. What proves it is neither a ping nor a connection
  but *messages that wait while we have room and take none*. `Watchdog`, a thread with a broker connection of its own, looks at each
  interval; when that has been so for `worker_watchdog_patience` seconds (default 30) it breaks the consumer's connection, and the
  reconnect, a path that is taken every day, makes a new one. First it asks the hub to raise the error; if that is not enough (the hub
  is stuck in a call) it shuts the sockets. A paused consumer, a full one and an idle one are not deaf.
* **Loans.** A running coroutine with `acks_late` does not count against the prefetch count (see `workers.pool`). So that loans and
  Celery's reduction of that count after a reconnect cannot lead each other astray, we do without the reduction.
* **Hooks.** Each of `strategy_hooks` is called when strategies and tracers have been built, on every connection.
* **Letters.** What cannot be processed (no task, an unknown one, a body that cannot be read, bytes that are no message) becomes a dead
  letter before Celery drops it, where a hook has given `letters` a place.
* **Later.** A remote control command may return a `Future`: it is answered when that is done, and the main thread waits for nobody.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from celery.utils.log import get_logger
from celery.utils.threads import _open_broker_sockets, bound_open_broker_sockets  # type: ignore[attr-defined] # the stubs lack them
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.consumer.control import Control
from kombu import Connection

from orchestrator.clock import SYSTEM, Clock
from workers.letters import Letters, tolerate_garbage
from workers.pool import FleetPool

WATCHDOG_INTERVAL_S = 10.0
WATCHDOG_PATIENCE_S = 30.0
WATCHDOG_SOCKET_TIMEOUT_S = 5.0

logger = get_logger(__name__)


class DeafConsumer(ConnectionResetError):
    """Messages wait, and this worker has room for them but receives none; its broker connection is made anew."""


class FleetConsumer(Consumer):
    """See the module."""

    qos: Any  # these come from Celery's consumer and its bootsteps, and the stubs lack them
    task_consumer: Any
    hub: Any
    steps: list[Any]
    strategies: dict[str, Callable[..., Any]]
    connection_errors: tuple[type[BaseException], ...]
    letters: Letters | None = None
    """Where messages go that cannot be processed; set by a hook."""
    received = 0
    """Messages since the process began: the proof of hearing."""

    def __init__(self, *args: Any, clock: Clock = SYSTEM, **options: Any) -> None:  # noqa: ANN401 - Celery's own
        super().__init__(*args, **options)
        self.watchdog = Watchdog(self, clock)
        if isinstance(self.pool, FleetPool):
            self.pool.lend = self._lend
        for step in self.steps:
            if isinstance(step, Control):
                box: Any = vars(step)["box"]  # the stub lacks it
                answer_later(box.node, self.call_soon)

    def start(self) -> None:
        """Consume until told to stop, watched."""
        self.watchdog.start()
        try:
            super().start()
        finally:
            self.watchdog.stop()

    def update_strategies(self) -> None:
        """Build strategies and tracers; then it is the turn of the pool, and of the hooks."""
        super().update_strategies()
        if isinstance(self.pool, FleetPool):
            self.pool.adopt(self.app.tasks.values())
        for hook in strategy_hooks:
            hook(self)

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], Any]:  # noqa: ANN401 - Celery's own
        """Celery's handler of messages, counted."""
        handle = super().create_task_handler(*args, **options)

        def on_task_received(message: object) -> object:
            self.received += 1
            try:
                return handle(message)
            except self.connection_errors:
                raise
            except Exception as error:
                if self.letters is None:
                    raise
                logger.exception("A message could not be taken")
                self._set_aside(message, f"it could not be taken: {error!r}", lambda: drop(self, message))
                return None

        return on_task_received

    def connect(self) -> Any:  # noqa: ANN401 - kombu's connection
        """As Celery's; what is no message must not end the process."""
        self.app.connection_for_read().get_transport_cls()  # imports it; channels keep what their class has when they are made
        tolerate_garbage()
        return super().connect()

    def on_unknown_message(self, body: object, message: object) -> None:
        """Nothing says what it is for."""
        settle = super().on_unknown_message
        self._set_aside(message, "it names no task", lambda: settle(body, message))

    def on_unknown_task(self, body: object, message: Any, exc: Exception) -> None:  # noqa: ANN401 - kombu's message
        """It is for a task that nobody here has."""
        settle = super().on_unknown_task
        self._set_aside(message, f"task {exc.args[0]!r} is not known here", lambda: settle(body, message, exc))

    def on_invalid_task(self, body: object, message: object, exc: Exception) -> None:
        """It cannot be a call of its task, or its content is of a kind that is not accepted."""
        settle = super().on_invalid_task
        self._set_aside(message, f"it is not a call of its task: {exc}", lambda: settle(body, message, exc))

    def on_decode_error(self, message: object, exc: Exception) -> None:
        """Its body cannot be read."""
        settle = super().on_decode_error
        self._set_aside(message, f"its body cannot be read: {exc}", lambda: settle(message, exc))

    def _set_aside(self, message: object, reason: str, settle: Callable[[], object]) -> None:
        """Keep it as a dead letter, if there is a place for those; then, on the hub's thread, do as Celery does."""

        def settled() -> None:
            try:
                settle()
            except self.connection_errors:
                raise
            except Exception:
                logger.exception("A message that was set aside could not be dropped as Celery does it; it is rejected")
                drop(self, message)

        if self.letters is None:
            settle()
        else:
            self.letters.set_aside(message, reason, lambda: self.call_soon(settled))

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Clean up a lost connection without dying of it."""
        self._read_last_replies()
        super().on_connection_error_after_connected(exc)
        self.initial_prefetch_count = self.max_prefetch_count
        self._maximum_prefetch_restored = True

    def _read_last_replies(self) -> None:
        """Take the reply of each pending BRPOP while its channel is whole.

        Closing would read it too, but break halfway if there is none to come; and to skip it would lose the message that it may carry.
        """
        connection = self.connection
        bound_open_broker_sockets(connection, WATCHDOG_SOCKET_TIMEOUT_S)
        for channel in tuple(getattr(connection.transport if connection else None, "channels", None) or ()):
            if getattr(channel, "_in_poll", None):
                try:
                    channel._brpop_read()  # noqa: SLF001 - what Channel.close does
                except Exception as error:  # noqa: BLE001 - the connection is lost, as we knew, or there was no message
                    logger.debug("No last message from %r: %r", channel, error)

    @property
    def room(self) -> bool:
        """May the broker hand us another message?"""
        prefetch = self.qos.value if self.qos else 0
        held = sum(not request.acknowledged for request in tuple(state.requests.values()))
        return not prefetch or held < prefetch

    def _lend(self) -> Callable[[], None]:
        qos = self.qos
        qos.increment_eventually()

        def give_back() -> None:
            if qos is self.qos:  # a later connection has its own count, and this message does not count there
                qos.decrement_eventually()

        return give_back


def answer_later(node: Any, call_soon: Callable[..., object]) -> None:  # noqa: ANN401 - a kombu mailbox node, which has no types
    """Let the commands of a mailbox return futures; what those fail with is answered as Celery answers an exception."""
    plain = node.reply

    def reply(data: dict[str, Any], *args: object, **options: object) -> None:
        ((name, value),) = data.items()
        if not isinstance(value, Future):
            plain(data, *args, **options)
            return

        def done(future: Future[Any]) -> None:
            failure = None if future.cancelled() else future.exception()
            answer = {"error": repr(failure)} if failure or future.cancelled() else future.result()
            call_soon(send, {name: answer})

        def send(answered: dict[str, Any]) -> None:
            try:
                plain(answered, *args, **options)
            except Exception as error:  # noqa: BLE001 - whoever asked has a timeout, and the connection tells of itself
                logger.warning("A remote control command could not be answered: %r", error)

        value.add_done_callback(done)

    node.reply = reply


def drop(consumer: FleetConsumer, message: Any) -> None:  # noqa: ANN401 - kombu's message
    """Have the broker forget a message, or put it where its own dead letters go."""
    message.reject_log_error(logger, consumer.connection_errors)


strategy_hooks: list[Callable[[FleetConsumer], None]] = []
"""Called in order after strategies and tracers were built; wrap `task.__trace__` or `consumer.strategies[name]` there."""


@dataclass
class Silence:
    """Since when messages have waited in vain, and what was done about it."""

    since: float
    received: int
    restarts: int
    broken: bool = False


class Watchdog:
    """A thread that declares what was forgotten and breaks a connection that has gone deaf."""

    def __init__(self, consumer: FleetConsumer, clock: Clock) -> None:
        conf = consumer.app.conf
        self._consumer, self._clock = consumer, clock
        self._interval_s = float(conf.get("worker_watchdog_interval") or WATCHDOG_INTERVAL_S)
        self._patience_s = float(conf.get("worker_watchdog_patience") or WATCHDOG_PATIENCE_S)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-watchdog", daemon=True)
        self._silence: Silence | None = None
        self._connection: Connection | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no longer; does not wait for a look that is under way."""
        self._stopped.set()

    def look(self) -> bool:
        """Look once: heal bindings, judge hearing, act; True if the connection was broken."""
        consumer = self._consumer
        queues = self._consumed()
        waiting = self._waiting(queues)
        heard = self._silence is not None and (self._silence.received, self._silence.restarts) != (
            consumer.received,
            consumer.restart_count,
        )
        if not waiting or heard or not consumer.room:
            self._silence = None
            return False
        now = self._clock.monotonic()
        if self._silence is None:
            self._silence = Silence(now, consumer.received, consumer.restart_count)
        if now - self._silence.since < self._patience_s:
            return False
        self._break(self._silence, waiting, now)
        return True

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 - no judgement without a broker: the consumer itself meets the same errors
                logger.info("The watchdog could not ask the broker: %r", error)
                self._silence = None
                self._disconnect()
        self._disconnect()

    def _consumed(self) -> list[Any]:
        tasks = self._consumer.task_consumer
        return list(tasks.queues) if tasks is not None and self._consumer.connection is not None else []

    def _waiting(self, queues: list[Any]) -> int:
        """Messages that wait in these queues; declares them, which is what asks and what heals in one."""
        if not queues:
            return 0
        if self._connection is None:
            self._connection = self._consumer.app.connection_for_read(transport_options=self._transport_options())
        channel = self._connection.default_channel
        told = getattr(self._connection.transport, "state", None)
        if told is not None:
            told.clear()  # what kombu has declared once on a connection it does not declare again, whatever the broker has forgotten
        waiting = 0
        for queue in queues:
            if queue.no_declare:
                continue  # its owner does not want it touched
            bound = queue.bind(channel)
            bound.declare()
            waiting += bound.queue_declare().message_count
        return waiting

    def _transport_options(self) -> dict[str, Any]:
        options = dict(self._consumer.app.conf.broker_transport_options or {})
        return {"socket_timeout": WATCHDOG_SOCKET_TIMEOUT_S, "socket_connect_timeout": WATCHDOG_SOCKET_TIMEOUT_S, **options}

    def _break(self, silence: Silence, waiting: int, now: float) -> None:
        consumer = self._consumer
        logger.error("%d messages wait, there is room, and none came for %.1f s: this consumer is deaf", waiting, now - silence.since)
        if consumer.hub is not None and not silence.broken:
            silence.broken = True
            consumer.hub.call_soon(self._raise, consumer.restart_count)
            return
        connection = consumer.connection
        for sock in _open_broker_sockets(connection) if connection else ():
            sock.shutdown(socket.SHUT_RDWR)

    def _raise(self, restarts: int) -> None:
        if self._consumer.restart_count == restarts:
            raise DeafConsumer("deaf: messages waited in vain")

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()
