"""Signatures: what a function takes and returns, and the adapters of its annotations; the law: each is read once and remembered.

A hint that does not resolve means Any: author code runs with imports that only type checkers see.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Final, Literal, NoReturn, NotRequired, Required, TypeAlias, Union, get_args, get_origin

import typing_extensions
from pydantic import ConfigDict, PydanticUserError, TypeAdapter

from orchestrator.errors import InvalidDefinition

ADAPTERS_MAX: Final = 2048
SIGNATURES_MAX: Final = 4096

Annotation: TypeAlias = Any  # a type as the author wrote it; there is no type for those


@dataclass(frozen=True, slots=True)
class Parameter:
    """One positional parameter of an author's function."""

    name: str
    annotation: Annotation
    required: bool


@dataclass(frozen=True, slots=True)
class CallSignature:
    """What a function takes by position and what it returns, with resolved annotations; built once per callable."""

    name: str
    parameters: tuple[Parameter, ...]
    rest: Parameter | None
    result: Annotation

    @staticmethod
    def of(fn: Callable[..., object], *, skip_self: bool = False) -> CallSignature:
        """Read the signature of fn; InvalidDefinition if a keyword-only parameter has no default. Hints that do not resolve mean Any."""
        try:
            return _signature(fn, skip_self)
        except TypeError:  # an unhashable callable cannot be cached
            return _signature.__wrapped__(fn, skip_self)

    @property
    def required(self) -> int:
        """How many arguments must come."""
        return sum(parameter.required for parameter in self.parameters)

    def at(self, index: int) -> Parameter | None:
        """The parameter that receives the argument at index; None if there is none."""
        return self.parameters[index] if index < len(self.parameters) else self.rest


@lru_cache(maxsize=SIGNATURES_MAX)
def _signature(fn: Callable[..., object], skip_self: bool) -> CallSignature:
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except ValueError:  # some functions in C do not tell
        return CallSignature(name, (), Parameter("args", Any, required=False), Any)
    function = inspect.unwrap(getattr(fn, "func", fn))
    hints = resolved_hints(
        function if hasattr(function, "__annotations__") else type(function).__call__, getattr(function, "__globals__", {})
    )
    taken: list[Parameter] = []
    rest: Parameter | None = None
    for parameter in parameters[1:] if skip_self else parameters:
        annotation = hints.get(parameter.name, Any)
        required = parameter.default is inspect.Parameter.empty
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            rest = Parameter(parameter.name, annotation, required=False)
        elif parameter.kind is inspect.Parameter.KEYWORD_ONLY and required:
            _refuse_keyword(name, parameter.name)
        elif parameter.kind in {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}:
            taken.append(Parameter(parameter.name, annotation | None if _wants_none(parameter, annotation) else annotation, required))
    return CallSignature(name, tuple(taken), rest, hints.get("return", Any))


def _wants_none(parameter: inspect.Parameter, annotation: Annotation) -> bool:
    """`def f(x: int = None)` is common in task code and means an optional."""
    return parameter.default is None and isinstance(annotation, type) and annotation is not NoneType


def _refuse_keyword(function: str, parameter: str) -> NoReturn:
    message = f"{function}() wants {parameter!r} by keyword, but arguments travel by position. Remove the '*', or give it a default."
    raise InvalidDefinition(message)


def resolved_hints(owner: Annotation, names: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved annotations; those that cannot be resolved, such as imports for type checkers only, become Any one by one."""
    try:
        return typing.get_type_hints(owner, include_extras=True)
    except Exception:  # noqa: BLE001 - evaluating an annotation runs author code, which may raise anything
        raw: dict[str, Any] = dict(getattr(owner, "__annotations__", {}))
    resolved: dict[str, Any] = {}
    for name, annotation in raw.items():
        try:
            alone = SimpleNamespace(__annotations__={name: annotation})
            resolved |= typing.get_type_hints(alone, globalns=dict(names), include_extras=True)
        except Exception:  # noqa: BLE001 - as above; without the hint the plain JSON value is passed
            resolved[name] = Any
    return resolved


# --- adapters ------------------------------------------------------------------------------------------------------------

_UNHASHABLE: Final[dict[int, tuple[object, TypeAdapter[Any]]]] = {}


def adapter_of(annotation: Annotation) -> TypeAdapter[Any]:
    """The cached pydantic adapter of an annotation."""
    try:
        return _built_adapter(annotation)
    except TypeError:
        known = _UNHASHABLE.get(id(annotation))
        if known is None:
            if len(_UNHASHABLE) >= ADAPTERS_MAX:
                _UNHASHABLE.clear()
            known = _UNHASHABLE[id(annotation)] = (annotation, _built_adapter.__wrapped__(annotation))  # keeping it keeps its id valid
        return known[1]


@lru_cache(maxsize=ADAPTERS_MAX)
def _built_adapter(annotation: Annotation) -> TypeAdapter[Any]:
    annotation = _modern(annotation)
    try:
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # models, dataclasses and typed dicts bring their own config
        return TypeAdapter(annotation)


def _modern(annotation: Annotation) -> Annotation:
    """The annotation with typed dicts in the form that pydantic wants before Python 3.12; those inside records stay as they are."""
    if sys.version_info >= (3, 12):
        return annotation
    if typing.is_typeddict(annotation):
        hints = {name: _modern(hint) for name, hint in typing.get_type_hints(annotation, include_extras=True).items()}
        return typing_extensions.TypedDict(annotation.__name__, _with_presence(annotation, hints))  # type: ignore[operator]
    origin: Annotation = get_origin(annotation)
    args = get_args(annotation)
    modern = tuple(_modern(arg) for arg in args)
    if modern == args or origin is None or origin is Literal or origin is typing.Annotated:
        return annotation
    family: Annotation = Union if origin is UnionType else origin
    return family[modern]


def _with_presence(kind: Annotation, hints: dict[str, Any]) -> dict[str, Any]:
    bare = {name: get_args(hint)[0] if get_origin(hint) in {Required, NotRequired} else hint for name, hint in hints.items()}
    return {name: Required[hint] if name in kind.__required_keys__ else NotRequired[hint] for name, hint in bare.items()}
