"""W8: many runs that sleep: what they cost while they do, and how long a worker takes to be of use beside them."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.arena import Arena
from benchmarks.ours_app import nap, sequential
from benchmarks.peers import PAYLOAD
from benchmarks.scale.figures import Figure, Findings, Probe
from benchmarks.scale.site import MIB, Site, opened
from orchestrator.client import Client, StartRequest

DAY_S = 86_400.0
BATCH = 1_000
LOOK_S = 60.0
SETTLED_S = 60.0  # after what came before: vacuum, statistics, connections that are closed again
RESULT_MAX_S = 60.0
ASLEEP = "SELECT count(*) FROM timers"


def run(arena: Arena, sleepers: int, tell: Callable[[float], None]) -> Findings:
    """Two workers and beat, first alone, then with so many sleepers, then anew."""
    with opened(arena, "sleepers") as site, Client(site.env.database_url, site.env.broker_url) as client:
        _start(site)
        alone, small, empty_mib = site.load(LOOK_S, settle_s=SETTLED_S), site.memory_mib(), site.database_mib()
        began = time.perf_counter()
        for first in range(0, sleepers, BATCH):
            client.start_workflows([StartRequest(nap, args=[DAY_S])] * min(BATCH, sleepers - first))
            tell(first / sleepers)
        site.wait(ASLEEP, wanted=sleepers)
        asleep_s = time.perf_counter() - began
        beside, large, full_mib = site.load(LOOK_S, settle_s=SETTLED_S), site.memory_mib(), site.database_mib()
        latency_ms = min(_latency_ms(client) for _ in range(20))
        site.stop("worker")
        site.stop("beat")
        began = time.perf_counter()
        _start(site)
        _latency_ms(client)
        fresh_s = time.perf_counter() - began
    per_run = [("database", full_mib - empty_mib), ("memory of the workers", large["worker"] - small["worker"])]
    added = sum(beside.values()) - sum(alone.values())
    return Findings(
        [
            Figure("runs put to sleep", sleepers / asleep_s, "1/s"),
            Figure("CPU of two workers, beat and servers without sleepers", sum(alone.values()) * 100, "% of a core"),
            Figure("CPU that the sleepers add", max(0.0, added) * 100, "% of a core", 0.5),
            *(Figure(f"{name} for each sleeper", mib * MIB / sleepers, "bytes") for name, mib in per_run),
            Figure("memory of two workers", large["worker"], "MiB"),
            Figure("start to result of one step beside them", latency_ms, "ms"),
            Figure("from starting two workers and beat to the first result", fresh_s, "s"),
        ],
        notes=["CPU by part beside the sleepers, in % of a core: " + ", ".join(f"{name} {share:.2%}" for name, share in beside.items())],
    )


def _start(site: Site) -> None:
    site.start("beat", "beat", "--pidfile", str(site.env.folder / "beat.pid"))
    site.start("worker", "worker", count=2)


def _latency_ms(client: Client) -> float:
    began = time.perf_counter()
    client.start_workflow(sequential, args=[PAYLOAD, 1]).result(timeout=RESULT_MAX_S)
    return (time.perf_counter() - began) * 1000


PROBE = Probe("sleepers", "W8: so many runs that sleep for a day", full=100_000, quick=2_000, run=run)
