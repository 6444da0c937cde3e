"""Graphics memory, asked of nvidia-smi; law: whoever wants to know gets the last answer at once, and never waits for a driver that hangs."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import threading
from dataclasses import dataclass

from orchestrator.clock import SYSTEM, Clock

log = logging.getLogger("orchestrator.vitals")

TIMEOUT_S = 2.0
STALE_S = 10.0  # an answer older than this is asked for anew
QUERY = ("--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits")


@dataclass(frozen=True, slots=True)
class Vram:
    """Megabytes over all cards; nothing where there is no card, no nvidia-smi, or no answer from it."""

    available_mb: float = 0.0
    total_mb: float = 0.0


class Gpu:
    """The last answer, renewed by a thread of its own when somebody looks at it."""

    def __init__(self, *, clock: Clock = SYSTEM, timeout_s: float = TIMEOUT_S) -> None:
        self._clock, self._timeout_s = clock, timeout_s
        self._lock = threading.Lock()
        self._asked_at: float | None = None
        self._last = Vram()
        self._asking: threading.Thread | None = None

    def read(self) -> Vram:
        """What the last answer was; at once."""
        with self._lock:
            now = self._clock.monotonic()
            stale = self._asked_at is None or now - self._asked_at >= STALE_S
            if stale and not (self._asking and self._asking.is_alive()):
                self._asked_at = now
                self._asking = threading.Thread(target=self._ask, name="orchestrator-gpu", daemon=True)
                self._asking.start()
            return self._last

    def settle(self, timeout_s: float) -> Vram:
        """Wait for an answer that is on its way."""
        asking = self._asking
        if asking is not None:
            asking.join(timeout_s)
        return self._last

    def _ask(self) -> None:
        self._last = ask(self._timeout_s)


def ask(timeout_s: float = TIMEOUT_S) -> Vram:
    """Ask nvidia-smi and wait for it, at most timeout_s; zeros for whatever goes wrong."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Vram()
    try:
        return parse(_answer([program, *QUERY], timeout_s))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning("nvidia-smi gave no answer, so no graphics memory is reported: %s", error)
        return Vram()


def parse(text: str) -> Vram:
    """The sums of its lines `free, total`; raises ValueError for anything else."""
    rows = [[float(part) for part in line.split(",")] for line in text.splitlines() if line.strip()]
    if any(len(row) != 2 for row in rows):
        raise ValueError(f"unexpected answer {text[:100]!r}")
    return Vram(sum(free for free, _ in rows), sum(total for _, total in rows))


def _answer(argv: list[str], timeout_s: float) -> str:
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        try:
            answer, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with whatever it has started: it would hold the pipe
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return answer
