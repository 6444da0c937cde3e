"""Errors as codes, and acts as entries of the audit; law: HTTP, the bus and the command line tell the same error by the same code."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from orchestrator.errors import (
    BrokerUnavailable,
    DatabaseNotMigrated,
    DatabaseUnavailable,
    FleetError,
    InvalidArgument,
    InvalidFilter,
    OrchestratorError,
    PayloadError,
    PayloadTooLarge,
    QueryFailed,
    WorkflowAlreadyStarted,
    WorkflowNotFound,
    WorkflowNotOpen,
)
from orchestrator.store import Store, audit
from schemas.codes import ErrorCode

log = logging.getLogger("orchestrator.audit")

CODES: tuple[tuple[type[OrchestratorError], ErrorCode], ...] = (
    (WorkflowNotFound, ErrorCode.NOT_FOUND),
    (WorkflowNotOpen, ErrorCode.INVALID_TRANSITION),
    (WorkflowAlreadyStarted, ErrorCode.WORKFLOW_EXISTS),
    (PayloadTooLarge, ErrorCode.PAYLOAD_TOO_LARGE),
    (PayloadError, ErrorCode.INVALID_REQUEST),
    (InvalidArgument, ErrorCode.INVALID_REQUEST),
    (InvalidFilter, ErrorCode.INVALID_REQUEST),
    (DatabaseUnavailable, ErrorCode.DATABASE_UNAVAILABLE),
    (DatabaseNotMigrated, ErrorCode.DATABASE_UNAVAILABLE),
    (BrokerUnavailable, ErrorCode.BROKER_UNAVAILABLE),
)
"""The first class that fits counts; what is in none of them is a mistake of ours."""


def code_of(error: BaseException) -> ErrorCode:
    """The code that tells this error to others."""
    if isinstance(error, FleetError):
        return error.code
    if isinstance(error, QueryFailed):
        return _of_query(error)
    return next((code for kind, code in CODES if isinstance(error, kind)), ErrorCode.INTERNAL_ERROR)


def _of_query(error: QueryFailed) -> ErrorCode:
    if error.__cause__ is None:
        return ErrorCode.NO_CAPACITY  # no worker has answered
    # The cause is what the worker said; the cause of that is what the query's own code raised.
    return ErrorCode.INVALID_REQUEST if error.__cause__.__cause__ is None else ErrorCode.EXECUTION_FAILED


def record(
    store: Store,
    *,
    actor: str,
    action: str,
    target: str,
    outcome: str = audit.OK,
    params: Mapping[str, Any] | None = None,
    trace_id: str = "",
) -> None:
    """Enter an act. When the database is away the entry goes to the log: what was done or refused stays done or refused."""
    try:
        with store.transaction(purpose="audit") as tx:
            audit.append(tx, actor=actor, action=action, target=target, outcome=outcome, params=params, trace_id=trace_id)
    except (DatabaseUnavailable, DatabaseNotMigrated) as error:
        log.warning("not in the audit, %s: %s did %s to %s: %s", error.message, actor, action, target, outcome)


@contextmanager
def audited(store: Store, *, actor: str, action: str, target: str, params: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Enter what the block does, by the code of its error if it fails."""
    try:
        yield
    except Exception as error:
        record(store, actor=actor, action=action, target=target, outcome=code_of(error), params=params)
        raise
    record(store, actor=actor, action=action, target=target, params=params)
