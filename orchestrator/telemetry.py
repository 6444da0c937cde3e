"""What processes tell about themselves: trace context and JSON log lines; law: one line is one JSON object, whatever is logged.

A trace id is that of W3C Trace Context: 32 hexadecimal digits. Whoever serves a request sets it with `tracing`; every line logged meanwhile
has it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TextIO

import orjson

from orchestrator.clock import SYSTEM, Clock, utc

MESSAGE_CHARACTERS_MAX = 20_000

_TRACEPARENT = re.compile(r"^(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})(?:-.*)?$")
_PLAIN = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName", "color_message"}


@dataclass(frozen=True, slots=True)
class Trace:
    """Where a piece of work belongs: the trace, and our own span in it."""

    trace_id: str
    span_id: str
    sampled: bool = True

    @property
    def traceparent(self) -> str:
        """The header that hands it on."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


_current: ContextVar[Trace | None] = ContextVar("orchestrator_trace", default=None)


def continued(traceparent: str | None, *, clock: Clock = SYSTEM) -> Trace:
    """A new span in the trace that a caller has named; a new trace if it has named none, or something else."""
    span_id = clock.fresh_id().replace("-", "")[-16:]
    found = _TRACEPARENT.match(traceparent or "")
    if found is None or found["version"] == "ff" or not found["trace"].strip("0") or not found["span"].strip("0"):
        return Trace(clock.fresh_id().replace("-", ""), span_id)
    return Trace(found["trace"], span_id, sampled=bool(int(found["flags"], 16) & 1))


def current_trace() -> Trace | None:
    """The trace of what is being done here and now."""
    return _current.get()


@contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """Everything in the block belongs to `trace`."""
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


class JsonLines(logging.Formatter):
    """A log record as one JSON object: ts, level, logger, message, trace_id, `always`, and what the call gave as `extra`."""

    def __init__(self, **always: Any) -> None:  # noqa: ANN401 - any JSON value
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        trace = current_trace()
        line: dict[str, Any] = {
            "ts": utc(record.created).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            **self._always,
            "trace_id": trace.trace_id if trace else "",
            "message": record.getMessage()[:MESSAGE_CHARACTERS_MAX],
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _PLAIN and key not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)[-MESSAGE_CHARACTERS_MAX:]
        return _json(line)


def log_json(level: str = "INFO", *, stream: TextIO | None = None, **always: Any) -> None:  # noqa: ANN401 - any JSON value
    """Have this process log JSON lines, by default to stdout, in place of whatever it logged before."""
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(JsonLines(**always))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def _json(line: dict[str, Any]) -> str:
    try:
        return orjson.dumps(line, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    except TypeError:  # half of a surrogate pair somewhere in a text
        return orjson.dumps({_whole(key): _whole(value) for key, value in line.items()}).decode()


def _whole(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()
