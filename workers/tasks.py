"""Celery tasks as activities, unchanged; law: an attempt starts by a fenced claim, and its end reaches the store instead of a result backend.

A message for an activity carries its key in a header. The tracer of every task is wrapped: a message without that header takes its usual
course; one with it is claimed first (a redelivered or outdated message stops here), then traced by Celery's own tracer in its eager mode,
in which `self.retry` and `autoretry_for` raise without publishing: the store keeps the retry and its time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from celery import Celery, Task, states
from celery.app.trace import build_tracer, trace_ok_t
from celery.exceptions import Ignore, Reject, Retry

from orchestrator import activity
from orchestrator.celery import Orchestrator
from orchestrator.core.failures import to_failure
from orchestrator.dispatch import HEADER, ring_all, settlement
from orchestrator.errors import PayloadError
from orchestrator.store import activities
from schemas.history import ActivityCompleted, Failure
from schemas.runs import ActivityKey, PendingActivity, Resolved, Settlement
from workers.coroutines import is_coroutine_task
from workers.host import Host

log = logging.getLogger("orchestrator.tasks")

Trace = Callable[..., Any]
NOTHING = trace_ok_t(None, None, 0.0, None)  # what the tracer returns for a message that is not ours to run


def wrap_tracers(app: Celery, host: Callable[[], Host | None], hostname: str) -> None:
    """Let every plain task of `app` run as an activity when its message says so."""
    for task in app.tasks.values():
        if task.name.startswith("celery.") or is_coroutine_task(task) or hasattr(task.__trace__, "plain"):
            continue
        task.__trace__ = wrapped(task, task.__trace__, host, hostname)


def wrapped(task: Task[Any, Any], plain: Trace, host: Callable[[], Host | None], hostname: str) -> Trace:
    """The tracer of one task, for both kinds of messages."""
    eager = build_tracer(task.name, task, task.app.loader, hostname, eager=True, propagate=False, app=task.app)

    def trace(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:  # noqa: ANN401 - Celery's signature
        key = key_of(request)
        present = host()
        if key is None or present is None:
            return plain(uuid, args, kwargs, request)
        return run(present, key, lambda: eager(uuid, args, kwargs, {**request, "is_eager": True}))

    trace.plain = plain  # type: ignore[attr-defined] # marks it as wrapped
    return trace


def key_of(request: Any) -> ActivityKey | None:  # noqa: ANN401 - a dict or a Context
    """The activity that a message is for."""
    header = request.get(HEADER) if isinstance(request, Mapping) else getattr(request, HEADER, None)
    if not isinstance(header, Mapping):
        return None
    try:
        return ActivityKey(str(header["run_id"]), int(header["seq"]), int(header["attempt"]))
    except (KeyError, TypeError, ValueError):
        log.warning("a message has a damaged activity header and runs as a plain task: %r", header)
        return None


def run(host: Host, key: ActivityKey, body: Callable[[], Any]) -> Any:  # noqa: ANN401 - what Celery's tracer returns
    """Claim an attempt, run it, hand its end to the engine."""
    with host.orchestrator.store.transaction(purpose="tasks.start") as tx:
        pending = activities.start(tx, key, host.engine.worker_id)
    if pending is None:
        log.info("a message for attempt %s of activity %s of run %s came too late and is dropped", key.attempt, key.seq, key.run_id)
        return NOTHING
    attempt = host.began(pending)
    token = activity.CURRENT.set(attempt)
    try:
        traced = body()
    finally:
        activity.CURRENT.reset(token)
    host.ended(pending, _settled(host, attempt.pending, traced))
    return traced


def time_limit_passed(orchestrator: Orchestrator, task_id: str) -> bool:
    """A hard time limit ended the process or thread that ran a task: if it was an activity, tell the store, since nobody else will."""
    run_id, _, numbers = task_id.partition("--")
    seq, _, attempt = numbers.partition("-")
    if not (seq.isdigit() and attempt.isdigit()):
        return False
    with orchestrator.store.transaction(purpose="tasks.time_limit") as tx:
        pending = activities.get(tx, ActivityKey(run_id, int(seq), int(attempt)))
        if pending is None:
            return False
        failure = Failure(kind="timeout", type="start_to_close", message="the hard time limit of the Celery task has passed")
        queues, _ = activities.settle(tx, [settlement(pending, failure, now=tx.now())])
    ring_all(orchestrator.broker, queues)
    return True


def _settled(host: Host, pending: PendingActivity, traced: Any) -> Settlement:  # noqa: ANN401 - what Celery's tracer returns
    result, error_info, _, _ = traced
    now = host.engine.now()
    if error_info is None:
        try:
            payload = host.orchestrator.converter.encode(result, what=f"the result of task {pending.scheduled.type!r}")
        except PayloadError as error:
            return settlement(pending, _final(error, host), now=now)
        return Resolved(pending.key, ActivityCompleted(pending.key.seq, payload, pending.key.attempt))
    raised = error_info.retval
    if error_info.state == states.IGNORED or isinstance(raised, Ignore):
        return Resolved(pending.key, ActivityCompleted(pending.key.seq, None, pending.key.attempt))
    if isinstance(raised, Retry):
        return settlement(pending, _asked_for_retry(raised, host), now=now)
    if isinstance(raised, Reject):
        return settlement(pending, replace(to_failure(raised, host.orchestrator.converter), non_retryable=True), now=now)
    return settlement(pending, to_failure(raised, host.orchestrator.converter), now=now)


def _asked_for_retry(retry: Retry, host: Host) -> Failure:
    """`self.retry(countdown=...)`: the task knows best when."""
    cause = retry.exc if isinstance(retry.exc, BaseException) else retry
    when = retry.when
    delay_s = when.timestamp() - host.engine.now() if isinstance(when, datetime) else float(when or 0.0)
    return replace(to_failure(cause, host.orchestrator.converter), next_retry_delay_s=max(delay_s, 0.0))


def _final(error: BaseException, host: Host) -> Failure:
    return replace(to_failure(error, host.orchestrator.converter), non_retryable=True)
