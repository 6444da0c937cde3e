"""Ourselves, through the same adapter as everybody; law: default settings, the public client, worker processes started by `celery worker`."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.ours_app import Collect, nap, parallel, parallel_tasks, sequential
from benchmarks.peers import PAYLOAD, SENDERS, Bulk, Env, Record
from benchmarks.processes import PeerFailed, Pool
from orchestrator.client import Client, StartRequest, WorkflowHandle
from orchestrator.store import Store

RESULT_MAX_S = 300.0


class Ours:
    """Worker processes with our own pool; many workflows are started with the client's call for many."""

    in_process: frozenset[str] = frozenset()
    cannot: frozenset[str] = frozenset()
    pool: Pool

    def setup(self, env: Env) -> None:
        """Migrate the database and open a client."""
        self._env = env
        self.pool = Pool(env)
        self._url = self._database(env)
        self._store = Store.open(self._url)
        self._store.upgrade()
        self._client = Client(self._url, env.broker_url)

    def start_workers(self, count: int) -> None:
        """Have `count` worker processes on the default queue."""
        if count == len(self.pool.processes):
            return
        self.pool.stop()
        variables = {
            "ORCHESTRATOR_HOME": str(self._env.folder / "home"),
            "ORCHESTRATOR_DATABASE_URL": self._url,
            "ORCHESTRATOR_BROKER_URL": self._env.broker_url,
        }
        for number in range(count):
            argv = (sys.executable, "-m", "celery", "-A", "benchmarks.ours_app", "worker", "-n", f"worker-{number}@%h", "-l", "warning")
            self.pool.spawn(argv, variables)
        if count:
            self.pool.await_pong(self._env.broker_url, count)

    def run_sequential(self, count: int, steps: int) -> list[float]:
        """Start a workflow, await its result, start the next."""
        latencies = []
        for _ in range(count):
            began = time.perf_counter()
            handle = self._client.start_workflow(sequential, args=[PAYLOAD, steps])
            self._expect(handle.result(timeout=RESULT_MAX_S), PAYLOAD)
            latencies.append(time.perf_counter() - began)
        return latencies

    def run_bulk(self, count: int, steps: int) -> Bulk:
        """Start all, then await the result of each."""
        began = time.perf_counter()
        handles = self._start(count, steps)
        started = time.perf_counter()
        for handle in handles:
            self._expect(handle.result(timeout=RESULT_MAX_S), PAYLOAD)
        return Bulk(wall_s=time.perf_counter() - began, started_s=started - began)

    def run_parallel(self, steps: int) -> float:
        """Gather activities in one workflow."""
        began = time.perf_counter()
        handle = self._client.start_workflow(parallel, args=[PAYLOAD, steps])
        self._expect(handle.result(timeout=RESULT_MAX_S), steps)
        return time.perf_counter() - began

    def run_signals(self, count: int) -> float:
        """One call for each signal, from many threads as a service has them; those that meet share a commit."""
        handle = self._client.start_workflow(Collect, count)
        began = time.perf_counter()
        with ThreadPoolExecutor(SENDERS) as senders:
            for sent in [senders.submit(handle.signal, Collect.item, PAYLOAD) for _ in range(count)]:
                sent.result()
        self._expect(handle.result(timeout=RESULT_MAX_S), count)
        return time.perf_counter() - began

    def run_timers(self, count: int, seconds: float) -> list[float]:
        """Start all in one transaction."""
        handles = self._client.start_workflows([StartRequest(nap, args=[seconds]) for _ in range(count)])
        return [handle.result(timeout=RESULT_MAX_S) for handle in handles]

    def record(self) -> Record | None:
        """Count the runs and the events of all histories."""
        with self._store.transaction(readonly=True) as tx:
            ((workflows, steps),) = tx.run(
                "SELECT (SELECT count(*) FROM workflow_runs WHERE status = 'completed'),"
                " (SELECT count(*) FROM workflow_events WHERE kind = 'activity_completed')"
            )
        return Record(workflows=workflows, steps=steps)

    def in_flight(self, pid: int) -> int | None:
        """Attempts that this worker has begun, by the store, and whose result is not in it."""
        with self._store.transaction(readonly=True) as tx:
            ((count,),) = tx.run(
                "SELECT count(*) FROM activities a JOIN workers w ON w.worker_id = a.worker WHERE a.state = 'started' AND w.pid = :pid",
                pid=pid,
            )
        return int(count)

    def versions(self) -> dict[str, str]:
        """Our own package, and what it stands on."""
        return {name: importlib.metadata.version(name) for name in ("orchestrator-fleet", "celery", "sqlalchemy", "psycopg", "redis")}

    def teardown(self) -> None:
        """End the workers and the client."""
        if hasattr(self, "pool"):
            self.pool.stop()
        if hasattr(self, "_client"):
            self._client.close()
            self._store.dispose()

    def _database(self, env: Env) -> str:
        return env.database_url

    def _start(self, count: int, steps: int) -> Sequence[WorkflowHandle[Any]]:
        return self._client.start_workflows([StartRequest(sequential, args=[PAYLOAD, steps]) for _ in range(count)])

    def _expect(self, got: object, wanted: object) -> None:
        if got != wanted:
            raise PeerFailed(f"we gave {got!r}, expected {wanted!r}\n{self.pool.log_tail()}")


class OursSingle(Ours):
    """The same, with a commit and a call for each start, as independent requests would do it."""

    def _start(self, count: int, steps: int) -> Sequence[WorkflowHandle[Any]]:
        return [self._client.start_workflow(sequential, args=[PAYLOAD, steps]) for _ in range(count)]


class OursSqlite(Ours):
    """The same on a SQLite file, as a newcomer has it."""

    def _database(self, env: Env) -> str:
        return f"sqlite:///{env.folder / 'ours.db'}"


class OursSent(Ours):
    """Activities that are Celery tasks: each is a message to whoever takes it, as in a chord."""

    cannot: frozenset[str] = frozenset({"W1", "W2", "W4", "W5", "W6", "W7"})

    def run_parallel(self, steps: int) -> float:
        """Gather tasks in one workflow."""
        began = time.perf_counter()
        handle = self._client.start_workflow(parallel_tasks, args=[PAYLOAD, steps])
        self._expect(handle.result(timeout=RESULT_MAX_S), steps)
        return time.perf_counter() - began
