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
import typing
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import lru_cache
from types import EllipsisType, NoneType, UnionType
from typing import Any, Final, Literal, Protocol, Union, get_args, get_origin

import orjson
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from orchestrator.core.signatures import ADAPTERS_MAX, Annotation, CallSignature, adapter_of, resolved_hints
from orchestrator.core.tags import LEAVES, NESTING_MAX, READABLE, Value, hashable, is_tagged, restored
from orchestrator.errors import PayloadMismatch, PayloadNotSerializable, PayloadTooLarge
from schemas.history import Json

PAYLOAD_BYTES_MAX: Final = 2 * 1024 * 1024
INFLATION_MAX: Final = 16

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
        if type(opened) in _EXACT and (type(opened) is annotation or annotation is Any):
            return opened
        try:
            tagged = is_tagged(opened)
            # JSON mode is the exact inverse of how models are written; tags restore to objects, which only Python mode accepts.
            value = restored(opened, 1) if tagged else opened
            if annotation is Any or annotation is object or annotation is inspect.Parameter.empty:
                return value if tagged or type(value) not in {list, dict} else orjson.loads(orjson.dumps(value))
            if annotation is None or annotation in _EXACT:
                return _exact(value, annotation)
            adapter = adapter_of(annotation)
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
        leaf = next((LEAVES[parent] for parent in kind.__mro__ if parent in LEAVES), None)
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
                hash(hashable(restored(name, 1)))
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
    hints = resolved_hints(kind, vars(inspect.getmodule(kind) or typing))
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
    return frozenset(found & READABLE)


def _no_form(value: object) -> str:
    kind = type(value).__qualname__
    return f"({kind}) has no JSON form. Pass plain JSON types, a dataclass or a pydantic model; create the {kind} inside the activity."


def _oversize(what: str, size: str, limit: int) -> str:
    return f"{what}: the payload has {size}, the limit is {limit:,}. Store the value elsewhere and pass a reference to it."


# --- reading -------------------------------------------------------------------------------------------------------------

_EXACT: Final = (int, float, str, bool, NoneType)
_SHORT: Final = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


def _exact(value: object, annotation: object) -> object:
    if type(value) is annotation or (annotation is None and value is None):
        return value
    if annotation is float and type(value) is int:
        return float(value)
    message = f"it is no {_shown(annotation)}"
    raise ValueError(message)


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
