"""The one door to time, chance and fresh ids; law: nobody else reads a clock, so that a simulation can replace them all.

Times are seconds since the epoch as float, UTC; durations are seconds as float.
"""

from __future__ import annotations

import os
import random
import threading
import time
import uuid
from datetime import UTC, datetime
from typing import Protocol

# Captured at import: the guard wraps the public names for author code, the engine keeps the plain ones.
_time = time.time
_monotonic = time.monotonic
_sleep = time.sleep
_urandom = os.urandom


class Clock(Protocol):
    """What the engine needs of time and chance."""

    def now(self) -> float:
        """Wall time, seconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait, in this thread."""
        ...

    def random(self) -> float:
        """A number in [0, 1): jitter."""
        ...

    def fresh_id(self) -> str:
        """A new unique id that sorts by time."""
        ...


class SystemClock:
    """The machine's own clock."""

    def __init__(self) -> None:
        self._random = random.Random(_urandom(16))  # noqa: S311 - jitter, not secrets

    def now(self) -> float:
        """Wall time, seconds since the epoch."""
        return _time()

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return _monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait, in this thread."""
        _sleep(seconds)

    def random(self) -> float:
        """A number in [0, 1): jitter."""
        return self._random.random()

    def fresh_id(self) -> str:
        """A UUID version 7 (RFC 9562): 48 bits of milliseconds first, so that index pages fill in order; the rest is random."""
        millis = int(_time() * 1000)
        noise = int.from_bytes(_urandom(10), "big")
        value = (millis & (1 << 48) - 1) << 80 | 0x7 << 76 | (noise >> 68) << 64 | 0b10 << 62 | noise & (1 << 62) - 1
        return str(uuid.UUID(int=value))


SYSTEM: Clock = SystemClock()


def utc(seconds: float) -> datetime:
    """The aware UTC datetime of a time in seconds."""
    return datetime.fromtimestamp(seconds, tz=UTC)


def thread_id() -> int:
    """The identity of the calling thread."""
    return threading.get_ident()
