"""One process of an agent behind its guard; law: whatever it or its guard does, every wait here ends.

Everything runs on the loop of `host.Processes`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from orchestrator.errors import FleetError
from schemas.agents import AgentKind
from schemas.messages import ErrorCode
from workers.child.launch import Launch

GUARD = Path(__file__).with_name("guard.py")
ORPHAN_GRACE_S = 2.0
"""How long an agent may take to leave after its host has died."""
START_MAX_S = 10.0
GUARD_MAX_S = 15.0
"""How long a guard may take beyond the grace to kill whatever is left; then it is killed itself."""
PIPES_MAX_S = 5.0
"""How long the pipes may stay open after everybody who had them is gone: somebody else holds them then."""
REAP_MAX_S = 5.0
REAP_INTERVAL_S = 0.005
COMMANDS_BYTES_MAX = 65_536
"""Commands that a child has not read yet."""
UNSAID_MAX = 10
STDOUT, STDERR = 1, 2

log = logging.getLogger("orchestrator.agents")

Heard = Callable[[int, bytes | None], None]
"""Told what came from a stream, and None when it is closed."""


class _Pipe(asyncio.Protocol):
    def __init__(self, stream: int, heard: Heard) -> None:
        self._stream = stream
        self._heard = heard
        self.closed = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self._heard(self._stream, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._heard(self._stream, None)
        self.closed.set_result(None)


class GuardedProcess:
    """A process to be: first `start`, then `open`, at last `ended` and `discard`."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.pid = 0
        self._popen: subprocess.Popen[bytes] | None = None
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None
        self._orders: list[bytes] = []  # given before the guard could hear
        self._pipes: list[_Pipe] = []
        self._readers: dict[int, asyncio.ReadTransport] = {}
        self._stdin: asyncio.WriteTransport | None = None
        self.signalled = False  # it has been asked to leave by signal
        self._unsaid: list[bytes] | None = [] if launch.kind is AgentKind.CHILD else None  # said before its stdin was open
        self._waits: dict[int, set[str]] = {}  # why a stream is not read
        self._discarded = False

    async def start(self) -> None:
        """Start it; raises FleetError (start_failed) with the reason if there is no process in the end."""
        self._popen, guard = _spawn(self.launch)
        try:
            try:
                self._reader, self._writer = await asyncio.open_connection(sock=guard)
            except BaseException:
                guard.close()
                raise
            self._writer.writelines(self._orders)
            await self._started()
        except BaseException:
            await self.discard()
            raise

    async def open(self, heard: Heard) -> None:
        """Begin to read what it says."""
        assert self._popen is not None, "it is started first"
        loop = asyncio.get_running_loop()
        for stream, pipe in ((STDOUT, self._popen.stdout), (STDERR, self._popen.stderr)):
            if pipe is not None:
                transport, protocol = await loop.connect_read_pipe(partial(_Pipe, stream, heard), pipe)
                self._readers[stream] = transport
                self._pipes.append(protocol)
        if self._popen.stdin is not None:
            self._stdin, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, self._popen.stdin)
            self._stdin.writelines(self._unsaid or [])
            self._unsaid = None

    def say(self, line: bytes) -> bool:
        """Write to its stdin without waiting; False if it reads nothing, or is not there."""
        if self._unsaid is not None and len(self._unsaid) < UNSAID_MAX:
            self._unsaid.append(line)
            return True
        if self._stdin is None or self._stdin.is_closing() or self._stdin.get_write_buffer_size() + len(line) > COMMANDS_BYTES_MAX:
            return False
        self._stdin.write(line)
        return True

    def wait(self, stream: int, why: str, *, waiting: bool) -> None:
        """Read a stream no further, or go on unless another reason holds: what it writes waits in the pipe, and at last it waits too."""
        reasons = self._waits.setdefault(stream, set())
        waited = bool(reasons)
        if waiting:
            reasons.add(why)
        else:
            reasons.discard(why)
        reader = self._readers.get(stream)
        if reader is None or reader.is_closing() or bool(reasons) == waited or self._discarded:
            return
        if waiting:
            reader.pause_reading()
        else:
            reader.resume_reading()

    def end(self, grace_s: float, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to leave; whatever of it is left after the grace is killed. Returns at once, and may be said again with a shorter grace."""
        self.signalled = True
        order = f"end {grace_s:f} {int(number)}\n".encode()
        if self._writer is None:
            self._orders.append(order)
        else:
            self._writer.write(order)

    async def ended(self) -> tuple[int, bool]:
        """Wait until all of it is gone: its exit code, negative for a signal, and whether it had to be killed."""
        try:
            words = (await self._reader.readline()).split()
        except (OSError, ValueError):
            words = []
        if len(words) == 3 and words[0] == b"exited":
            if words[1] == b"None":
                log.error("process %s of agent %s cannot be killed", self.pid, self.launch.agent_id)
                return -int(signal.SIGKILL), True
            return int(words[1]), words[2] == b"1"
        # The guard was killed, and the kernel has killed the agent; what else is in its group goes now.
        assert self.pid > 0, "it has started"
        with suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        return -int(signal.SIGKILL), True

    def kill_guard(self) -> None:
        """For a guard that does not answer: the agent dies with it."""
        if self._popen is not None:
            self._popen.kill()

    async def discard(self) -> None:
        """Read what is still in the pipes, close everything, and reap the guard."""
        if self._writer is not None:
            self._writer.close()  # a guard that still runs ends its agent now
        if self._stdin is not None and not self._stdin.is_closing():
            self._stdin.abort()
        for stream, reasons in self._waits.items():
            for why in tuple(reasons):
                self.wait(stream, why, waiting=False)
        self._discarded = True  # what is left is no more than the pipes hold
        if self._pipes:
            await asyncio.wait([pipe.closed for pipe in self._pipes], timeout=PIPES_MAX_S)
        for reader in self._readers.values():
            reader.close()
        for pipe in self._pipes:
            await pipe.closed
        await self._reap()

    async def _reap(self) -> None:
        assert self._popen is not None, "it is started first"
        for file in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if file is not None:
                file.close()  # if nobody opened it
        for _ in range(2):
            deadline = asyncio.get_running_loop().time() + REAP_MAX_S
            while self._popen.poll() is None and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - a process has no event
                await asyncio.sleep(REAP_INTERVAL_S)
            if self._popen.returncode is not None:
                return
            self._popen.kill()
        log.error("the guard of agent %s does not end", self.launch.agent_id)

    async def _started(self) -> None:
        try:
            words = (await asyncio.wait_for(self._reader.readline(), START_MAX_S)).split()
        except TimeoutError:
            raise failure(self.launch, f"did not start within {START_MAX_S:.0f} s") from None
        if len(words) == 2 and words[0] == b"started":
            self.pid = int(words[1])
            return
        if len(words) == 2 and words[0] == b"failed":
            raise failure(self.launch, _reason(self.launch.argv[0], int(words[1])))
        raise failure(self.launch, "could not be started: its guard ended")


def failure(launch: Launch, reason: str) -> FleetError:
    """Why there is no process."""
    return FleetError(f"agent {launch.agent_id!r} {reason}", code=ErrorCode.START_FAILED)


def _spawn(launch: Launch) -> tuple[subprocess.Popen[bytes], socket.socket]:
    child = launch.kind is AgentKind.CHILD
    ours, theirs = socket.socketpair()
    try:
        popen = subprocess.Popen(
            (sys.executable, "-I", "-S", str(GUARD), str(theirs.fileno()), str(ORPHAN_GRACE_S), *launch.argv),
            stdin=subprocess.PIPE if child else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if child else subprocess.STDOUT,
            pass_fds=(theirs.fileno(),),
            cwd=launch.cwd,
            env=dict(launch.env),
            start_new_session=True,  # Ctrl-C in a terminal is for its host, which then ends it in order
            bufsize=0,
        )
    except (OSError, ValueError) as error:  # ValueError: a zero byte in an argument
        ours.close()
        if isinstance(error, OSError) and error.errno == errno.ENOENT and launch.cwd is not None:
            raise failure(launch, f"cannot start in {launch.cwd}, which is no folder") from None
        raise failure(launch, f"could not be started: {error}") from None
    finally:
        theirs.close()
    return popen, ours


def _reason(program: str, number: int) -> str:
    match number:
        case errno.ENOENT:
            return f"could not be started: {program!r} was not found; give its full path, or put its folder into PATH"
        case errno.EACCES:
            return f"could not be started: {program!r} is not an executable file"
        case errno.ENOEXEC:
            return f"could not be started: {program!r} is not a program; a script needs a first line such as #!/bin/sh"
        case _:
            return f"could not be started: {os.strerror(number)}"
