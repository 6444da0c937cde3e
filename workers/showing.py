"""Activities as Celery's monitors see tasks: Flower lists them with name, arguments and runtime; law: off costs nothing, and what is shown may be lost.

Celery tells of its own tasks. Activities of ours run without a message, so nobody would tell of them: where task events are on (`-E`,
`worker_send_task_events`, or a monitor that has asked for them), this does, some hundred in one message, from a thread of its own.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.events.event import get_exchange

from orchestrator.clock import Clock
from orchestrator.dispatch import task_id
from schemas.runs import PendingActivity

if TYPE_CHECKING:
    from workers.attempts import Outcome

log = logging.getLogger("orchestrator.showing")

PAUSE_S = 0.1  # that many can go together
TOGETHER_MAX = 200  # in one message
WAITING_MAX = 20_000  # what a broker that is away makes wait; the rest is not shown
REPR_CHARACTERS_MAX = 1_024  # as Celery cuts off arguments
LEAVE_MAX_S = 2.0

Message = dict[str, Any]


class Showing:
    """Tells monitors what one worker process does; `wanted` is asked whenever activities begin."""

    def __init__(self, app: Celery, *, node: str, wanted: Callable[[], bool], clock: Clock) -> None:
        self.wanted = wanted
        self._app = app
        self._node = node.partition("/")[0]  # a child of prefork belongs to its worker
        self._clock = clock
        self._waiting: list[Message] = []
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._complained = False

    def begun(self, batch: Sequence[PendingActivity]) -> None:
        """These attempts are at hand and begin."""
        for pending in batch:
            scheduled = pending.scheduled
            self._add(
                "task-received",
                pending,
                args=_text(tuple(scheduled.args)),
                kwargs=_text(scheduled.kwargs or {}),
                retries=pending.key.attempt - 1,
                root_id=pending.key.run_id,
                parent_id=None,
            )
            self._add("task-started", pending)
        self._wake()

    def ended(self, outcome: Outcome, runtime_s: float) -> None:
        """An attempt that was shown as begun has ended."""
        pending, failure = outcome.activity, outcome.failure
        if failure is None:
            self._add("task-succeeded", pending, result=_text(outcome.result), runtime=runtime_s)
        elif failure.kind == "canceled":
            self._add("task-revoked", pending, terminated=True, signum=None, expired=False)
        else:
            exception = f"{failure.type or failure.kind}({failure.message!r})"
            self._add("task-failed", pending, exception=exception, traceback=failure.stack, runtime=runtime_s)
        self._wake()

    def stop(self) -> None:
        """Send what waits, if the broker takes it, and end."""
        self._stopping.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join(LEAVE_MAX_S)

    def _add(self, type_: str, pending: PendingActivity, **fields: object) -> None:
        if len(self._waiting) < WAITING_MAX:
            name = pending.scheduled.type
            common = {"uuid": task_id(pending), "name": name, "hostname": self._node, "pid": os.getpid(), "timestamp": self._clock.now()}
            self._waiting.append({"type": type_, **common, **fields})

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="orchestrator-showing", daemon=True)
            self._thread.start()
        self._changed.set()

    def _work(self) -> None:
        while not self._stopping.is_set():
            self._changed.wait()
            self._changed.clear()
            self._send()
            self._stopping.wait(PAUSE_S)
        self._send()

    def _send(self) -> None:
        while self._waiting:
            together = self._waiting[:TOGETHER_MAX]
            del self._waiting[: len(together)]
            try:
                self._publish(together)
                self._complained = False
            except Exception as error:  # noqa: BLE001 - whatever the transport raises: nothing depends on what monitors see
                if not self._complained:
                    log.warning("monitors are not told of activities, the broker cannot be reached: %s: %s", type(error).__name__, error)
                self._complained = True
                return

    def _publish(self, together: Sequence[Message]) -> None:
        with self._app.producer_or_acquire() as producer:
            exchange = get_exchange(producer.connection, name=self._app.conf.event_exchange)
            producer.publish(
                together,
                routing_key="task.multi",
                exchange=exchange.name,
                declare=[exchange],
                serializer=self._app.conf.event_serializer,
                headers={"hostname": self._node},
                delivery_mode=1,
            )


def _text(value: object) -> str:
    text = repr(value)
    return text if len(text) <= REPR_CHARACTERS_MAX else f"{text[:REPR_CHARACTERS_MAX]}…"
