"""The peer "DBOS" on PostgreSQL; law: in process where that is its fastest way, a queue with worker processes where work is spread."""

from __future__ import annotations

import asyncio
import importlib.metadata
import sys
import time

import psycopg
from dbos import DBOS

from benchmarks.peers import PAYLOAD, Bulk, Env, Record
from benchmarks.peers.dbos_app import DATABASE_VARIABLE, QUEUE, READY, TOPIC, collect, launch, nap, parallel, sequential
from benchmarks.processes import PeerFailed, Pool

RESULT_MAX_S = 300.0
LOOK_INTERVAL_S = 0.02
SLEEPERS_MAX = 1_000  # threads


class Dbos:
    """Workers poll a queue every 0.1 s, 20 workflows at a time each."""

    in_process = frozenset({"W1", "W3", "W4", "W5", "W6"})
    cannot: frozenset[str] = frozenset()
    pool: Pool

    def setup(self, env: Env) -> None:
        """Migrate the database and launch DBOS in this process, which takes nothing from the queue."""
        self._env = env
        self.pool = Pool(env)
        self._eyes = psycopg.connect(env.database_url.replace("+psycopg", ""), autocommit=True)
        launch(env.database_url, executor="client", listens=False, threads=SLEEPERS_MAX)

    def start_workers(self, count: int) -> None:
        """Have `count` processes that listen on the queue."""
        if count == len(self.pool.processes):
            return
        self.pool.stop()
        for number in range(count):
            argv = (sys.executable, "-m", "benchmarks.peers.dbos_app", f"worker-{number}")
            self.pool.spawn(argv, {DATABASE_VARIABLE: self._env.database_url}, ready_line=READY)

    def run_sequential(self, count: int, steps: int) -> list[float]:
        """Call the workflow in this process."""
        latencies = []
        for _ in range(count):
            began = time.perf_counter()
            self._expect(sequential(PAYLOAD, steps), PAYLOAD)
            latencies.append(time.perf_counter() - began)
        return latencies

    def run_bulk(self, count: int, steps: int) -> Bulk:
        """Enqueue all, then look at the table: cheaper for DBOS than a poll for each handle."""
        before = self._succeeded()
        began = time.perf_counter()
        handles = [DBOS.enqueue_workflow(QUEUE, sequential, PAYLOAD, steps) for _ in range(count)]
        started = time.perf_counter()
        while (done := self._succeeded() - before) < count:
            self.pool.check()
            if time.perf_counter() - began > RESULT_MAX_S:
                raise PeerFailed(f"DBOS completed {done} of {count} workflows in {RESULT_MAX_S:.0f} s.\n{self.pool.log_tail()}")
            time.sleep(LOOK_INTERVAL_S)
        wall_s = time.perf_counter() - began
        self._expect(handles[-1].get_result(), PAYLOAD)
        return Bulk(wall_s=wall_s, started_s=started - began)

    def run_parallel(self, steps: int) -> float:
        """Gather steps on an event loop in this process."""
        began = time.perf_counter()
        self._expect(asyncio.run(self._gather(steps)), steps)
        return time.perf_counter() - began

    def run_signals(self, count: int) -> float:
        """Send from this thread to a workflow on another one of this process."""
        handle = DBOS.start_workflow(collect, count)
        began = time.perf_counter()
        for _ in range(count):
            DBOS.send(handle.workflow_id, PAYLOAD, topic=TOPIC)
        self._expect(handle.get_result(), count)
        return time.perf_counter() - began

    def run_timers(self, count: int, seconds: float) -> list[float]:
        """A thread of this process for each: an event loop wakes them much later."""
        handles = [DBOS.start_workflow(nap, seconds) for _ in range(count)]
        return [handle.get_result() for handle in handles]

    def record(self) -> Record | None:
        """Count its tables."""
        row = self._eyes.execute("SELECT count(*) FROM dbos.operation_outputs").fetchone()
        assert row is not None, "a count is one row"
        return Record(workflows=self._succeeded(), steps=row[0])

    def versions(self) -> dict[str, str]:
        """Its own package, and what it talks to the database with."""
        return {name: importlib.metadata.version(name) for name in ("dbos", "sqlalchemy", "psycopg")}

    def teardown(self) -> None:
        """End the workers, then DBOS in this process."""
        if hasattr(self, "pool"):
            self.pool.stop()
            DBOS.destroy()
            self._eyes.close()

    @staticmethod
    async def _gather(steps: int) -> int:
        return await parallel(PAYLOAD, steps)

    def _succeeded(self) -> int:
        row = self._eyes.execute("SELECT count(*) FROM dbos.workflow_status WHERE status = 'SUCCESS'").fetchone()
        assert row is not None, "a count is one row"
        return int(row[0])

    @staticmethod
    def _expect(got: object, wanted: object) -> None:
        if got != wanted:
            raise PeerFailed(f"DBOS gave {got!r}, expected {wanted!r}")
