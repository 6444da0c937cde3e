"""Payloads: Python values as plain JSON inside events, and back; the law: what goes in comes out, or an error says where it cannot.

A payload is read by people with SQL, so plain JSON stays as it is, and a model or dataclass becomes the object one expects. Only what
JSON cannot carry, where no annotation settles the type, is *tagged*: an object with one key, such as {"$bytes": "..."}. A dict of the
author that looks like a tag is wrapped in {"$dict": ...} and survives.

What to know:
* NaN, Infinity, integers beyond 64 bits, strings with NUL or lone surrogates, and dicts with other keys than strings round-trip (tagged).
* A tuple comes back as a list, an enum as its value and a record as a dict, unless the annotation says otherwise.
* A pydantic model is written in its own JSON mode: its `bytes` fields are UTF-8 unless its config says base64. Next to tagged values of
  an outer container it is read in Python mode, so there `strict=True` and base64 configs are not honoured; put such values into a model.
* Plain scalars are checked exactly ("5" is not an int); deeper values follow pydantic's lax rules.
"""

from __future__ import annotations

import base64
import inspect
import math
import reprlib
import sys
import typing
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from pathlib import Path, PurePath
from types import EllipsisType, NoneType, SimpleNamespace, UnionType
from typing import Any, Final, Literal, NoReturn, NotRequired, Protocol, Required, TypeAlias, Union, get_args, get_origin
from uuid import UUID

import orjson
import typing_extensions
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from orchestrator.errors import InvalidDefinition, PayloadMismatch, PayloadNotSerializable, PayloadTooLarge
from schemas.history import Json

PAYLOAD_BYTES_MAX: Final = 2 * 1024 * 1024
NESTING_MAX: Final = 200
INFLATION_MAX: Final = 16
ADAPTERS_MAX: Final = 2048
SIGNATURES_MAX: Final = 4096

Annotation: TypeAlias = Any  # a type as the author wrote it; there is no type for those
Value: TypeAlias = Any  # an author's value: looked at case by case

_INT_MIN, _INT_END = -(2**63), 2**63


class PayloadCodec(Protocol):
    """Bytes to bytes over the JSON text of each payload: compression or encryption. Returning the input itself leaves it readable."""

    @property
    def name(self) -> str:
        """What the payload is marked with; decoding asks for the same name."""

    def encode(self, text: bytes, /) -> bytes:
        """The stored form of a JSON text."""

    def decode(self, stored: bytes, /) -> bytes:
        """The JSON text of a stored form."""


@dataclass(frozen=True, slots=True)
class ZlibCodec:
    """Compress payloads above a size, and only if that makes them smaller; refuse what inflates beyond `inflated_bytes_max`."""

    threshold_bytes: int = 4096
    inflated_bytes_max: int = PAYLOAD_BYTES_MAX * INFLATION_MAX
    name: str = "zlib"

    def encode(self, text: bytes, /) -> bytes:
        """The compressed text, or the text itself when that is the shorter one (base64 costs a third)."""
        if len(text) < self.threshold_bytes:
            return text
        packed = zlib.compress(text)
        return packed if len(packed) * 4 < len(text) * 3 else text

    def decode(self, stored: bytes, /) -> bytes:
        """The inflated text; ValueError when it is too long or cut short."""
        inflater = zlib.decompressobj()
        text = inflater.decompress(stored, self.inflated_bytes_max)
        if not inflater.eof:
            message = f"incomplete, or longer than {self.inflated_bytes_max:,} bytes when inflated"
            raise ValueError(message)
        return text


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


@dataclass(frozen=True, slots=True)
class PayloadConverter:
    """Turn values into payloads and back; `payload_bytes_max` limits each payload in its stored form."""

    codec: PayloadCodec | None = None
    payload_bytes_max: int = PAYLOAD_BYTES_MAX

    def encode(self, value: object, *, what: str) -> Json:
        """The payload of a value: a snapshot, so later changes of the value do not reach history. `what` names it in errors."""
        return self._encode(value, what, "value")

    def encode_args(self, args: Sequence[object], *, what: str) -> list[Json]:
        """The payloads of the positional arguments of a call."""
        return [self._encode(value, what, f"args[{index}]") for index, value in enumerate(args)]

    def decode(self, payload: Json, annotation: object, *, what: str = "payload") -> object:
        """The value of a payload as the annotation wants it (Any, object or nothing: plain values); PayloadMismatch if it does not fit."""
        return self._decode(payload, annotation, what)

    def decode_args(self, payloads: Sequence[Json], signature: CallSignature, *, what: str) -> list[object]:
        """The arguments for a call, checked in number and type; those left out are filled by the function's own defaults."""
        expected = len(payloads) if signature.rest else len(signature.parameters)
        if not signature.required <= len(payloads) <= expected:
            raise PayloadMismatch(_miscount(what, signature, len(payloads)))
        values: list[object] = []
        for index, payload in enumerate(payloads):
            parameter = signature.at(index)
            assert parameter is not None, "the count was checked above"
            values.append(self._decode(payload, parameter.annotation, what, signature.name, parameter.name))
        return values

    def _encode(self, value: object, what: str, root: str) -> Json:
        if self.codec is None and (value is None or type(value) is bool or _is_short_text(value)):
            return value
        text_max = self.payload_bytes_max * (1 if self.codec is None else INFLATION_MAX)
        try:
            text = _plain_text(value, text_max) or orjson.dumps(_Writer(text_max).write(value, frozenset(), 1))
        except _Refused as refused:
            message = f"{what}: {root}{refused.path} {refused.reason}"
            raise PayloadNotSerializable(message) from refused.__cause__
        except _Oversize:
            raise PayloadTooLarge(_oversize(what, f"more than {text_max:,} bytes", text_max)) from None
        if self.codec is not None:
            return self._seal(text, what)
        if len(text) > self.payload_bytes_max:
            raise PayloadTooLarge(_oversize(what, f"{len(text):,} bytes", self.payload_bytes_max))
        payload: Json = orjson.loads(text)  # a snapshot: authors go on using, and changing, their lists and dicts
        return payload

    def _seal(self, text: bytes, what: str) -> Json:
        assert self.codec is not None, "only a converter with a codec seals"
        stored = self.codec.encode(text)
        sealed: Json = {"$codec": self.codec.name, "data": base64.b64encode(stored).decode()}
        payload: Json = orjson.loads(text) if stored is text else sealed
        size = len(text) if stored is text else len(orjson.dumps(sealed))
        if size > self.payload_bytes_max:
            raise PayloadTooLarge(_oversize(what, f"{size:,} bytes after codec {self.codec.name!r}", self.payload_bytes_max))
        return payload

    def _open(self, payload: Json, what: str) -> Json:
        if type(payload) is not dict or len(payload) != 2 or "$codec" not in payload or "data" not in payload:
            return payload
        name = payload["$codec"]
        if self.codec is None or self.codec.name != name:
            mine = "no codec" if self.codec is None else f"codec {self.codec.name!r}"
            message = f"{what}: the payload was written with codec {name!r}, this process has {mine}. Configure the same codec everywhere."
            raise PayloadMismatch(message)
        try:
            opened: Json = orjson.loads(self.codec.decode(base64.b64decode(str(payload["data"]), validate=True)))
        except Exception as error:
            message = f"{what}: codec {name!r} cannot open the payload ({error}). Check its key and settings."
            raise PayloadMismatch(message) from error
        return opened

    def _decode(self, payload: Json, annotation: Annotation, what: str, function: str = "", parameter: str = "") -> object:
        subject = f"{what}: {function}() takes {parameter!r} as" if function else f"{what}: expected"
        opened = self._open(payload, what)
        if type(opened) is annotation and annotation in _EXACT:
            return opened
        try:
            tagged = _is_tagged(opened)
            # JSON mode is the exact inverse of how models are written; tags restore to objects, which only Python mode accepts.
            value = _restored(opened, 1) if tagged else opened
            if annotation is Any or annotation is object or annotation is inspect.Parameter.empty:
                return value if tagged or type(value) not in {list, dict} else orjson.loads(orjson.dumps(value))
            if annotation is None or annotation in _EXACT:
                return _exact(value, annotation)
            adapter = _adapter(annotation)
            if tagged:
                return adapter.validate_python(value, by_alias=True, by_name=True)
            return adapter.validate_json(orjson.dumps(value), by_alias=True, by_name=True)
        except Exception as error:  # validators are author code and may raise anything; all of it means that the payload does not fit
            remedy = f"pass that, or change the annotation of {parameter!r}" if function else "pass that, or change the annotation"
            message = f"{subject} {_shown(annotation)}, but {_SHORT.repr(opened)} ({type(opened).__name__}) came: {_why(error)}; {remedy}."
            raise PayloadMismatch(message) from error


class _Refused(Exception):
    """A value that cannot be written; the path grows while the walk unwinds."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path

    def under(self, step: str) -> _Refused:
        """The same refusal, seen from the container."""
        self.path = step + self.path
        return self


class _Oversize(Exception):
    """The text would be longer than allowed, whatever else follows."""


# --- writing -------------------------------------------------------------------------------------------------------------

_HARMLESS: Final = frozenset({NoneType, bool})
_CONTAINERS: Final = frozenset({list, dict, tuple})
_PLAIN: Final = frozenset({NoneType, bool, int, float, str}) | _CONTAINERS
_SHORT_TEXT_MAX: Final = 64  # below every sensible limit of a payload


def _plain_text(value: object, text_max: int) -> bytes | None:
    """The JSON text of a value that is plain JSON already; None if it needs the long way.

    The hot path. Kinds, keys and number ranges are looked at level by level, which also bounds depth, cycles and shared structure.
    Then one pass in C yields the text: that is cheaper than estimating a size here, it finds lone surrogates, and it is the snapshot.
    """
    if type(value) not in _PLAIN and hasattr(type(value), "__pydantic_serializer__"):
        value = _dumped(value)
    level: list[Any] = [value if type(value) in _CONTAINERS else (value,)]
    room = text_max
    depth = 0
    while level:
        depth += 1
        if depth > NESTING_MAX:
            return None
        below: list[Any] = []
        for container in level:
            children = container
            if type(container) is dict:
                if len(container) <= 2 and _is_ambiguous(container):
                    return None
                for key in container:
                    if type(key) is not str:
                        return None
                children = container.values()
            room -= len(children)
            for child in children:
                kind = type(child)
                if kind is str:
                    room -= len(child)
                elif kind is int:
                    if not _INT_MIN <= child < _INT_END:
                        return None
                elif kind is float:
                    if child - child != 0.0:  # NaN and Infinity, at the price of one subtraction
                        return None
                elif kind is list or kind is dict or kind is tuple:
                    below.append(child)
                elif kind not in _HARMLESS:
                    return None
            if room < 0:
                raise _Oversize
        level = below
    try:
        text = orjson.dumps(value)
    except TypeError:  # lone surrogates
        return None
    return None if b"\\u0000" in text else text  # PostgreSQL refuses NUL in JSON


def _is_short_text(value: object) -> bool:
    """Whether a value is a string that needs no look at its length or its characters."""
    return type(value) is str and len(value) <= _SHORT_TEXT_MAX and value.isascii() and "\0" not in value


def _is_ambiguous(container: Mapping[Any, object]) -> bool:
    """Whether an author's dict would be taken for a tag or a codec's envelope."""
    if len(container) == 1:
        (key,) = container
        return isinstance(key, str) and key.startswith("$")
    return len(container) == 2 and "$codec" in container and "data" in container


class _Writer:
    """Write any value as JSON with tags; `room` is a lower bound of the text still allowed, so shared structure cannot explode."""

    def __init__(self, text_max: int) -> None:
        self.room = text_max

    def write(self, value: Value, settled: frozenset[type], depth: int) -> Json:
        """The JSON form; types in `settled` are known from an annotation and need no tag."""
        self.room -= 1
        if self.room < 0:
            raise _Oversize
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, Enum):
            return self.write(value.value, frozenset(), depth)
        if isinstance(value, str):
            return self._string(str.__str__(value))
        if isinstance(value, int):
            exact = int.__int__(value)
            return exact if _INT_MIN <= exact < _INT_END else {"$int": hex(exact)}
        if isinstance(value, float):
            number = float.__float__(value)
            return number if math.isfinite(number) else {"$float": repr(number)}
        kind: type[Any] = type(value)
        leaf = next((_LEAVES[parent] for parent in kind.__mro__ if parent in _LEAVES), None)
        if leaf is not None:
            written = leaf.write(value)
            self.room -= len(written)
            return written if leaf.kind in settled and leaf.untagged(value) else {leaf.tag: written}
        if depth > NESTING_MAX:
            raise _Refused(f"is nested deeper than {NESTING_MAX} levels, or contains itself. Flatten it, or pass a reference.")
        return self._container(value, settled, depth)

    def _container(self, value: Value, settled: frozenset[type], depth: int) -> Json:
        kind: type[Any] = type(value)
        if hasattr(kind, "__pydantic_serializer__"):
            return self.write(_dumped(value), frozenset(), depth)
        if is_dataclass(kind):
            return self._record(value, depth)
        if isinstance(value, Mapping):
            return self._mapping(value, settled, depth)
        if isinstance(value, tuple) and hasattr(kind, "_fields"):
            return list(self._record(value, depth).values())
        if isinstance(value, (list, tuple, deque)):
            return self._items(value, settled, depth + 1)
        if isinstance(value, AbstractSet):
            origin = frozenset if isinstance(value, frozenset) else set
            # Sorted, because the order of a set differs between processes and a replay must write the same text.
            items = sorted(self._items(value, settled, depth + 1 + (origin not in settled)), key=orjson.dumps)
            return items if origin in settled else {f"${origin.__name__}": items}
        if isinstance(value, (Iterator, Callable)):  # type: ignore[arg-type]  # Callable is fine for isinstance
            raise _Refused(_no_form(value))
        try:
            written = to_jsonable_python(value, by_alias=True, round_trip=True)
        except Exception as error:
            raise _Refused(_no_form(value)) from error
        return self.write(written, frozenset(), depth + 1)

    def _items(self, values: Value, settled: frozenset[type], depth: int) -> list[Json]:
        written: list[Json] = []
        try:
            for value in values:
                written.append(self.write(value, settled, depth))  # noqa: PERF401 - a refusal tells how far we came
        except _Refused as refused:
            raise refused.under(f"[{len(written)}]") from refused.__cause__
        return written

    def _record(self, value: Value, depth: int) -> dict[str, Json]:
        written: dict[str, Json] = {}
        kind: Annotation = type(value)
        for name, settled in _record_plan(kind):
            try:
                written[name] = self.write(getattr(value, name, None), settled, depth + 1)
            except _Refused as refused:
                raise refused.under(f".{name}") from refused.__cause__
        return written

    def _mapping(self, value: Mapping[Any, Any], settled: frozenset[type], depth: int) -> Json:
        if not all(isinstance(key, str) and not _is_unwritable(key) for key in value):
            return self._pairs(value, settled, depth)
        ambiguous = _is_ambiguous(value)
        written: dict[str, Json] = {}
        for key, item in value.items():
            self.room -= len(key)
            try:
                written[str.__str__(key)] = self.write(item, settled, depth + 1 + ambiguous)
            except _Refused as refused:
                raise refused.under(f".{key}" if key.isidentifier() else f"[{key!r}]") from refused.__cause__
        return {"$dict": written} if ambiguous else written

    def _pairs(self, value: Mapping[Any, Any], settled: frozenset[type], depth: int) -> Json:
        pairs: list[Json] = []
        for key, item in value.items():
            try:
                name = self.write(key, frozenset(), depth + 3)
                hash(_hashable(_restored(name, 1)))
                pairs.append([name, self.write(item, settled, depth + 3)])
            except TypeError as error:
                reason = f"has the key {_SHORT.repr(key)} ({type(key).__qualname__}), which JSON cannot carry. Use strings as keys."
                raise _Refused(reason) from error
            except _Refused as refused:
                raise refused.under(f"[{_SHORT.repr(key)}]") from refused.__cause__
        return {"$map": pairs}

    def _string(self, text: str) -> Json:
        self.room -= len(text)
        if _is_unwritable(text):
            return {"$str": base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()}
        return text


def _is_unwritable(text: str) -> bool:
    """Whether a string has what JSON in a database cannot hold: NUL, or half of a surrogate pair."""
    if text.isascii():
        return "\0" in text
    return "\0" in text or any("\ud800" <= character <= "\udfff" for character in text)


def _dumped(value: Value) -> object:
    """A pydantic model or pydantic dataclass in its own JSON mode; a round trip leaves computed fields out."""
    try:
        return type(value).__pydantic_serializer__.to_python(value, mode="json", by_alias=True, round_trip=True)
    except Exception as error:  # serializers are author code and may raise anything
        reason = f"({type(value).__qualname__}) cannot be written by its own pydantic serializer: {_first_line(error)}"
        raise _Refused(reason) from error


@lru_cache(maxsize=ADAPTERS_MAX)
def _record_plan(kind: Annotation) -> tuple[tuple[str, frozenset[type]], ...]:
    """The fields of a dataclass or named tuple, each with the types that its annotation settles."""
    names = [field.name for field in fields(kind) if field.init] if is_dataclass(kind) else list(getattr(kind, "_fields", ()))
    hints = _hints(kind, vars(inspect.getmodule(kind) or typing))
    return tuple((name, _settled(hints.get(name, Any))) for name in names)


def _settled(annotation: object) -> frozenset[type]:
    """The types whose JSON text an annotation settles; empty when a union, Any or a bare container leaves a choice."""
    found: set[type] = set()
    pending = [annotation]
    while pending:
        part = pending.pop()
        origin, args = get_origin(part), get_args(part)
        if origin is typing.Annotated:
            pending.append(args[0])
        elif origin is Union or origin is UnionType:
            members = [member for member in args if member is not NoneType]
            if len(members) != 1:
                return frozenset()
            pending += members
        elif origin is not None and origin is not Literal:
            found.add(origin)
            pending += [member for member in args if not isinstance(member, EllipsisType)]
        elif isinstance(part, type) and part not in {object, list, dict, set, frozenset, tuple}:
            found.add(part)
        elif origin is not Literal:
            return frozenset()
    return frozenset(found & _READABLE)


def _no_form(value: object) -> str:
    kind = type(value).__qualname__
    return f"({kind}) has no JSON form. Pass plain JSON types, a dataclass or a pydantic model; create the {kind} inside the activity."


def _oversize(what: str, size: str, limit: int) -> str:
    return f"{what}: the payload has {size}, the limit is {limit:,}. Store the value elsewhere and pass a reference to it."


# --- reading -------------------------------------------------------------------------------------------------------------

_EXACT: Final = (int, float, str, bool, NoneType)
_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def _is_tagged(payload: object) -> bool:
    """Whether any object in the payload has the shape of a tag."""
    level = [payload]
    for _ in range(NESTING_MAX * 2):
        below: list[Any] = []
        for container in level:
            if type(container) is dict:
                if len(container) == 1 and next(iter(container)).startswith("$"):
                    return True
                below += [child for child in container.values() if type(child) is dict or type(child) is list]
            elif type(container) is list:
                below += [child for child in container if type(child) is dict or type(child) is list]
        if not below:
            return False
        level = below
    message = f"it is nested deeper than {NESTING_MAX * 2} levels"
    raise ValueError(message)


def _restored(payload: Value, depth: int) -> Value:
    """A copy of the payload with its tags turned into the objects they stand for."""
    if depth > NESTING_MAX * 2:
        message = f"it is nested deeper than {NESTING_MAX * 2} levels"
        raise ValueError(message)
    if type(payload) is list:
        return [_restored(item, depth + 1) for item in payload]
    if type(payload) is not dict:
        return payload
    if len(payload) == 1:
        ((tag, content),) = payload.items()
        if tag in _READERS and isinstance(content, str):
            return _READERS[tag](content)
        if tag == "$dict" and type(content) is dict:
            payload = content
        elif tag in {"$set", "$frozenset"} and type(content) is list:
            return _set(tag, [_restored(item, depth + 1) for item in content])
        elif tag == "$map" and type(content) is list:
            return {_hashable(_restored(key, depth + 1)): _restored(item, depth + 1) for key, item in content}
    return {key: _restored(item, depth + 1) for key, item in payload.items()}


def _set(tag: str, items: list[Any]) -> object:
    try:
        members = [_hashable(item) for item in items]
        return frozenset(members) if tag == "$frozenset" else set(members)
    except TypeError:  # members that are records are dicts until the annotation has been applied, which accepts a list too
        return items


def _hashable(value: Value) -> Value:
    return tuple(_hashable(item) for item in value) if isinstance(value, list) else value


def _exact(value: object, annotation: object) -> object:
    if type(value) is annotation or (annotation is None and value is None):
        return value
    if annotation is float and type(value) is int:
        return float(value)
    message = f"it is no {_shown(annotation)}"
    raise ValueError(message)


_UNHASHABLE: Final[dict[int, tuple[object, TypeAdapter[Any]]]] = {}


def _adapter(annotation: Annotation) -> TypeAdapter[Any]:
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


def _miscount(what: str, signature: CallSignature, came: int) -> str:
    takes = ", ".join(f"{parameter.name}: {_shown(parameter.annotation)}" for parameter in signature.parameters)
    if came < signature.required:
        missing = ", ".join(repr(parameter.name) for parameter in signature.parameters[came:] if parameter.required)
        remedy = f"misses {missing}; pass it in args, or give the parameter a default"
    else:
        remedy = f"takes at most {len(signature.parameters)}; drop the rest, or add parameters"
    return f"{what}: {came} argument(s) came for {signature.name}({takes}), which {remedy}."


def _shown(annotation: Annotation) -> str:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation.__qualname__
    return str(annotation).replace("typing.", "")


def _why(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return _first_line(error)
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    place = ".".join(str(step) for step in problems[0]["loc"])
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{problems[0]['msg']}{f' at {place!r}' if place else ''}{more}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


# --- tags ----------------------------------------------------------------------------------------------------------------


def _always(value: object) -> bool:
    return True


def _never(value: object) -> bool:
    return False


def _has_whole_minutes(value: Value) -> bool:
    """Whether pydantic reads the ISO text again: it refuses offsets with seconds, which zones had before 1900."""
    offset = value.utcoffset()
    return offset is None or offset.seconds % 60 == 0 == offset.microseconds


@dataclass(frozen=True, slots=True)
class _Leaf:
    tag: str
    kind: type
    write: Callable[[Any], str]
    read: Callable[[str], object]
    untagged: Callable[[Any], bool] = _always


def _bytes_read(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def _bytes_written(value: Value) -> str:
    return base64.b64encode(value).decode()


_TIMEDELTA: Final = TypeAdapter(timedelta)
_LEAVES: Final[dict[type, _Leaf]] = {
    bytes: _Leaf("$bytes", bytes, _bytes_written, _bytes_read, _never),
    bytearray: _Leaf("$bytes", bytes, _bytes_written, _bytes_read, _never),
    memoryview: _Leaf("$bytes", bytes, _bytes_written, _bytes_read, _never),
    datetime: _Leaf("$datetime", datetime, datetime.isoformat, datetime.fromisoformat, _has_whole_minutes),
    date: _Leaf("$date", date, date.isoformat, date.fromisoformat),
    time: _Leaf("$time", time, time.isoformat, time.fromisoformat, _has_whole_minutes),
    timedelta: _Leaf("$timedelta", timedelta, to_jsonable_python, _TIMEDELTA.validate_python),
    Decimal: _Leaf("$decimal", Decimal, str, Decimal, Decimal.is_finite),
    UUID: _Leaf("$uuid", UUID, str, UUID),
    PurePath: _Leaf("$path", Path, str, Path),
}
_READABLE: Final = frozenset(leaf.kind for leaf in _LEAVES.values()) | {set, frozenset}


def _str_read(text: str) -> str:
    return base64.b64decode(text, validate=True).decode("utf-8", "surrogatepass")


def _int_read(text: str) -> int:
    return int(text, 16)


_READERS: Final[dict[str, Callable[[str], object]]] = {
    **{leaf.tag: leaf.read for leaf in _LEAVES.values()},
    "$str": _str_read,
    "$int": _int_read,
    "$float": float,
}


# --- signatures ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=SIGNATURES_MAX)
def _signature(fn: Callable[..., object], skip_self: bool) -> CallSignature:
    name = getattr(fn, "__qualname__", None) or type(fn).__qualname__
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except ValueError:  # some functions in C do not tell
        return CallSignature(name, (), Parameter("args", Any, required=False), Any)
    function = inspect.unwrap(getattr(fn, "func", fn))
    hints = _hints(function if hasattr(function, "__annotations__") else type(function).__call__, getattr(function, "__globals__", {}))
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


def _hints(owner: Value, names: Mapping[str, Any]) -> dict[str, Any]:
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
