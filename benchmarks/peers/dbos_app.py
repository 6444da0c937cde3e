"""The application of the peer "DBOS", for its client and its workers; law: as its documentation writes an application, fastest sane settings.

As a program it is one worker process: it says `ready` and works until its input ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Any

from dbos import DBOS, DBOSConfig

from benchmarks import effects

DATABASE_VARIABLE = "BENCHMARK_DATABASE"
QUEUE = "benchmark"
VERSION = "benchmark"
READY = "ready"
TOPIC = "items"
RECV_MAX_S = 60.0
POLLING_INTERVAL_S = 0.1
WORKER_CONCURRENCY = 20


@DBOS.step()
def noop(payload: dict[str, Any]) -> dict[str, Any]:
    """One step."""
    effects.mark()
    return payload


@DBOS.step()
async def noop_async(payload: dict[str, Any]) -> dict[str, Any]:
    """One step on the event loop."""
    effects.mark()
    return payload


@DBOS.workflow()
def sequential(payload: dict[str, Any], steps: int) -> dict[str, Any]:
    """Steps one after the other."""
    for _ in range(steps):
        payload = noop(payload)
    return payload


@DBOS.workflow()
async def parallel(payload: dict[str, Any], steps: int) -> int:
    """Steps side by side."""
    return len(await asyncio.gather(*(noop_async(payload) for _ in range(steps))))


@DBOS.workflow()
def collect(wanted: int) -> int:
    """Wait for so many messages."""
    count = 0
    while count < wanted:
        count += DBOS.recv(TOPIC, timeout_seconds=RECV_MAX_S) is not None
    return count


@DBOS.workflow()
def nap(seconds: float) -> float:
    """Sleep, and say how many seconds too long."""
    began = time.time()
    DBOS.sleep(seconds)
    return time.time() - began - seconds


def launch(database_url: str, *, executor: str, listens: bool, threads: int | None = None) -> None:
    """Start DBOS in this process; only a process that listens takes workflows from the queue."""
    config: DBOSConfig = {
        "name": "benchmark",
        "system_database_url": database_url,
        "application_version": VERSION,
        "executor_id": executor,
        "log_level": "WARNING",
    }
    if threads is not None:
        config["max_executor_threads"] = threads
    DBOS(config=config)
    DBOS.listen_queues([QUEUE] if listens else [])
    DBOS.launch()
    DBOS.register_queue(QUEUE, worker_concurrency=WORKER_CONCURRENCY, polling_interval_sec=POLLING_INTERVAL_S)


def main() -> None:
    """Be a worker."""
    launch(os.environ[DATABASE_VARIABLE], executor=sys.argv[1], listens=True)
    print(READY, flush=True)
    sys.stdin.read()
    DBOS.destroy()


if __name__ == "__main__":
    main()
