"""What pydantic finds wrong, as the end of a sentence: "must be a number, but is 'soon'"; law: no secret, no traceback, one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import ErrorDetails

from schemas.settings import masked

SHOWN_CHARACTERS_MAX = 60
SHORTENED_MIN = 3  # letters of a word that may stand for a longer one

_MUST: Mapping[str, str] = {
    "missing": "is missing",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "path_type": "must be a path",
    "tuple_type": "must be a list",
    "dict_type": "must be a table of keys and values",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must not be empty",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "string_pattern_mismatch": "must consist of letters, digits, `.`, `_` and `-`, begin and end with a letter or digit, and have at most 100 of them",
}


def say(error: ErrorDetails, *, secret: bool = False) -> str:
    """The end of a sentence whose subject is the key."""
    context = {
        name: int(limit) if isinstance(limit, float) and limit.is_integer() else limit for name, limit in error.get("ctx", {}).items()
    }
    must = _MUST.get(error["type"], "")
    text = must.format(**context) if must else error["msg"].removeprefix("Value error, ")
    value = error["input"]
    if secret or error["type"] == "missing" or not isinstance(value, str | int | float):
        return text
    if not must:  # the message of a validator of ours is a sentence of its own
        return text
    hint = meant(str(value), str(context["expected"]).replace(" or ", ", ").replace("'", "").split(", ")) if "expected" in context else ""
    if error["type"] == "string_type":
        hint = "; put it in quotes"
    return f"{text}, but is {shown(value)}{hint}"


def shown(value: Any) -> str:  # noqa: ANN401 - any scalar
    """A value in a message: short, and without the password of a URL."""
    text = repr(masked(value))
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[: SHOWN_CHARACTERS_MAX - 1] + "…"


def meant(word: str, words: Iterable[str], *, cutoff: float = 0.6) -> str:
    """`; did you mean 'x'?` if one of `words` is close, else nothing."""
    by_case = {known.lower(): known for known in words}
    close = difflib.get_close_matches(word.lower(), by_case, n=1, cutoff=cutoff)
    if not close and len(word) >= SHORTENED_MIN:
        close = [known for known in by_case if known.startswith(word.lower())]
    return f"; did you mean {by_case[close[0]]!r}?" if close else ""
