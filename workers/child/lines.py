"""Bytes into lines; law: whatever a process writes, never more than one line's maximum is held."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """A line without its break; if it was cut, `text` is its beginning and `size` what it had."""

    text: bytes
    size: int
    cut: bool = False


class Lines:
    """Takes what comes, gives whole lines; of a line that is too long its beginning."""

    def __init__(self, line_bytes_max: int) -> None:
        self._max = line_bytes_max
        self._held: list[bytes] = []
        self._kept = 0  # bytes in `_held`
        self._size = 0  # bytes of the unfinished line, kept or not

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """The lines that `chunk` completes."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            self._hold(end)
            yield self._take()
        self._hold(rest)

    def end(self) -> Iterator[Line]:
        """The line that was never finished, if there is one."""
        if self._size:
            yield self._take()

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        room = self._max - self._kept
        if piece and room > 0:
            self._held.append(piece[:room])
            self._kept += len(self._held[-1])

    def _take(self) -> Line:
        line = Line(b"".join(self._held).removesuffix(b"\r"), self._size, cut=self._size > self._kept)
        self._held, self._kept, self._size = [], 0, 0
        return line
