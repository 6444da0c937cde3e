"""An existing Celery application, adopted: its tasks are plain Celery, and workflows call them; run in real worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from datetime import timedelta
from typing import Any

from celery import Celery, Task, shared_task, signals
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded

from orchestrator import activity, workflow
from orchestrator.celery import HOUSE, Orchestrator
from orchestrator.errors import ActivityError, CancelledError, FailureError
from orchestrator.settings import current
from orchestrator.workflow import RetryPolicy

app = Celery("shop")
# What one who runs prefork with acks_late has set; nothing of it is asked for by us.
app.conf.update(HOUSE, task_default_queue=current().default_queue, task_routes={"routed": {"queue": "routed"}})
Orchestrator(app)

NOTES = current().home / "notes"  # what tasks write down, for tests to read
GATES = current().home / "gates"  # files that tests make to let tasks go on


def note(line: str) -> None:
    """One line, whole, whoever else writes."""
    with NOTES.open("a") as notes:
        notes.write(line + "\n")


def pause(seconds: float) -> None:
    """Python code that can be interrupted between bytecodes."""
    nothing = threading.Event()
    for _ in range(int(seconds * 100)):
        nothing.wait(0.01)


def wait_for_gate(name: str) -> None:
    while not (GATES / name).exists():
        pause(0.02)


class Hooked(Task[Any, Any]):
    def on_success(self, retval, task_id, args, kwargs):
        note(f"{task_id} on_success {retval}")

    def on_failure(self, exc, task_id, args, kwargs, einfo):
        note(f"{task_id} on_failure {exc}")

    def after_return(self, status, retval, task_id, args, kwargs, einfo):
        note(f"{task_id} after_return {status}")


@shared_task(name="add")
def add(a: int, b: int = 10) -> int:
    return a + b


@app.task(name="bound", bind=True)
def bound(self):
    info = activity.info()
    return [self.request.id, f"{info.run_id}--{info.seq}-{info.attempt}", self.request.retries, self.request.delivery_info["routing_key"]]


@app.task(name="own_queue", queue="own", bind=True)
def own_queue(self):
    return self.request.delivery_info["routing_key"]


@app.task(name="routed", bind=True)
def routed(self):
    return self.request.delivery_info["routing_key"]


@app.task(name="again", bind=True, max_retries=3)
def again(self, times, countdown):
    if self.request.retries < times:
        raise self.retry(countdown=countdown, exc=OSError("not yet"))
    return [self.request.retries, activity.info().attempt]


@app.task(name="quietly_again", bind=True)
def quietly_again(self):
    if self.request.retries == 0:
        self.retry(countdown=0, throw=False)
    return self.request.retries


@app.task(name="other_again", bind=True)
def other_again(self):
    raise self.retry(countdown=0, args=(1, 2))


@app.task(name="flaky", bind=True, autoretry_for=(OSError,), retry_backoff=True, retry_jitter=False, retry_backoff_max=1, max_retries=2)
def flaky(self, failures):
    if self.request.retries < failures:
        raise OSError(f"disk {self.request.retries}")
    return self.request.retries


@app.task(name="fail")
def fail():
    raise ValueError("as asked")


@app.task(name="ignore")
def ignore():
    raise Ignore


@app.task(name="reject", bind=True)
def reject(self, requeue):
    if requeue and activity.info().attempt > 1:
        return "the second time"
    raise Reject("no", requeue=requeue)


@app.task(name="soft", soft_time_limit=1)
def soft(catch):
    try:
        pause(30)
    except SoftTimeLimitExceeded:
        if catch:
            return "tidied"
        raise


@app.task(name="hard", time_limit=1)
def hard():
    pause(30)


@app.task(name="hooked", base=Hooked)
def hooked(ok):
    if not ok:
        raise ValueError("as asked")
    return "fine"


@app.task(name="beating")
def beating(seconds):
    try:
        for step in range(int(seconds * 20)):
            activity.heartbeat(step)
            pause(0.05)
    except CancelledError:
        note(f"{activity.info().run_id} cancelled")
        raise
    return activity.info().heartbeat_details


@app.task(name="unserialisable")
def unserialisable():
    return object()


@app.task(name="gated", bind=True)
def gated(self, gate):
    note(f"{gate} started {activity.info().attempt if activity.in_activity() else 0} pid={os.getpid()}")
    wait_for_gate(gate)
    note(f"{gate} ended {activity.info().attempt if activity.in_activity() else 0} pid={os.getpid()}")
    return gate


@app.task(name="poison")
def poison(how):
    note(f"poison {how}")
    if how == "exit":
        os._exit(9)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="count")
def count(what):
    note(f"count {what}")
    return what


async def nap(seconds):
    await asyncio.sleep(seconds)
    return [activity.info().attempt, activity.in_activity()]


async def async_again(self):
    await asyncio.sleep(0)
    if self.request.retries == 0:
        raise self.retry(countdown=0, exc=OSError("not yet"))
    return self.request.retries


async def async_fail():
    await asyncio.sleep(0)
    raise ValueError("as asked")


async def async_beating():
    for step in range(400):
        activity.heartbeat(step)
        await asyncio.sleep(0.05)


register: Any = app.task  # the stub knows no other way than decorators
register(nap, name="nap")
register(async_again, name="async_again", bind=True)
register(async_fail, name="async_fail")
register(async_beating, name="async_beating")
register(nap, name="async_soft", soft_time_limit=1)
register(nap, name="async_hard", time_limit=1)


@activity.defn
def native_gated(gate: str) -> str:
    note(f"{gate} started {activity.info().attempt} pid={os.getpid()}")
    wait_for_gate(gate)
    note(f"{gate} ended {activity.info().attempt} pid={os.getpid()}")
    return gate


@activity.defn
def quick(number: int) -> int:
    note(f"quick {number}")
    return number


@activity.defn
def not_today() -> None:
    raise RuntimeError("not today")


@activity.defn
async def patient() -> None:
    note(f"patient started pid={os.getpid()}")
    await asyncio.sleep(60)


@workflow.defn
async def call(task: str, args: list[Any], options: dict[str, Any]) -> Any:
    """One activity by name; a failure as [kind, type, message, retry state, cause of the cause]."""
    for name in ("heartbeat_timeout", "start_to_close_timeout"):
        if name in options:
            options[name] = timedelta(seconds=options[name])
    if "maximum_attempts" in options:
        options["retry_policy"] = RetryPolicy(maximum_attempts=options.pop("maximum_attempts"))
    try:
        return await workflow.execute_activity(task, args=args, **options)
    except ActivityError as error:
        return told(error)


@workflow.defn
async def call_object() -> list[Any]:
    """By the task objects themselves, in parallel."""
    return list(
        await asyncio.gather(
            workflow.execute_activity(add, args=[1], kwargs={"b": 2}),
            workflow.execute_activity(add, 5),
            workflow.execute_activity(own_queue),
            workflow.execute_activity(routed),
        )
    )


@workflow.defn
async def steps(number: int, many: int) -> int:
    """Native and Celery activities in turns."""
    for step in range(many):
        name: Any = quick if step % 2 else "count"
        await workflow.execute_activity(name, args=[number * 1000 + step])
    return number


def told(error: ActivityError) -> list[Any]:
    cause = error.cause
    below = cause.__cause__ if cause is not None else None
    kind = type(cause).__name__
    return [
        "failed",
        kind,
        getattr(cause, "type", ""),
        str(cause),
        error.retry_state,
        str(below) if isinstance(below, FailureError) else "",
    ]


@signals.task_prerun.connect
def _prerun(task_id="", **_):
    note(f"{task_id} prerun")


@signals.task_postrun.connect
def _postrun(task_id="", **_):
    note(f"{task_id} postrun")
