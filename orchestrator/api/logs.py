"""The agents' logs as they lie on this machine; law: a tail costs its own length, whatever the file's, and any line is shown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import orjson

from schemas.history import Json
from schemas.settings import Settings

LINES_SHOWN = 100
LINES_MAX = 10_000
BLOCK_BYTES = 64 * 1024
TAIL_BYTES_MAX = 16 * 1024 * 1024
FILES_MAX = 1000


def latest(settings: Settings, agent_id: str | None, lines: int) -> list[dict[str, Json]]:
    """The last `lines` of one agent's log or of all of them, oldest first; each says whose it is."""
    folder = settings.log_directory or settings.home / "logs"
    files = sorted(folder.glob("*.log"))[:FILES_MAX] if agent_id is None else [folder / f"{agent_id}.log"]
    found: list[dict[str, Json]] = []
    for file in files:
        found += [_line(text, file.stem) for text in tail(file, lines)]
    found.sort(key=lambda line: str(line.get("ts", "")))  # as they were written where they do not say when
    return found[-lines:]


def tail(file: Path, lines: int) -> list[str]:
    """The last lines of a file; none if there is no such file."""
    try:
        with file.open("rb") as opened:
            opened.seek(0, 2)
            at = opened.tell()
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


def _line(text: str, agent_id: str) -> dict[str, Json]:
    try:
        value: Any = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = None
    line = value if isinstance(value, dict) else {"message": text}
    return {"agent_id": agent_id, **line}
