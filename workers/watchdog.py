"""Ends a turn that does not yield; law: the turn fails and names the line, the run and the worker live on.

A thread looks at the turn in progress. When it is over its time, `TurnInterrupted` is raised inside the thread that takes it. Code that is
stuck inside a C call cannot be reached; it is interrupted as soon as it returns to Python.
"""

from __future__ import annotations

import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from orchestrator.clock import Clock, thread_id
from orchestrator.errors import EngineStop, TurnTooLong
from workers.threads import let_strike, throw

LOOKS_PER_LIMIT = 8  # how finely the limit is kept

_STDLIB = sysconfig.get_paths()["stdlib"]
_OURS = str(Path(__file__).resolve().parent.parent)


class TurnInterrupted(EngineStop):
    """Raised asynchronously inside a turn that takes too long."""


class Watchdog:
    """Guards the turns of one thread."""

    def __init__(self, turn_seconds_max: float, clock: Clock) -> None:
        self._limit_s = turn_seconds_max
        self._clock = clock
        self._lock = threading.Lock()
        self._since: float | None = None
        self._thread = 0
        self._where: str | None = None
        self._stopped = threading.Event()
        self._watcher: threading.Thread | None = None

    @contextmanager
    def turn(self, what: str) -> Iterator[None]:
        """Guard the block; raises TurnTooLong, which names `what` and the line, when it was interrupted."""
        if self._watcher is None:
            self._thread = thread_id()
            self._watcher = threading.Thread(target=self._watch, name="orchestrator-watchdog", daemon=True)
            self._watcher.start()
        self._where = None
        self._since = self._clock.monotonic()
        try:
            yield
        except TurnInterrupted:
            pass
        finally:
            with self._lock:
                self._since = None
            if self._where is not None:
                with suppress(TurnInterrupted):
                    let_strike()  # raised as the turn ended: it must go off here and not in the engine
        if self._where is not None:
            message = (
                f"{what} did not yield within {self._limit_s:g} seconds; it was at {self._where}. Move the computation into an activity, "
                f"or await something in the loop."
            )
            raise TurnTooLong(message)

    def stop(self) -> None:
        """No further turns."""
        self._stopped.set()

    def _watch(self) -> None:
        while not self._stopped.wait(self._limit_s / LOOKS_PER_LIMIT):
            with self._lock:
                if self._since is None or self._where is not None or self._clock.monotonic() - self._since < self._limit_s:
                    continue
                self._where = _line_of(sys._current_frames().get(self._thread))  # noqa: SLF001 - the documented way to another thread's stack
                throw(self._thread, TurnInterrupted)


def _line_of(frame: FrameType | None) -> str:
    """The innermost line of author code: neither ours nor the standard library's."""
    innermost = frame
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_OURS + "/orchestrator", _OURS + "/workers", _STDLIB, "<frozen")):
            return f"{file}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "an unknown line" if innermost is None else f"{innermost.f_code.co_filename}:{innermost.f_lineno}"
