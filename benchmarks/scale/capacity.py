"""The model against the machine: costs of a step from one run, throughput with other numbers of worker processes, and what the model says."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psutil
from redis import Redis

from benchmarks.arena import Arena, Seat, tree_cpu_s
from benchmarks.scale.figures import Curve, Figure, Findings, Plot, Probe
from benchmarks.scale.model import Costs, Deployment, capacity, simulate
from benchmarks.scale.site import MIB
from orchestrator.store import Store

PROCESSES = (1, 2, 3, 4)
CALIBRATED = 2  # processes of the run that gives the costs
STEPS = 5
FLUSHES = 200
PAGE = b"\0" * 8192
BEYOND = (1, 2, 4, 8, 16, 32, 64, 128)
STORE_CORES = 8  # of a database on a machine of its own


@dataclass(frozen=True)
class Measured:
    """One run: throughput, and CPU by part."""

    steps_per_s: float
    cpu_s: dict[str, float]
    commits: int
    bytes_per_run: float
    messages: int


def run(arena: Arena, workflows: int, tell: Callable[[float], None]) -> Findings:
    """W2 with one to four worker processes, a fresh database each; what follows for machines that we do not have."""
    found: dict[int, Measured] = {}
    for number, processes in enumerate(PROCESSES):
        with arena.seat("ours") as seat:
            found[processes] = _measure(seat, workflows, processes)
            flush_s = _flush_s(seat.env.folder)
        tell((number + 1) / len(PROCESSES))
    steps = workflows * STEPS
    base = found[CALIBRATED]
    costs = Costs(
        worker_s=base.cpu_s["worker"] / steps,
        store_s=base.cpu_s["PostgreSQL"] / steps,
        client_s=base.cpu_s["client"] / steps,
        broker_s=base.cpu_s["Valkey"] / steps,
        batch=steps / base.commits,
        flush_s=flush_s,
    )
    cores = psutil.cpu_count() or 1
    here = {processes: simulate(costs, Deployment(processes, shared_cores=cores)) for processes in PROCESSES}
    apart = {n: simulate(costs, Deployment(n, STORE_CORES)) for n in BEYOND}
    halves = {n: simulate(costs, Deployment(n, STORE_CORES, shards=2)) for n in BEYOND}
    figures = [
        Figure("CPU of a worker for each step", costs.worker_s * 1000, "ms"),
        Figure("CPU of PostgreSQL for each step", costs.store_s * 1000, "ms"),
        Figure("CPU of the client for each step", costs.client_s * 1000, "ms"),
        Figure("CPU of Valkey for each step", costs.broker_s * 1000, "ms"),
        Figure("steps for each commit", costs.batch, ""),
        Figure("messages for all of these workflows together", base.messages, ""),
        Figure("a flush of the disk", costs.flush_s * 1000, "ms"),
        Figure("database for each workflow of five steps, with its history", base.bytes_per_run, "bytes"),
        *(Figure(f"measured, {n} worker processes", one.steps_per_s, "steps/s") for n, one in found.items()),
        *(Figure(f"model, {n} worker processes", here[n], "steps/s") for n in PROCESSES),
        *(Figure(f"model / measured, {n} worker processes", here[n] / one.steps_per_s, "", 1.5) for n, one in found.items()),
        Figure(f"model, a database of {STORE_CORES} cores: most", *_most(costs, Deployment(BEYOND[-1], STORE_CORES))),
        Figure(f"model, two of {STORE_CORES} cores: most", *_most(costs, Deployment(BEYOND[-1], STORE_CORES, shards=2))),
    ]
    plot = Plot(
        "Steps per second by worker processes",
        "worker processes",
        "steps/s",
        [
            Curve(f"measured here, all on {cores} cores", [(n, one.steps_per_s) for n, one in found.items()]),
            Curve(f"model, all on {cores} cores", list(here.items())),
            Curve(f"model, a core for each, a database of {STORE_CORES} cores", list(apart.items())),
            Curve("model, namespaces over two such databases", list(halves.items())),
        ],
    )
    return Findings(figures, [plot])


def _measure(seat: Seat, workflows: int, processes: int) -> Measured:
    seat.driver.start_workers(processes)
    seat.driver.run_bulk(50, STEPS)
    store = Store.open(seat.env.database_url)
    try:
        before, pushed, commits, size = _cpu_s(seat), _messages(seat), *_database(store)
        bulk = seat.driver.run_bulk(workflows, STEPS)
        after, commits_after, size_after = _cpu_s(seat), *_database(store)
    finally:
        store.dispose()
    used = {part: after[part] - before[part] for part in after}
    grown = (size_after - size) * MIB / workflows
    return Measured(workflows * STEPS / bulk.wall_s, used, commits_after - commits, grown, _messages(seat) - pushed)


def _cpu_s(seat: Seat) -> dict[str, float]:
    """The driver is the client; its children are the workers."""
    driver, *servers = seat.roots
    own = psutil.Process(driver).cpu_times()
    client_s = own.user + own.system
    names = ("Valkey", "PostgreSQL")
    return {
        "client": client_s,
        "worker": tree_cpu_s(driver) - client_s,
        **{n: tree_cpu_s(pid) for n, pid in zip(names, servers, strict=True)},
    }


def _messages(seat: Seat) -> int:
    """Messages that the broker has taken so far."""
    with Redis(unix_socket_path=urlsplit(seat.env.broker_url).path) as broker:
        told: dict[str, dict[str, int]] = broker.info("commandstats")
    return told.get("cmdstat_lpush", {}).get("calls", 0)


def _database(store: Store) -> tuple[int, float]:
    with store.transaction(readonly=True) as tx:
        commits, size = tx.run("SELECT xact_commit, pg_database_size(datname) FROM pg_stat_database WHERE datname = current_database()")[0]
    return int(commits), size / MIB


def _most(costs: Costs, deployment: Deployment) -> tuple[float, str]:
    most, part = capacity(costs, deployment)
    return most, f"steps/s ({part})"


def _flush_s(folder: Path) -> float:
    """Median of writing a page and waiting for the disk, as a commit does."""
    took = []
    with (folder / "flush").open("wb", buffering=0) as file:
        for _ in range(FLUSHES):
            began = time.perf_counter()
            file.write(PAGE)
            os.fdatasync(file.fileno())
            took.append(time.perf_counter() - began)
    return statistics.median(took)


PROBE = Probe(
    "capacity", "steps per second of one to four worker processes, so many workflows, and the model", full=8_000, quick=100, run=run
)
