"""What may be shown of what somebody sent: secrets become stars, long things short; law: the value that was given stays as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Json = Any

STARS = "***"
DEPTH_MAX = 8
ITEMS_MAX = 50
CHARACTERS_MAX = 500

_SECRET = re.compile(r"token|secret|passw|passphrase|authori[sz]ation|credential|api[_-]?key|private[_-]?key|cookie|jwt", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(?<=://)([^/@\s:]*):[^/@\s]*(?=@)")


def masked(value: Json, depth: int = 0) -> Json:
    """A JSON value without its secrets: values of keys that sound secret, and passwords in URLs; at most ITEMS_MAX items a level."""
    if isinstance(value, str):
        text = _URL_PASSWORD.sub(rf"\1:{STARS}", whole(value))
        return text if len(text) <= CHARACTERS_MAX else f"{text[:CHARACTERS_MAX]}… ({len(text):,} characters)"
    if isinstance(value, Mapping):
        if depth >= DEPTH_MAX:
            return "…"
        items = [(whole(str(key)), item) for key, item in list(value.items())[:ITEMS_MAX]]
        shown = {key: STARS if _SECRET.search(key) else masked(item, depth + 1) for key, item in items}
        return shown if len(value) <= ITEMS_MAX else shown | {"…": f"{len(value) - ITEMS_MAX:,} more"}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        if depth >= DEPTH_MAX:
            return "…"
        few = [masked(item, depth + 1) for item in value[:ITEMS_MAX]]
        return few if len(value) <= ITEMS_MAX else [*few, f"… ({len(value) - ITEMS_MAX:,} more)"]
    return value


def whole(text: str) -> str:
    """The text, fit for any database: halves of surrogate pairs and NUL become question marks and replacement characters."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")
