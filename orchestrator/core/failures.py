"""Exceptions to `Failure` records and back; law: what an activity raised on one machine is what the workflow catches on another."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

from orchestrator import errors
from orchestrator.core.payloads import PayloadConverter
from schemas.history import Failure

CAUSES_MAX = 10  # links of a chain of causes that are kept
STACK_CHARACTERS_MAX = 8_000  # of a traceback that are kept, the innermost
MESSAGE_CHARACTERS_MAX = 4_000


def to_failure(error: BaseException, converter: PayloadConverter, *, depth: int = 0) -> Failure:
    """The record of an exception, its traceback and its chain of causes."""
    cause = _cause(error)
    common: dict[str, Any] = {
        "message": _message(error)[:MESSAGE_CHARACTERS_MAX],
        "stack": _stack(error),
        "cause": None if cause is None or depth >= CAUSES_MAX else to_failure(cause, converter, depth=depth + 1),
    }
    match error:
        case errors.ApplicationError():
            return Failure(
                kind="application",
                type=error.type,
                non_retryable=error.non_retryable,
                next_retry_delay_s=error.next_retry_delay_s,
                details=_details(error.details, converter),
                **common,
            )
        case errors.CancelledError():
            return Failure(kind="canceled", details=_details(error.details, converter), **common)
        case asyncio.CancelledError():
            return Failure(kind="canceled", **common)
        case errors.TerminatedError():
            return Failure(kind="terminated", **common)
        case errors.TimeoutError():
            return Failure(kind="timeout", type=error.type, details=_details(error.last_heartbeat_details, converter), **common)
        case errors.WorkerLost():
            return Failure(kind="worker_lost", **common)
        case errors.ActivityError():
            return Failure(
                kind="activity",
                activity_type=error.activity_type,
                activity_id=error.activity_id,
                retry_state=error.retry_state,
                **common,
            )
        case errors.ChildWorkflowError():
            return Failure(kind="child", workflow_type=error.workflow_type, workflow_id=error.workflow_id, run_id=error.run_id, **common)
        case errors.WorkflowAlreadyStarted():
            return Failure("already_started", type=type(error).__name__, workflow_id=error.workflow_id, run_id=error.run_id, **common)
        case errors.MessageNotDelivered():
            return Failure("not_delivered", type=type(error).__name__, workflow_id=error.workflow_id, run_id=error.run_id, **common)
        case _:
            return Failure(kind="application", type=type(error).__name__, **common)


def to_exception(failure: Failure, converter: PayloadConverter) -> errors.FailureError:
    """The exception that a record stands for, with its chain of causes."""
    error = _exception(failure, tuple(converter.decode(item, Any) for item in failure.details))
    if failure.cause is not None:
        error.__cause__ = to_exception(failure.cause, converter)
    return error


def is_cancellation(error: BaseException | None) -> bool:
    """Whether an exception is a cancellation, an activity's or child's failure because of one, or a group (of a TaskGroup) of nothing else."""
    if isinstance(error, asyncio.CancelledError | errors.CancelledError):
        return True
    if isinstance(error, BaseExceptionGroup):
        return all(is_cancellation(part) for part in error.exceptions)
    return isinstance(error, errors.ActivityError | errors.ChildWorkflowError) and is_cancellation(error.cause)


def _exception(failure: Failure, details: tuple[Any, ...]) -> errors.FailureError:
    match failure.kind:
        case "canceled":
            return errors.CancelledError(failure.message, *details)
        case "terminated":
            return errors.TerminatedError(failure.message)
        case "timeout":
            return errors.TimeoutError(failure.message, type=failure.type, last_heartbeat_details=details)
        case "worker_lost":
            return errors.WorkerLost(failure.message)
        case "activity":
            return errors.ActivityError(
                failure.message,
                activity_type=failure.activity_type,
                activity_id=failure.activity_id,
                retry_state=failure.retry_state,
            )
        case "child":
            return errors.ChildWorkflowError(
                failure.message, workflow_type=failure.workflow_type, workflow_id=failure.workflow_id, run_id=failure.run_id
            )
        case "already_started":
            return errors.WorkflowAlreadyStarted(failure.message, workflow_id=failure.workflow_id, run_id=failure.run_id)
        case "not_delivered":
            return errors.MessageNotDelivered(failure.message, workflow_id=failure.workflow_id, run_id=failure.run_id)
        case _:
            return errors.ApplicationError(
                failure.message,
                *details,
                type=failure.type,
                non_retryable=failure.non_retryable,
                next_retry_delay_s=failure.next_retry_delay_s,
            )


def _cause(error: BaseException) -> BaseException | None:
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is None and isinstance(error, BaseExceptionGroup):
        return error.exceptions[0]  # the others are named in the message
    return cause


def _message(error: BaseException) -> str:
    try:
        text = _writable(str(error))
    except Exception as broken:  # noqa: BLE001 - author code; a failure must be recorded even if it cannot describe itself
        return f"{type(error).__name__} (its text cannot be shown: {type(broken).__name__})"
    if isinstance(error, BaseExceptionGroup):
        return f"{text}: " + "; ".join(f"{type(part).__name__}: {_message(part)}" for part in error.exceptions)
    if isinstance(error, asyncio.CancelledError):
        return text or "cancelled"
    return text or type(error).__name__


def _stack(error: BaseException) -> str:
    return _writable("".join(traceback.format_tb(error.__traceback__))[-STACK_CHARACTERS_MAX:])


def _writable(text: str) -> str:
    # Names of files may hold half characters, which no JSON can; a failure that cannot be written would be told for ever and never heard.
    return text.encode("utf-8", "backslashreplace").decode()


def _details(details: tuple[Any, ...], converter: PayloadConverter) -> tuple[Any, ...]:
    encoded = []
    for item in details:
        try:
            encoded.append(converter.encode(item, what="a detail of an error"))
        except errors.PayloadError as refused:
            # A failure must be recorded even if its details cannot be: losing it would be worse.
            encoded.append(f"<{type(item).__name__}: {refused.message}>")
    return tuple(encoded)
