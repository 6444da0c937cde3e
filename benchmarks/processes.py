"""Worker processes of the peers; law: all of them end with their peer, in order if they can, by force if they do not."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from celery import Celery

from benchmarks.effects import FOLDER_VARIABLE
from benchmarks.peers import Env

ROOT = Path(__file__).resolve().parent.parent
READY_MAX_S = 60.0
KILL_LOOK_S = 0.01
STOP_MAX_S = 10.0
LOG_TAIL_CHARS_MAX = 2_000


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class PeerFailed(RuntimeError):
    """A peer could not do what was asked. The message holds the end of its log."""


@dataclass
class Pool:
    """The worker processes of one peer."""

    env: Env
    name: str = "worker"
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    _spawned: list[tuple[Sequence[str], Mapping[str, str], str]] = field(default_factory=list)
    _logs: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)

    def spawn(self, argv: Sequence[str], variables: Mapping[str, str], *, ready_line: str = "") -> None:
        """Start one process; with `ready_line`, return when it has printed that."""
        # Our own settings come from the benchmark alone, never from the shell of the one who runs it.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("ORCHESTRATOR_")}
        environment = {**inherited, FOLDER_VARIABLE: str(self.env.effects), "PYTHONPATH": str(ROOT), **variables}
        log = self._log(self._logs)
        self._logs += 1
        with log.open("w") as out:
            process = subprocess.Popen(
                argv,
                cwd=self.env.folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if ready_line else out,
                stderr=out,
                text=True,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one C function that was looked up before
            )
        self.processes.append(process)
        self._spawned.append((argv, variables, ready_line))
        if ready_line:
            self._await_line(process.stdout, ready_line)

    @contextmanager
    def killing(self, wanted: Callable[[], bool], look: Callable[[int], None]) -> Iterator[list[float]]:
        """During the block, as soon as it is `wanted`, `look` at the first process, kill it with all its children and start it again; gives when that was."""
        killed: list[float] = []
        over, done = threading.Event(), threading.Event()

        def kill() -> None:
            while not wanted():
                if over.wait(KILL_LOOK_S):
                    done.set()
                    return
            victim = self.processes.pop(0)  # first of all: nobody must take it for one that has ended by itself
            os.killpg(victim.pid, signal.SIGSTOP)  # while we look it begins nothing, and nobody has taken its work yet
            look(victim.pid)
            os.killpg(victim.pid, signal.SIGKILL)
            killed.append(time.perf_counter())
            victim.wait()
            argv, variables, _ = self._spawned.pop(0)
            self.spawn(argv, variables)
            done.set()
            self._stopped.wait()  # a child dies with the thread that made it

        threading.Thread(target=kill, daemon=True).start()
        try:
            yield killed
        finally:
            over.set()
            done.wait()

    def await_pong(self, broker_url: str, count: int) -> None:
        """Return when `count` Celery workers answer on this broker."""
        app = Celery("benchmark", broker=broker_url, set_as_current=False)
        deadline = time.monotonic() + READY_MAX_S
        while len(app.control.ping(timeout=0.5, limit=count) or ()) < count:
            self.check()
            if time.monotonic() > deadline:
                raise PeerFailed(f"{count} Celery workers did not answer within {READY_MAX_S:.0f} s.\n{self.log_tail()}")
        app.close()

    def check(self) -> None:
        """Raise if a process has ended by itself."""
        for process in self.processes:
            if process.poll() is not None:
                raise PeerFailed(f"a worker ended with status {process.returncode}.\n{self.log_tail()}")

    def stop(self) -> None:
        """End all of them: the end of their input or SIGTERM asks, SIGKILL tells."""
        for process in self.processes:
            if process.stdin is not None:
                process.stdin.close()
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_MAX_S
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self.processes, self._spawned, self._logs = [], [], 0
        self._stopped.set()
        self._stopped = threading.Event()

    def log_tail(self) -> str:
        """The end of what the workers said."""
        texts = [self._log(number).read_text(errors="replace") for number in range(self._logs)]
        return "\n".join(text[-LOG_TAIL_CHARS_MAX:] for text in texts)

    def _log(self, number: int) -> Path:
        return self.env.folder / f"{self.name}-{number}.log"

    def _await_line(self, lines: IO[str] | None, wanted: str) -> None:
        assert lines is not None, "the output of a process with a ready line is a pipe"
        for line in lines:
            if line.strip() == wanted:
                return
        raise PeerFailed(f"a worker ended before it was ready.\n{self.log_tail()}")


def _die_with_parent() -> None:
    """A peer that is killed takes its workers along; elsewhere than on Linux they stay, and only a kill leaves them."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the peer ignores it, and its workers would inherit that
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
