"""One command behind a guard, from its start to its end, on the caller's thread; law: bounded in time and output, and nothing of it is left.

For agents that run programs as their work. The guard sees to it that what the command has started goes with it, also if this process is
killed. Whoever interrupts the thread ends the command.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from orchestrator.clock import SYSTEM, Clock
from workers.child.process import GUARD

LOOK_S = 0.1  # so that a strike at this thread is felt
GRACE_S = 1.0  # between SIGTERM and SIGKILL
GONE_MAX_S = 10.0  # how long a guard may take to see to the end of everything
CHUNK = 64 * 1024

Ended = Literal["", "timeout", "output"]


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and within which limits. `env` is all of its environment."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    timeout_s: float
    output_bytes_max: int  # of stdout and stderr together
    stdin: bytes = b""


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of it; `ended` says which limit it has met, `errno` why it could not be started."""

    code: int | None
    stdout: bytes
    stderr: bytes
    seconds: float
    ended: Ended = ""
    errno: int = 0


@dataclass(slots=True)
class _Run:
    """A command on its way."""

    command: Command
    control: socket.socket
    streams: dict[str, IO[bytes]]
    outputs: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})
    said: bytearray = field(default_factory=bytearray)
    ended: Ended = ""

    def end(self, why: Ended) -> None:
        """Have the guard end it, once."""
        if not self.ended:
            self.ended = why
            self.control.sendall(f"end {GRACE_S} {int(signal.SIGTERM)}\n".encode())

    def take(self, name: str, data: bytes) -> None:
        """Keep output as long as there is room."""
        room = self.command.output_bytes_max - sum(map(len, self.outputs.values()))
        self.outputs[name] += data[: max(room, 0)]
        if len(data) > room:
            self.end("output")


def run(command: Command, *, clock: Clock = SYSTEM) -> Ran:
    """Run it and wait for its end. Raises OSError if not even its guard can be started (no such folder, no process left)."""
    began = clock.monotonic()
    with ExitStack() as stack:
        ours, theirs = socket.socketpair()
        stack.callback(ours.close)  # a guard that still runs ends its command now
        with theirs, tempfile.TemporaryFile() as given:
            given.write(command.stdin)
            given.seek(0)
            popen = subprocess.Popen(
                (sys.executable, "-I", "-S", str(GUARD), str(theirs.fileno()), str(GRACE_S), *command.argv),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(theirs.fileno(),),
                cwd=command.cwd,
                env=dict(command.env),
                start_new_session=True,
                bufsize=0,
            )
        stack.callback(_reap, popen)
        stack.callback(ours.close)
        assert popen.stdout is not None, "asked for above"
        assert popen.stderr is not None, "asked for above"
        started = _Run(command, ours, {"stdout": popen.stdout, "stderr": popen.stderr})
        for stream in started.streams.values():
            stack.callback(stream.close)
        _follow(started, began, clock)
    code, failed = _verdict(bytes(started.said))
    out, err = (bytes(started.outputs[name]) for name in ("stdout", "stderr"))
    return Ran(code, out, err, clock.monotonic() - began, started.ended, failed)


def _follow(run_: _Run, began: float, clock: Clock) -> None:
    """Read all that comes until the guard has nothing more to say and the outputs are closed, or it takes too long to end."""
    deadline = began + run_.command.timeout_s
    with selectors.DefaultSelector() as selector:
        selector.register(run_.control, selectors.EVENT_READ, "control")
        for name, stream in run_.streams.items():
            selector.register(stream, selectors.EVENT_READ, name)
        while selector.get_map():
            now = clock.monotonic()
            if now >= deadline:
                run_.end("timeout")
            if run_.ended and now >= max(deadline, began) + GRACE_S + GONE_MAX_S:
                return
            for key, _ in selector.select(LOOK_S):
                data = os.read(key.fd, CHUNK)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.data == "control":
                    run_.said += data
                else:
                    run_.take(key.data, data)


def _verdict(said: bytes) -> tuple[int | None, int]:
    """The exit code, and the error number of a start that failed, by what the guard has said."""
    for line in said.decode().splitlines():
        word, *rest = line.split()
        if word == "exited":
            return int(rest[0]), 0
        if word == "failed":
            return None, int(rest[0])
    return None, 0


def _reap(popen: subprocess.Popen[bytes]) -> None:
    """The guard ends when its socket is closed; if it does not, the kernel kills the command with it."""
    try:
        popen.wait(GRACE_S + GONE_MAX_S)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
