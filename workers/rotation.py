"""Files that are appended to and turn over when full; law: bounded on disk, whole lines, and a full disk stops nobody.

Each `write` is one call of the kernel, so that a reader, and whoever comes after a crash, finds whole lines. One process should write a file:
two may turn it over at the same moment, which costs the oldest lines early.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import IO

log = logging.getLogger("orchestrator.agents")


class RollingFile:
    """`path`, and beside it `path.1` (older) to `path.<files_max - 1>`; each of about `file_bytes_max`. For any thread."""

    def __init__(self, path: Path, *, file_bytes_max: int, files_max: int) -> None:
        self.path = path
        self.lost = 0  # writes that the disk refused
        self._file_bytes_max = file_bytes_max
        self._files_max = files_max
        self._lock = threading.Lock()
        self._file: IO[bytes] | None = None
        self._failed = False

    def write(self, lines: bytes) -> None:
        """Append whole lines. What the disk refuses is lost and counted; it is said once until it works again."""
        with self._lock:
            try:
                self._append(lines)
                self._failed = False
            except OSError as error:
                self.lost += 1
                if not self._failed:
                    log.warning("%s cannot be written: %s", self.path, error.strerror or error)
                self._failed = True
                self._close()

    def close(self) -> None:
        """Give the file back; a later write opens it again."""
        with self._lock:
            self._close()

    def _append(self, lines: bytes) -> None:
        if self._file is not None and self._moved(self._file):
            self._close()
        if self._file is not None and self._file.tell() + len(lines) > self._file_bytes_max:
            self._turn_over()
        if self._file is None:
            self._open()
        assert self._file is not None, "it was opened"
        if self._file.write(lines) < len(lines):
            raise OSError("the disk took only a part")

    def _moved(self, file: IO[bytes]) -> bool:
        """Whether somebody else has turned the file over, or removed it."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return True
        ours = os.fstat(file.fileno())
        return (there.st_ino, there.st_dev) != (ours.st_ino, ours.st_dev)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("ab+", buffering=0)
        if self._file.tell():
            self._file.seek(-1, 2)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")  # who wrote before died, or met a full disk, in the middle of a line

    def _turn_over(self) -> None:
        self._close()
        for number in range(self._files_max - 1, 0, -1):
            newer = older(self.path, number - 1)
            if newer.exists():
                newer.replace(older(self.path, number))

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def older(path: Path, number: int) -> Path:
    """Where the lines of `path` went, so many turns ago; 0 is `path` itself."""
    return path.with_name(f"{path.name}.{number}") if number else path
