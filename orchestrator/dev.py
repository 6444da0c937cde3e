"""The whole stack on one machine: broker, store, workers, beat, flower, API; law: it stops in order, and nothing of it outlives us.

    with Stack(settings, Plan(workers=2)) as stack:      # returns when every worker is registered in the store
        stack.worker(1).kill()
        stack.tend()                                     # starts again what has died; `orchestrator dev` does so all the time

What settings name as database and broker is used as it is; what they leave open is embedded: a SQLite file and a Valkey in the home folder.
"""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import DatabaseNotMigrated, DatabaseUnavailable, ServerUnavailable
from orchestrator.servers import Launch, Valkey, ask_tcp, spawn
from orchestrator.settings import embedded_broker, embedded_database, environment
from orchestrator.store import Store, health, workers
from schemas.settings import Settings

READY_MAX_S = 60.0  # until all workers are registered and beat has its lease
POLL_S = 0.05
LEAVE_MARGIN_S = 10.0  # that a stopping process gets over its drain time
LEAVE_MAX_S = 10.0  # for beat and flower, which have nothing to drain
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 30.0
STEADY_S = 30.0  # a process that lived for this long starts over with the shortest backoff
TAIL_LINES_MAX = 20
TAIL_LINES_TOLD = 5
LINE_CHARACTERS_MAX = 4_000
WORKERS_MAX = 64
FLOWER_PORT = 5555

Tell = Callable[[str, str], None]
"""(who, line): a line that a process of the stack has said, or the stack itself (`dev`)."""


@dataclass(frozen=True)
class Plan:
    """What a stack consists of. `queues` are served besides the default one; `concurrency` is the threads of each worker, None: Celery's choice."""

    workers: int = 1
    queues: tuple[str, ...] = ()
    concurrency: int | None = None
    beat: bool = True
    flower: bool = False
    flower_port: int = FLOWER_PORT
    api: bool = False  # the management API, on the port of the settings


class Process:
    """One process of the stack, its output read line by line; killed and started again it is the same Process."""

    def __init__(self, name: str, argv: tuple[str, ...], env: Mapping[str, str], *, tell: Tell, clock: Clock, leave_max_s: float) -> None:
        self.name = name
        self.wanted = False  # somebody started it and nobody stopped it
        self._launch = Launch((sys.executable, "-u", "-m", *argv), env, orphan_signal=signal.SIGKILL)
        self._tell = tell
        self._clock = clock
        self._leave_max_s = leave_max_s
        self._tail: deque[str] = deque(maxlen=TAIL_LINES_MAX)
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._backoff_s = BACKOFF_FIRST_S
        self._started_at = 0.0
        self._again_at: float | None = None

    @property
    def running(self) -> bool:
        """Does it live?"""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The process id of the latest start."""
        return None if self._process is None else self._process.pid

    @property
    def status(self) -> int | None:
        """The exit status of the latest start, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    @property
    def tail(self) -> str:
        """The last lines it said."""
        return "\n".join(list(self._tail)[-TAIL_LINES_TOLD:])

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.running:
            return
        self.wanted, self._again_at, self._started_at = True, None, self._clock.monotonic()
        self._process = spawn(self._launch, Path.cwd(), subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, args=(self._process,), name=f"read-{self.name}", daemon=True)
        self._reader.start()

    def freeze(self) -> None:
        """Stop its clockwork where it stands; `kill` or `thaw` follow."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash does."""
        self._signal(signal.SIGKILL)
        self._gone()

    def terminate(self) -> None:
        """Ask it to finish what it has and leave; returns at once."""
        self.wanted = False
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()  # the main process only: it sees to its children

    def stop(self) -> None:
        """Ask it to leave, wait for that, and end it if it does not."""
        self.terminate()
        if self._process is not None:
            try:
                self._process.wait(self._leave_max_s)
            except subprocess.TimeoutExpired:
                self._tell("dev", f"{self.name} did not leave within {self._leave_max_s:.0f} s and is killed")
                self._signal(signal.SIGKILL)
            self._gone()

    def tend(self) -> None:
        """Start it again if it died, after a pause that doubles as long as it keeps dying."""
        if not self.wanted or self.running:
            return
        now = self._clock.monotonic()
        if self._again_at is None:
            if now - self._started_at > STEADY_S:
                self._backoff_s = BACKOFF_FIRST_S
            self._again_at = now + self._backoff_s
            self._tell("dev", f"{self.name} {ending(self.status)}; it starts again in {self._backoff_s:g} s")
            self._backoff_s = min(self._backoff_s * 2, BACKOFF_MAX_S)
        elif now >= self._again_at:
            self.start()

    def _signal(self, which: signal.Signals) -> None:
        """Signal the whole group, so that no grandchild stays."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, which)

    def _gone(self) -> None:
        if self._process is not None:
            self._process.wait()
        if self._reader is not None:
            self._reader.join(1.0)  # what it said last; a grandchild may keep the pipe open for longer

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None, "the process was started with a pipe"
        with process.stdout as lines:
            while raw := lines.readline(LINE_CHARACTERS_MAX):
                line = raw.decode(errors="replace").rstrip()
                if line:
                    self._tail.append(line)
                    self._tell(self.name, line)


class Stack:
    """Broker, workers, beat and flower with one set of settings; as a context manager or by `start` and `stop`.

    `start` raises ServerUnavailable, DatabaseUnavailable or DatabaseNotMigrated, and leaves nothing running then.
    """

    def __init__(self, settings: Settings, plan: Plan | None = None, *, tell: Tell = lambda who, line: None, clock: Clock = SYSTEM) -> None:
        self.plan = plan or Plan()
        assert 0 <= self.plan.workers <= WORKERS_MAX, f"a stack has at most {WORKERS_MAX} workers"
        self.settings = settings.model_copy(update={"home": settings.home.absolute()})
        self.broker: Valkey | None = None
        if embedded_broker(self.settings):
            binary = Path(settings.broker_binary) if settings.broker_binary else None
            self.broker = Valkey(self.settings.home / "valkey", binary=binary, clock=clock)
        self.store = Store.of(self.settings, clock=clock)
        self._tell = tell
        self._clock = clock
        env = environment(self.settings)
        leave_s = self.settings.drain_s + LEAVE_MARGIN_S
        self._workers = [
            Process(f"worker-{n}", self._worker_argv(n), env, tell=tell, clock=clock, leave_max_s=leave_s)
            for n in range(1, self.plan.workers + 1)
        ]
        pidfile = str(self.settings.home / "beat.pid")
        self._beat = Process(
            "beat",
            ("celery", "-A", "orchestrator", "beat", "--loglevel", "INFO", "--pidfile", pidfile),
            env,
            tell=tell,
            clock=clock,
            leave_max_s=LEAVE_MAX_S,
        )
        flower_argv = ("celery", "-A", "orchestrator", "flower", "--address=127.0.0.1", f"--port={self.plan.flower_port}")
        self._flower = Process("flower", flower_argv, env, tell=tell, clock=clock, leave_max_s=LEAVE_MAX_S)
        self._api = Process("api", ("orchestrator", "api"), env, tell=tell, clock=clock, leave_max_s=LEAVE_MAX_S)

    @property
    def queues(self) -> tuple[str, ...]:
        """What the workers serve."""
        return tuple(dict.fromkeys((self.settings.default_queue, *self.plan.queues)))

    @property
    def processes(self) -> tuple[Process, ...]:
        """All processes that are ours to start again, in the order in which they stop."""
        return (*self._workers, *([self._beat] if self.plan.beat else []), *(one for one in (self._flower, self._api) if one.wanted))

    def worker(self, number: int) -> Process:
        """A worker by its number, from 1."""
        return self._workers[number - 1]

    def node(self, number: int) -> str:
        """The name under which that worker is registered."""
        return f"worker-{number}@{platform.node()}"

    def start(self) -> Self:
        """Start everything and return when it works: all workers registered, beat holding its lease."""
        try:
            self._prepare()
            with self.store.transaction(readonly=True) as tx:
                before = {row.identity.worker_id for row in workers.list_workers(tx)}
            for process in (*self._workers, *([self._beat] if self.plan.beat else [])):
                process.start()
            if self.plan.flower:
                self._start_if_free(self._flower, self.plan.flower_port)
            if self.plan.api:
                self._start_if_free(self._api, self.settings.api_port)
            self._await_ready(before)
        except BaseException:
            self.kill()
            raise
        return self

    def tend(self) -> None:
        """Start again what has died, and say so; to be called every now and then."""
        if self.broker is not None and not self.broker.running:
            self._tell("dev", "the broker has died and starts again; nothing is lost with it")
            self.broker.kill()
            self.broker.start()
        for process in self.processes:
            process.tend()

    def stop(self) -> None:
        """End everything in order: the workers when they have drained, then beat and flower, and the broker last."""
        for worker in self._workers:
            worker.terminate()
        for process in (*self._workers, self._beat, self._flower, self._api):
            process.stop()
        if self.broker is not None:
            self.broker.stop()
        self.store.dispose()

    def kill(self) -> None:
        """End everything at once; nothing is lost."""
        for process in (*self._workers, self._beat, self._flower, self._api):
            process.wanted = False
            process.kill()
        if self.broker is not None:
            self.broker.kill()
            self.broker.stop()  # gives its home back
        self.store.dispose()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.stop()
        else:
            self.kill()

    def _worker_argv(self, number: int) -> tuple[str, ...]:
        argv = (
            "celery",
            "-q",
            "-A",
            "orchestrator",
            "worker",
            "-n",
            f"worker-{number}@%h",
            "-Q",
            ",".join(self.queues),
            "--loglevel",
            "INFO",
        )
        size = () if self.plan.concurrency is None else ("-c", str(self.plan.concurrency))
        # Flower asks for events by itself, but only some seconds after the first activities.
        events = ("-E",) if self.plan.flower else ()
        return (*argv, *size, *events, "--without-gossip", "--without-mingle")

    def _prepare(self) -> None:
        try:
            self.settings.home.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DatabaseUnavailable(f"the folder {self.settings.home} cannot be made: {error.strerror}") from error
        if self.broker is not None:
            self.broker.start()
        if embedded_database(self.settings):
            self._upgrade()
        else:
            self.store.check_migrated()

    def _upgrade(self) -> None:
        """In a child, which takes along what migrates when it ends: 20 MiB that nobody needs any more."""
        try:
            self.store.check_migrated()
        except DatabaseNotMigrated:
            self.store.dispose()  # no connection is shared by two processes
            if sys.platform != "linux" or not _done_by_child(self.store.upgrade):
                self.store.upgrade()  # and if that fails, here is why

    def _start_if_free(self, process: Process, port: int) -> None:
        if ask_tcp(port, b"") is None:
            process.start()
        else:
            self._tell("dev", f"port {port} is in use, so there is no {process.name}")

    def _await_ready(self, before: set[str]) -> None:
        deadline = self._clock.monotonic() + READY_MAX_S
        while not self._ready(before):
            dead = next((process for process in self.processes if not process.running), None)
            if dead is not None:
                dead.kill()  # waits for its last words
                raise ServerUnavailable(f"{dead.name} {ending(dead.status)} at its start:\n{dead.tail}")
            if self._clock.monotonic() > deadline:
                silent = "\n".join(f"{process.name}: {process.tail}" for process in self.processes)
                raise ServerUnavailable(f"the stack is not ready after {READY_MAX_S:.0f} s. What it said last:\n{silent}")
            self._clock.sleep(POLL_S)

    def _ready(self, before: set[str]) -> bool:
        with self.store.transaction(readonly=True) as tx:
            # A child of prefork is called node/pid.
            present = {row.identity.node.partition("/")[0] for row in workers.list_workers(tx) if row.identity.worker_id not in before}
            lease = health.lease(tx, "beat")
        beating = not self.plan.beat or (lease is not None and lease.left_s > 0)
        return beating and {self.node(n) for n in range(1, self.plan.workers + 1)} <= present


def _done_by_child(act: Callable[[], None]) -> bool:
    child = multiprocessing.get_context("fork").Process(target=act)
    child.start()
    child.join()
    return child.exitcode == 0


def ending(status: int | None) -> str:
    """How a process ended, in words."""
    if status is None:
        return "runs"
    if status < 0:
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
    return f"ended with status {status}"
