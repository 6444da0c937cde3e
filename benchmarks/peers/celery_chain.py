"""The peer "Celery": a chain of tasks, results in Valkey, prefork; law: not durable, it shows what people replace and what a message costs."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from typing import Any

from celery import chain, chord

from benchmarks.peers import PAYLOAD, Bulk, Env, Record
from benchmarks.peers.celery_app import BROKER_VARIABLE, RESULTS_VARIABLE, app, collect, noop, tardiness
from benchmarks.processes import PeerFailed, Pool

RESULT_MAX_S = 300.0


class CeleryChain:
    """One prefork worker with as many children as workers are asked for."""

    in_process: frozenset[str] = frozenset()
    cannot = frozenset({"W5", "W7"})  # nothing waits for a signal, and what a killed worker has acknowledged is lost
    pool: Pool

    def setup(self, env: Env) -> None:
        """Point the client's application at the broker."""
        self._env = env
        self.pool = Pool(env)
        self._workers = 0
        app.conf.update(broker_url=env.broker_url, result_backend=env.results_url)

    def start_workers(self, count: int) -> None:
        """Have one worker with `count` children."""
        if count == self._workers:
            return
        self.pool.stop()
        self._workers = count
        if count:
            argv = (sys.executable, "-m", "celery", "-A", "benchmarks.peers.celery_app", "worker", "-P", "prefork", "-c", str(count))
            self.pool.spawn((*argv, "-l", "warning"), {BROKER_VARIABLE: self._env.broker_url, RESULTS_VARIABLE: self._env.results_url})
            self.pool.await_pong(self._env.broker_url, 1)

    def run_sequential(self, count: int, steps: int) -> list[float]:
        """Run chains one after the other."""
        latencies = []
        for _ in range(count):
            began = time.perf_counter()
            result = self._chain(steps).apply_async()
            self._expect(result.get(timeout=RESULT_MAX_S), PAYLOAD)
            latencies.append(time.perf_counter() - began)
        return latencies

    def run_bulk(self, count: int, steps: int) -> Bulk:
        """Send all chains, then wait for the last task of each."""
        began = time.perf_counter()
        results = [self._chain(steps).apply_async() for _ in range(count)]
        started = time.perf_counter()
        for result in results:
            self._expect(result.get(timeout=RESULT_MAX_S), PAYLOAD)
        return Bulk(wall_s=time.perf_counter() - began, started_s=started - began)

    def run_parallel(self, steps: int) -> float:
        """Run a chord."""
        began = time.perf_counter()
        result = chord([noop.s(PAYLOAD) for _ in range(steps)])(collect.s())
        self._expect(result.get(timeout=RESULT_MAX_S), steps)
        return time.perf_counter() - began

    def run_signals(self, count: int) -> float:
        """Not for Celery."""
        raise NotImplementedError

    def run_timers(self, count: int, seconds: float) -> list[float]:
        """Tasks with a countdown."""
        results = [tardiness.apply_async((time.time() + seconds,), countdown=seconds) for _ in range(count)]
        return [result.get(timeout=RESULT_MAX_S) for result in results]

    def record(self) -> Record | None:
        """Celery keeps results, no history."""
        return None

    def versions(self) -> dict[str, str]:
        """The client's and the worker's packages."""
        return {name: importlib.metadata.version(name) for name in ("celery", "kombu", "redis")}

    def teardown(self) -> None:
        """End the worker."""
        if hasattr(self, "pool"):
            self.pool.stop()
            app.close()

    @staticmethod
    def _chain(steps: int) -> Any:  # noqa: ANN401 - a chain of one is its only task
        # Built anew each time: a chain that was applied keeps the ids of its tasks, and `get` would answer with the results of before.
        return chain(noop.s(PAYLOAD), *(noop.s() for _ in range(steps - 1)))

    @staticmethod
    def _expect(got: object, wanted: object) -> None:
        if got != wanted:
            raise PeerFailed(f"Celery gave {got!r}, expected {wanted!r}")
