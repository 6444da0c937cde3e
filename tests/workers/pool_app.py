"""A small Celery application with tasks that show what a pool does; run in real worker processes, and in the test's own."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from typing import Any

from celery import Celery, Task, current_task
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.worker.control import control_command

from orchestrator.clock import SYSTEM

WAIT_MAX_S = 20.0

COLOUR: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")
NOTES: list[str] = []
GATES: dict[str, threading.Event] = {}


def wait_until(condition: Callable[[], Any], what: str, max_s: float = WAIT_MAX_S) -> Any:
    deadline = SYSTEM.monotonic() + max_s
    while SYSTEM.monotonic() < deadline:
        value = condition()
        if value:
            return value
        SYSTEM.sleep(0.02)
    raise AssertionError(f"not within {max_s} s: {what}")


class Noted(Task[Any, Any]):
    def before_start(self, task_id, args, kwargs):
        NOTES.append("before_start")

    def on_success(self, retval, task_id, args, kwargs):
        NOTES.append(f"on_success {retval}")

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        NOTES.append(f"on_failure {exc}")

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        NOTES.append(f"after_return {status}")


async def who_am_i(task):
    await asyncio.sleep(0)
    return task.request.id


async def whoami(self):
    COLOUR.set(self.request.id)
    await asyncio.sleep(0.01)
    inner = await asyncio.gather(who_am_i(self), asyncio.to_thread(lambda: self.request.id))
    return [self.request.id, COLOUR.get(), current_task.request.id, *inner]


async def add(a, b):
    await asyncio.sleep(0)
    return a + b


async def nap(seconds):
    await asyncio.sleep(seconds)
    return "rested"


async def fail(self):
    await asyncio.sleep(0)
    raise ValueError("as asked")


async def flaky(self):
    await asyncio.sleep(0)
    if self.request.retries == 0:
        raise OSError("the first time")
    return self.request.retries


async def again(self):
    await asyncio.sleep(0)
    if self.request.retries == 0:
        raise self.retry(countdown=0)
    return "second"


async def ignore():
    await asyncio.sleep(0)
    raise Ignore


async def reject():
    await asyncio.sleep(0)
    raise Reject("no", requeue=False)


async def tidy():
    try:
        await asyncio.sleep(60)
    except SoftTimeLimitExceeded:
        await asyncio.sleep(0.01)
        return "tidied"


def busy(seconds):
    """Python code that can be interrupted between bytecodes."""
    pause = threading.Event()
    for _ in range(int(seconds * 100)):
        pause.wait(0.01)
    return "done"


def tidy_busy():
    try:
        return busy(60)
    except SoftTimeLimitExceeded:
        return "tidied"


def stuck(gate):
    """One C call that nothing interrupts."""
    GATES.setdefault(gate, threading.Event()).wait(60)
    return "too late"


def plain(a, b):
    return a + b


def exit_quickly():
    raise SystemExit(3)


@control_command()
def deafen(state):
    """Stop asking for messages on this connection, as a lost wake-up would."""
    for channel in state.consumer.connection.transport.channels:
        channel.qos.can_consume = lambda: False
    return {"ok": "deaf"}


def make(broker: str, backend: str, **conf: object) -> Celery:
    app = Celery("pool_app", broker=broker, backend=backend, set_as_current=False)
    app.conf.update(
        worker_pool="workers.pool:FleetPool",
        worker_consumer="workers.consumer:FleetConsumer",
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"socket_connect_timeout": 5},
        task_default_queue="pool",
        worker_watchdog_interval=0.3,
        worker_watchdog_patience=0.9,
        **conf,
    )
    register: Any = app.task  # many shapes, one loop
    for function in (add, nap, ignore, reject, tidy, busy, tidy_busy, stuck, plain, exit_quickly):
        register(function, name=function.__name__, shared=False)
    for function in (whoami, again):
        register(function, name=function.__name__, bind=True, shared=False)
    register(fail, name="fail", bind=True, base=Noted, shared=False)
    register(add, name="noted", base=Noted, shared=False)
    register(flaky, name="flaky", bind=True, autoretry_for=(OSError,), retry_kwargs={"countdown": 0}, shared=False)
    register(nap, name="late_nap", acks_late=True, shared=False)
    register(busy, name="late_busy", acks_late=True, shared=False)
    return app


app = make(os.environ.get("POOL_APP_BROKER", "memory://"), os.environ.get("POOL_APP_BACKEND", "cache+memory://"))
