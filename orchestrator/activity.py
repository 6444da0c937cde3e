"""What authors of activities import; law: an activity knows its attempt and nothing of how it is stored or carried.

A function becomes an activity by its decorator:

    from orchestrator import activity

    @activity.defn
    def compose(name: str) -> str:
        activity.heartbeat("half-way")
        return f"Hello {name}"
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, overload

from orchestrator.core.definitions import ActivityDefinition, is_coroutine_function, register_activity, valid_name
from orchestrator.core.signatures import CallSignature
from orchestrator.errors import InvalidArgument, InvalidDefinition

Fn = TypeVar("Fn", bound=Callable[..., Any])

__all__ = ["Info", "defn", "heartbeat", "idempotency_key", "in_activity", "info", "is_cancelled", "logger"]


@overload
def defn(fn: Fn) -> Fn: ...
@overload
def defn(fn: None = None, *, name: str | None = None, needs_thread: bool = False) -> Callable[[Fn], Fn]: ...
def defn(fn: Any = None, *, name: str | None = None, needs_thread: bool = False) -> Any:
    """Declare an activity: a function with effects, sync or async, with positional parameters that payloads can carry.

    A process takes on short sync activities in advance, and lets them wait for a thread. `needs_thread` is for long ones: a process takes
    one on only when a thread is free for it, so that it never waits in one process while another has nothing to do.
    """

    def declare(real: Any) -> Any:  # noqa: ANN401 - any callable
        if not callable(real) or isinstance(real, type):
            message = f"@activity.defn is for functions, not for {real!r}"
            raise InvalidDefinition(message)
        signature = CallSignature.of(real, skip_self=False)
        if signature.parameters and signature.parameters[0].name in {"self", "cls"}:
            message = f"{signature.name} is a method, and nobody would give it its {signature.parameters[0].name}; make it a function"
            raise InvalidDefinition(message)
        definition = ActivityDefinition(
            name=valid_name("activity name", getattr(real, "__name__", type(real).__name__) if name is None else name),
            fn=real,
            signature=signature,
            is_async=is_coroutine_function(real),
            needs_thread=needs_thread,
        )
        register_activity(definition)
        real.__activity_definition__ = definition
        return real

    return declare if fn is None else declare(fn)


@dataclass(frozen=True, slots=True)
class Info:
    """Facts about the running attempt."""

    activity_id: str
    activity_type: str
    attempt: int  # from 1
    run_id: str
    workflow_id: str
    workflow_type: str
    queue: str
    seq: int
    scheduled_at: float
    started_at: float
    start_to_close_s: float | None
    schedule_to_close_s: float | None
    heartbeat_s: float | None
    heartbeat_details: tuple[Any, ...]  # what the attempt before reported last

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of this activity: hand it to services that drop repeated requests."""
        return f"{self.run_id}-{self.seq}"


class Context(Protocol):
    """What the process that runs an activity provides; `workers.activities` implements it."""

    info: Info

    def heartbeat(self, details: tuple[Any, ...]) -> None:
        """Note a sign of life."""
        ...

    def is_cancelled(self) -> bool:
        """Whether this attempt has been told to stop."""
        ...


CURRENT: ContextVar[Context | None] = ContextVar("orchestrator_activity", default=None)


def info() -> Info:
    """Facts about the running attempt."""
    return _context("info").info


def idempotency_key() -> str:
    """The same for every attempt of this activity."""
    return _context("idempotency_key").info.idempotency_key


def heartbeat(*details: Any) -> None:  # noqa: ANN401 - any values that a payload can carry
    """Say that the attempt lives; `details` are given to the next attempt if this one does not finish.

    Cheap: signs of life are collected and written once per interval and process. In a sync activity it raises CancelledError when the
    attempt has been told to stop; an async activity gets `asyncio.CancelledError` at its next await.
    """
    _context("heartbeat").heartbeat(details)


def is_cancelled() -> bool:
    """Whether this attempt has been told to stop, because its run was cancelled or closed or the attempt timed out."""
    return _context("is_cancelled").is_cancelled()


def in_activity() -> bool:
    """Whether the caller runs inside an activity."""
    return CURRENT.get() is not None


class _ActivityLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds the ids of the attempt."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:  # noqa: ANN401 - logging's signature
        """Put the ids into the record."""
        context = CURRENT.get()
        if context is not None:
            facts = context.info
            ids = {"workflow_id": facts.workflow_id, "run_id": facts.run_id, "activity_id": facts.activity_id, "attempt": facts.attempt}
            kwargs["extra"] = {**ids, **(kwargs.get("extra") or {})}
            msg = f"{msg} ({facts.workflow_id}, activity {facts.activity_id}, attempt {facts.attempt})"
        return msg, kwargs


logger = _ActivityLogger(logging.getLogger("orchestrator.activity"), {})


def _context(call: str) -> Context:
    context = CURRENT.get()
    if context is None:
        message = f"activity.{call} can only be used inside an activity"
        raise InvalidArgument(message)
    return context
