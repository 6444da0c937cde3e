"""Celery tasks as activities, unchanged; law: an attempt starts by a fenced claim, and its end reaches the store, whoever traces it.

A message for an activity carries its key in a header. The tracer of every task is wrapped: a message without that header takes its usual
course; one with it is claimed first (a redelivered or outdated message stops here), then traced by Celery's own tracer with no result
backend. Only `self.retry`, and `autoretry_for` which calls it, does not publish: the store keeps the retry and its time.

An `async def` task is traced in two halves (see `workers.coroutines`): it is claimed before the first, on a thread, and settled after the
second. Only our pool can await it; in any other it is refused with a failure that says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from billiard.common import terminate_handler_fired  # type: ignore[attr-defined] # newer than the stubs
from celery import Celery, Task, states
from celery.app.task import Context
from celery.app.trace import trace_ok_t
from celery.exceptions import Ignore, Reject, Retry

from orchestrator import activity
from orchestrator.celery import Orchestrator
from orchestrator.core.failures import to_failure
from orchestrator.dispatch import HEADER, ring_all, settlement
from orchestrator.errors import DatabaseUnavailable, InvalidDefinition, PayloadError
from orchestrator.store import activities
from schemas.history import ActivityCompleted, Failure
from schemas.runs import ActivityKey, PendingActivity, Resolved, Settlement
from workers.attempts import Attempt
from workers.coroutines import Awaited, is_coroutine_task
from workers.host import Host
from workers.pool import current_pool
from workers.threads import Interruption, shield

log = logging.getLogger("orchestrator.tasks")

CLAIM_TRIES_MAX = 240
CLAIM_RETRY_S = 0.25  # together a minute, longer than a lease: then the attempt has been given to somebody else

Trace = Callable[..., Any]
Present = Callable[[], Host | None]
NOTHING = trace_ok_t(None, None, 0.0, None)  # what the tracer returns for a message that is not ours to run


@dataclass(slots=True)
class Passage:
    """One message of an activity on its way through this process; `attempt` is None if it came too late."""

    host: Host
    attempt: Attempt | None
    asked: list[Retry] = field(default_factory=list)  # what `self.retry` was called for

    @property
    def pending(self) -> PendingActivity:
        """The attempt as the store has it."""
        assert self.attempt is not None, "only a claimed attempt is run"
        return self.attempt.pending


PASSAGE: ContextVar[Passage | None] = ContextVar("orchestrator_passage", default=None)


def wrap_tracers(app: Celery, host: Present) -> None:
    """Let every task of `app` run as an activity when its message says so; done again whenever Celery has built its tracers anew."""
    pool = current_pool()
    for task in app.tasks.values():
        if task.name.startswith("celery.") or hasattr(task.__trace__, "plain"):
            continue
        task.__trace__ = wrapped(task, task.__trace__, host)
        awaited = None if pool is None else pool.awaited(task)
        if awaited is not None:
            _claim_before(awaited, host)
        if not hasattr(task.retry, "plain"):
            task.retry = _retry_through_the_store(task)  # type: ignore[method-assign] # the seam: every way to a retry calls it


def wrapped(task: Task[Any, Any], plain: Trace, host: Present) -> Trace:
    """The tracer of one task, for both kinds of messages."""

    def trace(uuid: str, args: Any, kwargs: Any, request: Any = None) -> Any:  # noqa: ANN401 - Celery's signature
        passage = PASSAGE.get()
        if passage is not None:  # claimed before the first half of a coroutine
            return NOTHING if passage.attempt is None else conclude(passage, lambda: plain(uuid, args, kwargs, request))
        key = key_of(request)
        present = None if key is None else host()
        if key is None or present is None:
            return plain(uuid, args, kwargs, request)

        def body() -> Any:  # noqa: ANN401 - what Celery's tracer returns
            if is_coroutine_task(task):
                message = f"task {task.name!r} is async, and only workers.pool:FleetPool can await it. Use that pool, or @activity.defn."
                raise InvalidDefinition(message)
            return plain(uuid, args, kwargs, {**request, **_seen_by_task(_present().pending)})

        if not present.enter():
            raise Reject("this worker is leaving", requeue=True)
        try:
            return run(present, key, body)
        finally:
            present.leave()

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


def run(host: Host, key: ActivityKey, trace: Callable[[], Any]) -> Any:  # noqa: ANN401 - what Celery's tracer returns
    """Claim an attempt, trace its body with `activity.info()` and its kind at hand, hand its end to the engine."""
    shield(up=True)  # a strike inside the transaction of the claim would leave the store locked
    try:
        passage = claim(host, key)
        if passage.attempt is None:
            return NOTHING
        entered, current = PASSAGE.set(passage), activity.CURRENT.set(passage.attempt)
        try:
            return conclude(passage, trace)
        finally:
            activity.CURRENT.reset(current)
            PASSAGE.reset(entered)
    finally:
        shield(up=False)


def claim(host: Host, key: ActivityKey) -> Passage:
    """Start an attempt in this worker, if its message is not late. Waits through an outage, for CLAIM_TRIES_MAX tries; then DatabaseUnavailable.

    To give up at the first would not do: it may have been committed, and then the attempt is ours and no message will come again.
    """
    for tried in range(CLAIM_TRIES_MAX if host.claims.first(key) else 0):
        if tried:
            host.orchestrator.clock.sleep(CLAIM_RETRY_S)
        try:
            with host.orchestrator.store.transaction(purpose="tasks.start") as tx:
                pending = activities.start(tx, key, host.engine.worker_id)
                if pending is None and tried:
                    known = activities.get(tx, key)
                    pending = known if known is not None and known.worker == host.engine.worker_id else None
        except DatabaseUnavailable:
            if tried == CLAIM_TRIES_MAX - 1:
                host.claims.forget(key)
                raise
            continue
        if pending is not None:
            return Passage(host, host.began(pending))
        break
    log.info("a message for attempt %s of activity %s of run %s came too late and is dropped", key.attempt, key.seq, key.run_id)
    return Passage(host, None)


def conclude(passage: Passage, trace: Callable[[], Any]) -> Any:  # noqa: ANN401 - what Celery's tracer returns
    """Trace the body, hand its end to the engine, and tell Celery."""
    host, pending = passage.host, passage.pending
    try:
        shield(up=False)  # here, where a strike that waited for the claim is caught
        traced = trace()
        shield(up=True)
        settled = _settled(passage, traced)
    except Interruption:
        # Ended from outside: the main thread knows why, and tells the store (`told_by_celery`).
        host.ended(pending, None)
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        # Also a time limit that struck between two lines of our own: nobody else would ever settle the attempt.
        failed = settlement(pending, to_failure(error, host.orchestrator.converter), now=host.engine.now())
        # A child of prefork that was told to end unwinds by SystemExit, which says nothing about the task: it is handed back as the child leaves.
        host.ended(pending, None if terminate_handler_fired() else failed)
        raise
    host.ended(pending, settled)
    return NOTHING if _requeue(traced) else traced  # the store has it again: the message must not come again as well


def told_by_celery(orchestrator: Orchestrator, task_id: str, failure: Failure) -> bool:
    """What only Celery's main thread knows: a task was ended from outside. If it is an activity's attempt, settle it; whether it was."""
    run_id, _, numbers = task_id.partition("--")
    seq, _, attempt = numbers.partition("-")
    if not (seq.isdigit() and attempt.isdigit()):
        return False
    with orchestrator.store.transaction(purpose="tasks.ended") as tx:
        pending = activities.get(tx, ActivityKey(run_id, int(seq), int(attempt)))
        if pending is None:
            return False
        queues, _ = activities.settle(tx, [settlement(pending, failure, now=tx.now(), losses=pending.losses)])
    ring_all(orchestrator.broker, queues)
    return True


def _claim_before(awaited: Awaited, host: Present) -> None:
    """Put the claim before the first half of a coroutine task."""
    plain = awaited.attend
    if hasattr(plain, "plain"):
        return

    async def attend(context: Context, interruption: Callable[[], BaseException | None], started: Callable[[], Awaitable[None]]) -> None:
        key = key_of(context)
        present = None if key is None else host()
        if key is None or present is None:
            await plain(context, interruption, started)
            return
        if not present.enter():
            raise Reject("this worker is leaving", requeue=True)
        try:
            passage = await asyncio.to_thread(claim, present, key)
        finally:
            present.leave()
        PASSAGE.set(passage)  # the variables are the coroutine's own, and its second half sees them
        if passage.attempt is None:
            return
        activity.CURRENT.set(passage.attempt)
        vars(context).update(_seen_by_task(passage.pending))
        await plain(context, interruption, started)

    attend.plain = plain  # type: ignore[attr-defined] # marks it as wrapped
    awaited.attend = attend  # type: ignore[method-assign] # the seam between the pool and us


def _retry_through_the_store(task: Task[Any, Any]) -> Callable[..., Any]:
    """`self.retry` that, in an activity, decides as ever but does not publish."""
    plain = task.retry

    def retry(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - Celery's signature
        passage, request = PASSAGE.get(), task.request
        if passage is None or request.called_directly:
            return plain(*args, **kwargs)
        request.is_eager = True  # the one mode in which Celery raises without sending
        try:
            asked = plain(*args, **{**kwargs, "throw": False})
        finally:
            request.is_eager = False
        passage.asked.append(asked)
        if kwargs.get("throw", True):
            raise asked
        return asked

    retry.plain = plain  # type: ignore[attr-defined] # marks it as wrapped
    return retry


def _present() -> Passage:
    passage = PASSAGE.get()
    assert passage is not None, "a body is traced inside its passage"
    return passage


def _seen_by_task(pending: PendingActivity) -> dict[str, object]:
    """What its request says: a worker that died is not a retry of the task, and the result belongs to the store alone."""
    return {"retries": max(pending.key.attempt - 1 - pending.losses, 0), "ignore_result": True}


def _settled(passage: Passage, traced: Any) -> Settlement:  # noqa: ANN401 - what Celery's tracer returns
    host, pending = passage.host, passage.pending
    converter, now = host.orchestrator.converter, host.engine.now()
    result, error_info, _, _ = traced
    raised: Any = None if error_info is None else error_info.retval
    if isinstance(raised, Retry) or (error_info is None and passage.asked):
        return settlement(pending, _asked_for_retry(passage.asked[-1] if passage.asked else raised, passage), now=now)
    if error_info is None:
        try:
            payload = converter.encode(result, what=f"the result of task {pending.scheduled.type!r}")
        except PayloadError as error:
            return settlement(pending, replace(to_failure(error, converter), non_retryable=True), now=now)
        return Resolved(pending.key, ActivityCompleted(pending.key.seq, payload, pending.key.attempt))
    if error_info.state == states.IGNORED or isinstance(raised, Ignore):
        return Resolved(pending.key, ActivityCompleted(pending.key.seq, None, pending.key.attempt))
    failure = to_failure(raised, converter)
    if _requeue(traced):
        failure = replace(failure, next_retry_delay_s=0.0)
    elif isinstance(raised, Reject):
        failure = replace(failure, non_retryable=True)
    return settlement(pending, failure, now=now)


def _requeue(traced: Any) -> bool:  # noqa: ANN401 - what Celery's tracer returns
    """Whether the task rejected its message so that it comes again."""
    _, error_info, _, _ = traced
    return error_info is not None and isinstance(error_info.retval, Reject) and bool(getattr(error_info.retval, "requeue", False))


def _asked_for_retry(retry: Any, passage: Passage) -> Failure:  # noqa: ANN401 - Celery's Retry, whose attributes no stub knows
    """`self.retry(countdown=...)`: the task knows best when."""
    converter, scheduled = passage.host.orchestrator.converter, passage.pending.scheduled
    failure = to_failure(retry.exc if isinstance(retry.exc, BaseException) else retry, converter)
    again = retry.sig
    if again is not None and (list(again.args) != list(scheduled.args) or dict(again.kwargs) != dict(scheduled.kwargs or {})):
        message = f"task {scheduled.type!r} asked for a retry with other arguments: an activity keeps its own. Fail, and let the workflow call it."
        return Failure(kind="application", type="RetryWithOtherArguments", message=message, non_retryable=True, cause=failure)
    when = retry.when
    delay_s = when.timestamp() - passage.host.engine.now() if isinstance(when, datetime) else float(when or 0.0)
    return replace(failure, next_retry_delay_s=max(delay_s, 0.0))
