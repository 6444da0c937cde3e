"""The guard of one agent: a small process between an agent and its host; law: when this ends, or the host does, nothing of the agent is left.

    python -I -S guard.py CONTROL_FD ORPHAN_GRACE_S ARGV...

It needs nothing but the standard library, and talks over the socket CONTROL_FD. It says, one line each: `started PID`, or `failed ERRNO`
and ends; `exited CODE FORCED` when the agent and all that it started are gone. It is told: `end GRACE_S SIGNAL`, which gives the agent that
signal, and SIGKILL to whatever is left after the grace. When the socket closes its host is gone, and the agent gets ORPHAN_GRACE_S to leave.

Why a process: the kernel gives orphans to the nearest ancestor that asks for them (Linux), so the guard finds grandchildren that left the
group or the session, and it outlives a host that was killed. If the guard itself is killed, the kernel kills the agent.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from contextlib import suppress
from types import FrameType

LEFTOVER_GRACE_S = 1.0
"""How long what an agent left behind may take to go after SIGTERM."""
KILL_INTERVAL_S = 0.02
"""Between two rounds of killing: a round finds what was forked during the one before."""
KILL_ROUNDS_MAX = 500
READ_BYTES_MAX = 4096
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

LINUX = sys.platform == "linux"
LIBC = ctypes.CDLL(None) if LINUX else None


class Guard:
    """One agent and its descendants."""

    def __init__(self, control: int, orphan_grace_s: float, argv: list[str]) -> None:
        self._control = control
        self._orphan_grace_s = orphan_grace_s
        self._argv = argv
        self._heard = b""
        self._agent = 0
        self._code: int | None = None  # of the agent, once it has ended
        self._ending = False
        self._forced = False
        self._host_there = True
        self._rounds = 0

    def run(self) -> int:
        """Start the agent and stay until nothing of it is left."""
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_inheritable(self._control, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, _noted)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        problem = self._start()
        if problem:
            self._say(f"failed {problem}")
            return 1
        self._say(f"started {self._agent}")
        poll = select.poll()
        poll.register(woken, select.POLLIN)
        poll.register(self._control, select.POLLIN)
        while self._present():
            for ready, _ in poll.poll():
                if ready == woken:
                    self._signalled(os.read(woken, READ_BYTES_MAX))
                elif not self._hear():
                    poll.unregister(self._control)
                    self._host_gone()
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._say(f"exited {self._code} {int(self._forced)}")
        return 0

    def _start(self) -> int:
        """Fork and exec; returns the error number of an exec that failed, else 0."""
        outcome, report = os.pipe()  # closed by a successful exec
        guard = os.getpid()
        self._agent = os.fork()
        if not self._agent:
            become(self._argv, guard, report)
        os.close(report)
        problem = os.read(outcome, READ_BYTES_MAX)
        os.close(outcome)
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)  # the pipes are the agent's alone now, so that its host sees it close them
        os.close(nothing)
        return int(problem) if problem else 0

    def _present(self) -> bool:
        """Reap whoever has ended; is anybody left?"""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return not LINUX and self._rounds == 0 and self._group_left()
            if not pid:
                return self._rounds < KILL_ROUNDS_MAX
            if pid == self._agent:
                self._code = os.waitstatus_to_exitcode(status)
                self._agent_ended()

    def _agent_ended(self) -> None:
        left = descendants() if LINUX else [-self._agent]
        for pid in left:
            send(pid, signal.SIGTERM)
        if left and not self._ending:
            self._ending = True
            signal.setitimer(signal.ITIMER_REAL, LEFTOVER_GRACE_S)

    def _group_left(self) -> bool:
        with suppress(OSError):
            os.killpg(self._agent, 0)
            return True
        return False

    def _hear(self) -> bool:
        """Read what the host says; False if it is gone."""
        try:
            said = os.read(self._control, READ_BYTES_MAX)
        except OSError:
            said = b""
        *orders, self._heard = (self._heard + said).split(b"\n")
        for order in orders:
            _, grace_s, number = order.split()
            self._end(float(grace_s), int(number))
        return bool(said)

    def _signalled(self, numbers: bytes) -> None:
        if signal.SIGALRM in numbers:
            self._kill()
        if {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & set(numbers):
            self._host_gone()

    def _host_gone(self) -> None:
        if self._host_there:
            self._host_there = False
            self._end(self._orphan_grace_s, signal.SIGTERM)

    def _end(self, grace_s: float, number: int) -> None:
        """Ask the agent to leave; it sees to what it started, and whatever it leaves behind is asked when it has gone."""
        if self._rounds:
            return
        self._ending = True
        if grace_s <= 0:
            self._kill()
            return
        if self._code is None:
            send(self._agent, number)
        signal.setitimer(signal.ITIMER_REAL, grace_s)

    def _kill(self) -> None:
        """One round of SIGKILL for everybody."""
        self._rounds += 1
        self._forced = self._forced or self._code is None
        for pid in descendants() if LINUX else [-self._agent]:
            send(pid, signal.SIGKILL)
        signal.setitimer(signal.ITIMER_REAL, KILL_INTERVAL_S)

    def _say(self, text: str) -> None:
        with suppress(OSError):  # the host may be gone
            os.write(self._control, text.encode() + b"\n")


def become(argv: list[str], guard: int, report: int) -> None:
    """In the fork: turn into the agent, in a session of its own that dies with the guard."""
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)  # Python ignores them, and what is ignored stays so
        signal.set_wakeup_fd(-1)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if os.getppid() == guard:
            os.execvp(argv[0], argv)  # noqa: S606 - what this is for; no shell
    except OSError as error:
        os.write(report, str(error.errno).encode())
    finally:
        os._exit(127)


def descendants() -> list[int]:
    """All processes below this one."""
    parents = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - plain names, and pathlib is dear for a small process
        if name.isdigit():
            with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - as above
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    found = {os.getpid()}
    size = 0
    while size < len(found):
        size = len(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return sorted(found - {os.getpid()})


def send(pid: int, number: int) -> None:
    """A signal to a process, or to a group if negative; one that is gone needs none, and another account's cannot be reached."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def prctl(option: int, value: int) -> None:
    """Ask the kernel for something that only Linux has."""
    if LIBC is not None:
        LIBC.prctl(option, value, 0, 0, 0)


def _noted(number: int, frame: FrameType | None) -> None:
    """The number has gone through the pipe."""


if __name__ == "__main__":
    raise SystemExit(Guard(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]).run())
