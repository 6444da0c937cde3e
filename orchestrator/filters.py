"""Filters of lists as people type them: `status=failed type=Order stuck id^=order-`; law: what is not understood is an error, never ignored.

Terms are separated by blanks and all must hold; several values of one term are separated by commas, and one of them must hold:

    status=failed,timed_out   type=Order   queue=orders   id^=order-   stuck   stuck=no   started>2026-01-31   started<2026-01-31T12:00

Times are ISO 8601, UTC unless they say otherwise. Quotes keep blanks together: `id^="order 1"`.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

from orchestrator.errors import InvalidFilter
from schemas.runs import RunFilter, Status

LIMIT_MAX = 1_000  # runs on one page

_TERM = re.compile(r"(?P<field>[a-z_]+)(?:(?P<operator>\^=|=|>=|<=|>|<|!=)(?P<value>.*))?", re.DOTALL)
_YES = {"yes": True, "true": True, "no": False, "false": False}
_EXAMPLE = "for example: status=failed type=Order stuck id^=order- started>2026-01-31"


def run_filter(given: RunFilter | str | None = None, **narrower: Any) -> RunFilter:  # noqa: ANN401 - checked one by one
    """The filter that a text or record and further fields make; fields win. Raises InvalidFilter with the term that is wrong."""
    if isinstance(given, RunFilter):
        found = given
    elif given is None or isinstance(given, str):
        found = parse(given or "")
    else:
        raise InvalidFilter(f"a filter is text or a RunFilter, not {type(given).__name__}; {_EXAMPLE}")
    values = {name: _field(name, value) for name, value in narrower.items() if value is not None}
    found = replace(found, **values)
    if not 1 <= found.limit <= LIMIT_MAX:
        raise InvalidFilter(f"limit must be from 1 to {LIMIT_MAX:,}, not {found.limit}")
    return found


def parse(text: str) -> RunFilter:
    """The filter that a text means; an empty one lists everything."""
    try:
        terms = shlex.split(text)
    except ValueError as error:
        raise InvalidFilter(f"the filter {text!r} cannot be read: {error}; {_EXAMPLE}") from None
    values: dict[str, Any] = {}
    for term in terms:
        name, value = _term(term)
        if name in values:
            raise InvalidFilter(f"the filter names {term!r} after it was named before; put several values into one term with commas")
        values[name] = value
    return RunFilter(**values)


def _term(term: str) -> tuple[str, Any]:
    match = _TERM.fullmatch(term)
    if match is None:
        raise InvalidFilter(f"{term!r} is no term of a filter; {_EXAMPLE}")
    field, operator, value = match.groups()
    if field not in _TERMS:
        close = difflib.get_close_matches(field, _TERMS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(_TERMS))}"
        raise InvalidFilter(f"{term!r}: a filter has no {field!r}; {hint}")
    name = _TERMS[field].get(operator or "")
    if name is None:
        forms = ", ".join(f"{field}{known}" for known in _TERMS[field])
        raise InvalidFilter(f"{term!r}: write it as {forms}")
    if operator and not value:
        raise InvalidFilter(f"{term!r}: the value is missing")
    return name, _field(name, value if operator else True)


# What people type -> operator -> the field of RunFilter.
_TERMS: dict[str, dict[str, str]] = {
    "status": {"=": "status"},
    "type": {"=": "type"},
    "queue": {"=": "queue"},
    "id": {"^=": "id_prefix"},
    "stuck": {"": "stuck", "=": "stuck"},
    "started": {">": "started_after", "<": "started_before"},
}


def _field(name: str, value: Any) -> Any:  # noqa: ANN401 - checked here
    read = _READERS.get(name)
    if read is None:
        known = ", ".join(field.name for field in fields(RunFilter))
        raise InvalidFilter(f"a filter has no field {name!r}; there are {known}")
    return read(name, value)


def _names(name: str, value: Any) -> tuple[str, ...]:  # noqa: ANN401 - checked here
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple | set | frozenset) or not all(isinstance(part, str) and part for part in parts):
        raise InvalidFilter(f"{name} is one or several names separated by commas, not {value!r}")
    return tuple(parts)


def _statuses(name: str, value: Any) -> tuple[Status, ...]:  # noqa: ANN401 - checked here
    found = []
    for part in _names(name, value):
        try:
            found.append(Status(part.lower()))
        except ValueError:
            raise InvalidFilter(f"status {part!r} does not exist; there are {', '.join(Status)}") from None
    return tuple(found)


def _text(name: str, value: Any) -> str:  # noqa: ANN401 - checked here
    if not isinstance(value, str):
        raise InvalidFilter(f"{name} must be text, not {value!r}")
    return value


def _truth(name: str, value: Any) -> bool:  # noqa: ANN401 - checked here
    found = value if isinstance(value, bool) else _YES.get(str(value).lower())
    if found is None:
        raise InvalidFilter(f"{name} is yes or no, not {value!r}")
    return found


def _time(name: str, value: Any) -> float:  # noqa: ANN401 - checked here
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError):
        raise InvalidFilter(f"{name}: {value!r} is no time; write 2026-01-31 or 2026-01-31T12:00:00+01:00") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _count(name: str, value: Any) -> int:  # noqa: ANN401 - checked here
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidFilter(f"{name} must be a number, not {value!r}")
    return value


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "status": _statuses,
    "type": _names,
    "queue": _names,
    "id_prefix": _text,
    "stuck": _truth,
    "started_after": _time,
    "started_before": _time,
    "limit": _count,
    "page_after": _text,
}
