"""Signals and queries on their way to a run; law: what cannot be carried or called is refused before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.core.definitions import Handler, WorkflowDefinition, valid_name
from orchestrator.core.payloads import PayloadConverter
from orchestrator.core.signatures import CallSignature
from orchestrator.errors import InvalidArgument
from schemas.history import Json


@dataclass(frozen=True, slots=True)
class Message:
    """A signal or query, ready to be sent."""

    name: str
    args: tuple[Json, ...]
    result: Any  # annotation of the answer


def message(
    role: str, target: str | Callable[..., Any], args: Sequence[Any], definition: WorkflowDefinition | None, converter: PayloadConverter
) -> Message:
    """A signal or query by the name or the method that handles it, its arguments checked when the handler is known."""
    if isinstance(target, str):
        name = valid_name(f"{role} name", target)
        handlers: Mapping[str, Handler] = {} if definition is None else definition.signals if role == "signal" else definition.queries
        signature = handlers[name].signature if name in handlers else None
    else:
        marked, name, _ = getattr(target, "__workflow_role__", ("", "", ""))
        if marked != role:
            raise InvalidArgument(f"{target!r} is no {role}; pass a method marked with @workflow.{role}, or its name")
        signature = CallSignature.of(target, skip_self=True)
    payloads = encoded(args, signature, what=f"{role} {name!r}", converter=converter)
    return Message(name, payloads, Any if signature is None else signature.result)


def encoded(values: Sequence[Any], signature: CallSignature | None, *, what: str, converter: PayloadConverter) -> tuple[Json, ...]:
    """The payloads of a call; raises PayloadError if one cannot be carried, or if they do not fit the signature."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise InvalidArgument(f"{what}: args must be a list of arguments, not {type(values).__name__}")
    payloads = converter.encode_args(values, what=what)
    if signature is not None:
        converter.decode_args(payloads, signature, what=what)  # as the worker will: better refused here than failed there
    return tuple(payloads)


def encoded_fields(what: str, values: Mapping[str, Any] | None, converter: PayloadConverter) -> dict[str, Json] | None:
    """The payloads of a memo or of search attributes; None if there are none."""
    if not values:
        return None
    return {valid_name(f"key of {what}", key): converter.encode(value, what=f"{what}[{key!r}]") for key, value in values.items()}
