"""The agents' logs as they lie on this machine; law: a tail costs its own length, whatever the file's, and any line is shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from orchestrator.clock import Clock
from schemas.history import Json
from schemas.settings import Settings

LINES_SHOWN = 100
LINES_MAX = 10_000
BLOCK_BYTES = 64 * 1024
TAIL_BYTES_MAX = 8 * 1024 * 1024
FILES_MAX = 500


def latest(settings: Settings, agent_id: str | None, lines: int) -> list[dict[str, Json]]:
    """The last `lines` of one agent's log or of all of them, oldest first; each says whose it is."""
    files = sorted(folder_of(settings).glob("*.log"))[:FILES_MAX] if agent_id is None else [file_of(settings, agent_id)]
    found: list[dict[str, Json]] = []
    for file in files:
        found += [read(text, file.stem) for text in tail(file, lines)]
        found.sort(key=lambda line: str(line.get("ts", "")))  # as they were written where they do not say when
        del found[:-lines]
    return found


def folder_of(settings: Settings) -> Path:
    """Where the logs of this machine's agents are."""
    return settings.log_directory or settings.home / "logs"


def file_of(settings: Settings, agent_id: str) -> Path:
    """The log of one agent."""
    return folder_of(settings) / f"{agent_id}.log"


def tail(file: Path, lines: int, until: int | None = None) -> list[str]:
    """The last lines of a file, or of its first `until` bytes; none if there is no such file."""
    try:
        with file.open("rb") as opened:
            opened.seek(0, 2)
            at = opened.tell() if until is None else min(until, opened.tell())
            end, data = at, b""
            while at > 0 and data.count(b"\n") <= lines and end - at < TAIL_BYTES_MAX:
                step = min(BLOCK_BYTES, at)
                at -= step
                opened.seek(at)
                data = opened.read(step) + data
    except OSError:
        return []
    whole: Iterable[bytes] = data.splitlines() if at == 0 else data.splitlines()[1:]
    return [line.decode("utf-8", "replace") for line in list(whole)[-lines:]]


@dataclass(frozen=True, slots=True)
class Place:
    """How far a file has been read: behind a whole line of it."""

    offset: int = 0
    node: int = 0


def end_of(file: Path) -> Place:
    """Behind the last whole line that is there now."""
    size, node = _state(file)
    data = _piece(file, max(size - BLOCK_BYTES, 0))
    return Place(size - (len(data) - data.rfind(b"\n") - 1), node)


def following(file: Path, place: Place, clock: Clock, pause_s: float) -> Iterator[str]:
    """Lines behind a place as they come, also when the file is replaced by a new one, or does not exist yet. It does not end."""
    at, node, rest = place.offset, place.node, b""
    while True:
        size, now = _state(file)
        if now != node or size < at:
            at, node, rest = 0, now, b""
        if size > at:
            data = _piece(file, at)
            at += len(data)
            *lines, rest = (rest + data).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in lines)
        else:
            clock.sleep(pause_s)


def _state(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_ino


def _piece(file: Path, at: int) -> bytes:
    try:
        with file.open("rb") as opened:
            opened.seek(at)
            return opened.read(BLOCK_BYTES)
    except OSError:
        return b""


def read(text: str, agent_id: str) -> dict[str, Json]:
    """A line of a log, whatever it is."""
    try:
        value: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    line = value if isinstance(value, dict) else {"message": text}
    return {"agent_id": agent_id, **line}
