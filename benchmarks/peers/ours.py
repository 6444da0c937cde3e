"""Ourselves, through the same adapter as everybody; law: default settings, the public client, worker processes started by `celery worker`."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from collections.abc import Sequence
from typing import Any

import psycopg

from benchmarks.ours_app import Collect, nap, parallel, sequential
from benchmarks.peers import PAYLOAD, Bulk, Env, Record
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
        store = Store.open(env.database_url)
        store.upgrade()
        store.dispose()
        self._client = Client(env.database_url, env.broker_url)
        self._eyes = psycopg.connect(env.database_url.replace("+psycopg", ""), autocommit=True)

    def start_workers(self, count: int) -> None:
        """Have `count` worker processes on the default queue."""
        if count == len(self.pool.processes):
            return
        self.pool.stop()
        variables = {
            "ORCHESTRATOR_HOME": str(self._env.folder / "home"),
            "ORCHESTRATOR_DATABASE_URL": self._env.database_url,
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
        """One call and one commit for each signal."""
        handle = self._client.start_workflow(Collect, count)
        began = time.perf_counter()
        for _ in range(count):
            handle.signal(Collect.item, PAYLOAD)
        self._expect(handle.result(timeout=RESULT_MAX_S), count)
        return time.perf_counter() - began

    def run_timers(self, count: int, seconds: float) -> list[float]:
        """Start all in one transaction."""
        handles = self._client.start_workflows([StartRequest(nap, args=[seconds]) for _ in range(count)])
        return [handle.result(timeout=RESULT_MAX_S) for handle in handles]

    def record(self) -> Record | None:
        """Count the runs and the events of all histories."""
        row = self._eyes.execute(
            "SELECT (SELECT count(*) FROM workflow_runs WHERE status = 'completed'),"
            " (SELECT count(*) FROM workflow_events WHERE kind = 'activity_completed')"
        ).fetchone()
        assert row is not None, "two counts are one row"
        return Record(workflows=row[0], steps=row[1])

    def versions(self) -> dict[str, str]:
        """Our own package, and what it stands on."""
        return {name: importlib.metadata.version(name) for name in ("orchestrator-fleet", "celery", "sqlalchemy", "psycopg", "redis")}

    def teardown(self) -> None:
        """End the workers and the client."""
        if hasattr(self, "pool"):
            self.pool.stop()
        if hasattr(self, "_eyes"):
            self._eyes.close()
            self._client.close()

    def _start(self, count: int, steps: int) -> Sequence[WorkflowHandle[Any]]:
        return self._client.start_workflows([StartRequest(sequential, args=[PAYLOAD, steps]) for _ in range(count)])

    def _expect(self, got: object, wanted: object) -> None:
        if got != wanted:
            raise PeerFailed(f"we gave {got!r}, expected {wanted!r}\n{self.pool.log_tail()}")


class OursSingle(Ours):
    """The same, with a commit and a call for each start, as independent requests would do it."""

    def _start(self, count: int, steps: int) -> Sequence[WorkflowHandle[Any]]:
        return [self._client.start_workflow(sequential, args=[PAYLOAD, steps]) for _ in range(count)]
