"""Tags: what JSON cannot carry, as objects with one key; the law: an author's dict that looks like a tag is never taken for one."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path, PurePath
from typing import Any, Final, TypeAlias
from uuid import UUID

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

NESTING_MAX: Final = 200

Value: TypeAlias = Any  # an author's value: looked at case by case


def is_tagged(payload: object) -> bool:
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


def restored(payload: Value, depth: int) -> Value:
    """A copy of the payload with its tags turned into the objects they stand for."""
    if depth > NESTING_MAX * 2:
        message = f"it is nested deeper than {NESTING_MAX * 2} levels"
        raise ValueError(message)
    if type(payload) is list:
        return [restored(item, depth + 1) for item in payload]
    if type(payload) is not dict:
        return payload
    if len(payload) == 1:
        ((tag, content),) = payload.items()
        if tag in _READERS and isinstance(content, str):
            return _READERS[tag](content)
        if tag == "$dict" and type(content) is dict:
            payload = content
        elif tag in {"$set", "$frozenset"} and type(content) is list:
            return _set(tag, [restored(item, depth + 1) for item in content])
        elif tag == "$map" and type(content) is list:
            return {hashable(restored(key, depth + 1)): restored(item, depth + 1) for key, item in content}
    return {key: restored(item, depth + 1) for key, item in payload.items()}


def _set(tag: str, items: list[Any]) -> object:
    try:
        members = [hashable(item) for item in items]
        return frozenset(members) if tag == "$frozenset" else set(members)
    except TypeError:  # members that are records are dicts until the annotation has been applied, which accepts a list too
        return items


def hashable(value: Value) -> Value:
    """A value as a key or a member of a set: lists become tuples."""
    return tuple(hashable(item) for item in value) if isinstance(value, list) else value


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
LEAVES: Final[dict[type, _Leaf]] = {
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
READABLE: Final = frozenset(leaf.kind for leaf in LEAVES.values()) | {set, frozenset}


def _str_read(text: str) -> str:
    return base64.b64decode(text, validate=True).decode("utf-8", "surrogatepass")


def _int_read(text: str) -> int:
    return int(text, 16)


_READERS: Final[dict[str, Callable[[str], object]]] = {
    **{leaf.tag: leaf.read for leaf in LEAVES.values()},
    "$str": _str_read,
    "$int": _int_read,
    "$float": float,
}
