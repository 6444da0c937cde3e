"""The log file of one agent; law: JSON lines, whatever the agent writes.

Each line has ts, level, agent_id, trace_id and message. An agent that writes such lines itself keeps its own words.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from orchestrator.clock import utc
from workers.child.lines import Line
from workers.rotation import RollingFile, older

FILE_BYTES_MAX = 10_000_000
FILES_MAX = 4  # the current one and three older
MESSAGE_CHARS_MAX = 16_000
TAIL_LINES_MAX = 10_000
TAIL_BYTES_MAX = 4_000_000

LEVEL = re.compile(r"\b(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)\b")
LEVEL_CHARS_MAX = 80  # how far into a plain line its level is looked for
LEVELS = {"WARN": "WARNING", "FATAL": "CRITICAL"}


class AgentLog:
    """Appends to `<folder>/<agent id>.log`."""

    def __init__(self, folder: Path, agent_id: str) -> None:
        self._file = RollingFile(log_path(folder, agent_id), file_bytes_max=FILE_BYTES_MAX, files_max=FILES_MAX)

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Append these."""
        self._file.write(b"".join(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records))

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def log_path(folder: Path, agent_id: str) -> Path:
    """Where the log of this agent is."""
    return folder / f"{agent_id}.log"


def record(agent_id: str, line: Line, now: float) -> dict[str, Any]:
    """A line of output as a log record."""
    if line.text.startswith(b"{"):
        try:
            said = orjson.loads(line.text)
        except orjson.JSONDecodeError:
            said = {}
        if isinstance(said.get("message"), str):
            level = said.get("level")
            known = {"ts": _text(said.get("ts")) or stamp(now), "level": level.upper() if isinstance(level, str) else "INFO"}
            return {**said, **known, "agent_id": agent_id, "trace_id": _text(said.get("trace_id")), "message": said["message"]}
    message = line.text.decode(errors="backslashreplace")
    found = LEVEL.search(message, 0, LEVEL_CHARS_MAX)
    level = LEVELS.get(found[1], found[1]) if found else "INFO"
    return told(agent_id, message, now, level=level, size=line.size)


def told(agent_id: str, message: str, now: float, *, level: str, size: int = 0) -> dict[str, Any]:
    """A log record of our own words, or of a plain line that had `size` bytes."""
    if len(message) > MESSAGE_CHARS_MAX:
        message = f"{message[:MESSAGE_CHARS_MAX]}… ({max(size, len(message))} in all)"
    return {"ts": stamp(now), "level": level, "agent_id": agent_id, "trace_id": "", "message": message}


def stamp(now: float) -> str:
    """A time as it stands in files: RFC 3339 in UTC with milliseconds."""
    return utc(now).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def tail(folder: Path, agent_id: str, lines: int) -> list[dict[str, Any]]:
    """The last log records of an agent, oldest first; none if it never said anything."""
    wanted = min(lines, TAIL_LINES_MAX)
    found: deque[bytes] = deque()
    path = log_path(folder, agent_id)
    for file in (path, older(path, 1)):
        missing = wanted - len(found)
        if missing > 0:
            found.extendleft(reversed(_last_lines(file, missing)))
    return [orjson.loads(line) for line in found]


def _last_lines(path: Path, lines: int) -> list[bytes]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES_MAX))
            whole = file.read(TAIL_BYTES_MAX)
    except OSError:
        return []
    found = whole.split(b"\n")
    if size > TAIL_BYTES_MAX:
        del found[0]  # only its end
    return [line for line in found if line][-lines:]


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
