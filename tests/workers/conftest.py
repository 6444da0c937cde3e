"""Worker processes and a pool of our own; law: whatever a test starts has ended when it ends."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app.trace import trace_task_ret
from celery.result import AsyncResult

from tests.workers import pool_app
from tests.workers.pool_app import WAIT_MAX_S, wait_until
from workers.pool import FleetPool

ROOT = Path(__file__).resolve().parents[2]
READY_MAX_S = 20.0
names = itertools.count(1)


@dataclass
class Worker:
    process: subprocess.Popen[bytes]
    node: str
    app: Celery
    log: Path

    def send(self, name: str, *args: object, **options: Any) -> AsyncResult[Any]:
        return self.app.send_task(name, args, **options)

    def control(self, command: str, **arguments: object) -> Any:
        # A connection of its own: what a test proves is that the worker reconnects, not that its caller does.
        with self.app.connection_for_write() as line:
            replies = self.app.control.broadcast(
                command, arguments=arguments, destination=[self.node], reply=True, timeout=5, connection=line
            )
        return replies[0][self.node] if replies else None

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(WAIT_MAX_S)


@pytest.fixture
def start_worker(tmp_path, valkey) -> Iterator[Callable[..., Worker]]:
    """Start a worker process on a broker of the given URL; it is killed at the end of the test."""
    with ExitStack() as stack:

        def start(broker: str, *options: str) -> Worker:
            return stack.enter_context(running_worker(broker, valkey.results_url, tmp_path, options))

        yield start


@contextmanager
def running_worker(broker: str, backend: str, folder: Path, options: tuple[str, ...]) -> Iterator[Worker]:
    node = f"w{next(names)}-{os.getpid()}@test"
    log = folder / f"{node}.log"
    queue = f"pool-{node}"
    environment = {**os.environ, "POOL_APP_BROKER": broker, "POOL_APP_BACKEND": backend, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "celery", "-A", "tests.workers.pool_app", "worker", "-n", node, "-Q", queue, "-l", "info", *options]
    with log.open("wb") as out:
        process = subprocess.Popen([*argv, "--without-mingle", "--without-gossip"], cwd=ROOT, env=environment, stdout=out, stderr=out)
    app = pool_app.make(broker, backend)
    app.conf.task_default_queue = queue
    worker = Worker(process, node, app, log)
    try:
        wait_until(lambda: b" ready." in log.read_bytes() or not worker.alive, "the worker is ready", READY_MAX_S)
        assert worker.alive, log.read_text()
        yield worker
    except BaseException:
        print(log.read_text())
        raise
    finally:
        process.kill()
        process.wait()
        app.close()


class Told:
    """What the pool told Celery about one task."""

    def __init__(self) -> None:
        self.job: Any = None
        self.task_id = ""
        self.accepted: list[Any] = []
        self.results: list[Any] = []
        self.errors: list[Any] = []
        self.timeouts: list[tuple[bool, float]] = []

    @property
    def over(self) -> bool:
        return bool(self.results or self.errors or [1 for soft, _ in self.timeouts if not soft])


class Pool(FleetPool):
    """A pool without a worker around it."""

    def run(self, name: str, *args: object, task_id: str | None = None, **options: Any) -> Told:
        told = Told()
        task_id = task_id or f"task-{next(names)}"
        request = {"id": task_id, "task": name, "delivery_info": {}, "lang": "py"}
        told.job = self.apply_async(
            trace_task_ret_of(self.app),
            (name, task_id, request, (args, {}, {}), None, None),
            accept_callback=lambda serial, when: told.accepted.append(serial),
            callback=told.results.append,
            error_callback=told.errors.append,
            timeout_callback=lambda soft, timeout: told.timeouts.append((soft, timeout)),
            **options,
        )
        told.task_id = task_id
        return told

    def ended(self, name: str, *args: object, **options: Any) -> Told:
        told = self.run(name, *args, **options)
        wait_until(lambda: told.over, f"{name} is over")
        return told


def trace_task_ret_of(app: Celery) -> Callable[..., Any]:
    return partial(trace_task_ret, app=app)


@pytest.fixture
def app() -> Iterator[Celery]:
    app = pool_app.make("memory://", "cache+memory://")
    app.finalize()
    pool_app.NOTES.clear()
    yield app
    app.close()


@pytest.fixture
def pool(app) -> Iterator[Pool]:
    pool = Pool(2, app=app)
    pool.start()
    yield pool
    pool.terminate()
    for gate in pool_app.GATES.values():
        gate.set()
