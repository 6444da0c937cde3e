"""Real worker and beat processes on one broker and one database; law: whatever a site starts has ended when it closes.

A `Shop` runs the tasks of an existing Celery application, a `DoomedSite` workflows whose workers are to die.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen

import redis
from celery import Celery

from orchestrator.client import Client
from orchestrator.clock import SYSTEM
from orchestrator.handle import WorkflowHandle
from orchestrator.servers import Valkey, free_ports
from orchestrator.settings import load
from orchestrator.store import Store, control, workers
from schemas.runs import DeadLetter, WorkerRow
from tests.e2e import doomed
from tests.laws import check_laws

ROOT = Path(__file__).resolve().parents[2]
READY_MAX_S = 25.0
WAIT_MAX_S = 20.0
BROKER_DATABASES = itertools.count(2)  # 0 and 1 belong to whoever else shares the server

POOLS = {"fleet": ["-c", "4"], "threads": ["-P", "threads", "-c", "4"], "solo": ["-P", "solo"], "prefork": ["-P", "processes", "-c", "2"]}
numbers = itertools.count(1)


def wait_until(happened: Callable[[], Any], what: str, max_s: float = WAIT_MAX_S) -> Any:
    deadline = SYSTEM.monotonic() + max_s
    while True:
        value = happened()
        if value:
            return value
        assert SYSTEM.monotonic() < deadline, f"not within {max_s} s: {what}"
        SYSTEM.sleep(0.02)


class Program:
    """One process of Celery's."""

    def __init__(self, argv: list[str], environment: dict[str, str], log: Path) -> None:
        self.log = log
        self.out = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "tests.e2e.tasks_app", *argv],
            cwd=ROOT,
            env=environment,
            stdout=self.out,
            stderr=self.out,
        )

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def signal(self, which: signal.Signals) -> None:
        self.process.send_signal(which)

    def stop(self, max_s: float = WAIT_MAX_S) -> int:
        self.signal(signal.SIGTERM)
        return self.process.wait(max_s)

    def kill(self) -> None:
        """As a crash does; children of prefork follow their parent."""
        if self.alive:
            self.process.kill()
        self.process.wait()
        self.out.close()


class Worker(Program):
    """A worker process, ready."""

    def __init__(self, node: str, argv: list[str], environment: dict[str, str], log: Path) -> None:
        self.node = node
        self.skip = len(log.read_bytes()) if log.exists() else 0
        super().__init__(argv, environment, log)

    @property
    def ready(self) -> bool:
        return b" ready." in self.log.read_bytes()[self.skip :]


@dataclass(frozen=True)
class Flower:
    """Flower's pages and its API."""

    port: int
    program: Program

    def page(self, path: str) -> str:
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=WAIT_MAX_S) as answer:
            return str(answer.read().decode())

    def json(self, path: str) -> dict[str, Any]:
        return dict(json.loads(self.page(path)))

    def answers(self) -> bool:
        assert self.program.alive, self.program.text
        try:
            return "OK" in self.page("/healthcheck")
        except OSError:
            return False


class Site:
    """A database, a broker and the processes on them."""

    include = ""  # what its processes import

    def __init__(self, folder: Path, database: str, broker: str, **settings: object) -> None:
        self.home, self.broker_url = folder, broker
        (folder / "gates").mkdir()
        (folder / "notes").touch()
        values = {"home": folder, "database_url": database, "broker_url": broker, "default_queue": f"shop-{SYSTEM.fresh_id()[-8:]}"}
        quick = {"neighbours_s": 0.3, "poll_s": 0.5, "tick_s": 0.1, "heartbeat_flush_s": 0.1}
        self.settings = load({}, **{**values, **quick, **settings})
        self.environment = {**os.environ, **self._variables({"include": self.include, **values, **quick, **settings})}
        self.store = Store.open(database)
        self.store.upgrade()
        self.client = Client(settings=self.settings, store=self.store)
        self.programs: list[Program] = []

    def _variables(self, values: dict[str, object]) -> dict[str, str]:
        return {f"ORCHESTRATOR_{name.upper()}": str(value) for name, value in values.items()}

    def worker(
        self,
        pool: str = "fleet",
        *options: str,
        node: str = "",
        queues: str = "",
        wait: bool = True,
        doom: str = "",
        **settings: object,
    ) -> Worker:
        """A worker process; with `doom`, one that exits at that crash point."""
        node = node or f"e{next(numbers)}-{os.getpid()}@test"
        argv = ["worker", "-n", node, "-Q", queues or f"{self.settings.default_queue},own,routed", "-l", "info"]
        argv += [*POOLS[pool], *options, "--without-mingle", "--without-gossip"]
        environment = {**self.environment, **self._variables(settings), "DOOM": doom}
        worker = Worker(node, argv, environment, self.home / f"{node}.log")
        self.programs.append(worker)
        if wait and not doom:
            self.await_ready(worker)
        return worker

    def await_ready(self, worker: Worker) -> None:
        wait_until(lambda: worker.ready or not worker.alive, "the worker is ready", READY_MAX_S)
        assert worker.alive, worker.text

    def beat(self) -> Program:
        return self._program("beat", "-l", "info", "-s", str(self.home / "beat"))

    def flower(self, *, options: tuple[str, ...] = (), **environment: str) -> Flower:
        """Celery's dashboard, once it answers."""
        (port,) = free_ports(1)
        environment = {"FLOWER_UNAUTHENTICATED_API": "true", **environment}
        flower = Flower(port, self._program("flower", "--address=127.0.0.1", f"--port={port}", *options, **environment))
        wait_until(flower.answers, "flower answers", READY_MAX_S)
        return flower

    def _program(self, name: str, *options: str, **environment: str) -> Program:
        log = self.home / f"{name}-{next(numbers)}.log"
        program = Program([name, *options], {**self.environment, **environment}, log)
        self.programs.append(program)
        return program

    def notes(self, *words: str) -> list[str]:
        """The lines that have all these words."""
        return [line for line in (self.home / "notes").read_text().splitlines() if all(word in line.split() for word in words)]

    def await_note(self, *words: str, count: int = 1) -> list[str]:
        noted: list[str] = wait_until(lambda: len(self.notes(*words)) >= count and self.notes(*words), f"the note {words}")
        return noted

    def workers(self) -> list[WorkerRow]:
        with self.store.transaction(readonly=True) as tx:
            return workers.list_workers(tx)

    def dead_letters(self) -> list[DeadLetter]:
        with self.store.transaction(readonly=True) as tx:
            return control.dead_letters(tx)

    def close(self) -> None:
        for program in self.programs:
            if program.alive:
                program.signal(signal.SIGCONT)  # one that was stopped dies as well, but its children need not
            program.kill()
        self.client.close()
        self.store.dispose()


class Shop(Site):
    """Workers of `tests.e2e.tasks_app`: plain Celery tasks that workflows call."""

    pool = ""  # what a test module has chosen for its workers

    def start(self, task: str, *args: object, **options: object) -> WorkflowHandle[Any]:
        """A run that calls one activity by name."""
        return self.client.start_workflow("call", args=[task, list(args), options])

    def call(self, task: str, *args: object, **options: object) -> Any:
        return self.start(task, *args, **options).result(timeout=WAIT_MAX_S)

    def open_gate(self, name: str) -> None:
        (self.home / "gates" / name).touch()


class DoomedSite(Site):
    """Workers of `tests.e2e.doomed`, some of which die; their traces are held against the laws."""

    include = "tests.e2e.doomed"

    def start(self, count: int, steps: int = 3) -> list[WorkflowHandle[Any]]:
        return [self.client.start_workflow(doomed.everything, steps, id=f"w-{number}") for number in range(count)]

    def counted(self, kind: str) -> list[tuple[str, ...]]:
        """What activities wrote down, without their attempt."""
        return [tuple(line.split()[:3]) for line in self.notes(kind)]

    def judge(self) -> None:
        check_laws(self.store)
        once = self.counted("once")
        assert len(set(once)) == len(once), f"an activity that may run once ran twice: {once}"


S = TypeVar("S", bound=Site)


@contextmanager
def site(kind: type[S], folder: Path, database: str, broker: str, **settings: object) -> Iterator[S]:
    opened = kind(folder, database, broker, **settings)
    try:
        yield opened
    finally:
        opened.close()
        for program in opened.programs:  # shown when the test fails
            print(f"--- {program.log.name}\n{program.text[-6000:]}")


def broker_of(valkey: Valkey) -> str:
    """A logical database of the server for one site; FLUSHDB harms nobody else."""
    return valkey.url.partition("?")[0] + f"?virtual_host={next(BROKER_DATABASES) % 16 or 2}"


def redis_of(url: str) -> redis.Redis:
    path, _, database = url.removeprefix("redis+socket://").partition("?virtual_host=")
    return redis.Redis(unix_socket_path=path, db=int(database))


def answering(asker: Celery) -> set[str]:
    """The nodes that answer a ping over a new connection; none while the broker that has just come back refuses the question."""
    try:
        with asker.connection_for_write() as line:
            return {node for answer in asker.control.ping(timeout=1, connection=line) or () for node in answer}
    except OSError:
        return set()
