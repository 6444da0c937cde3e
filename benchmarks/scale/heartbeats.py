"""Many agents: what beat, the store and a host pay to know that all are alive."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import psutil
from celery import Celery
from kombu import Connection

from benchmarks.arena import Arena
from benchmarks.scale.figures import Figure, Findings, Probe
from benchmarks.scale.site import Site, opened
from orchestrator.fleet import Fleet
from orchestrator.settings import read_anew
from orchestrator.store import workers
from orchestrator.store.workers import WorkerIdentity
from schemas.agents import AgentSpec, Heartbeat

HOST = "host@benchmark"
LEASE_S = 86_400.0
LOOK_S = 45.0  # three intervals
BEATS = "SELECT count(*) FROM heartbeats"
ASLEEP = "SELECT (count(*) = 0)::int FROM runs WHERE ready"
METRICS: dict[str, float] = {"cpu_percent": 3.5, "memory_mb": 48.0, "queue_depth": 0, "flush_latency_ms": 12.5}
"""What a host has measured of each agent."""


def run(arena: Arena, agents: int, tell: Callable[[float], None]) -> Findings:
    """Beat asks, a host that only writes answers; an agent is known by its row, its supervising workflow sleeps."""
    with opened(arena, "heartbeats") as site:
        settings = read_anew(home=site.env.folder / "home", database_url=site.env.database_url, broker_url=site.env.broker_url)
        with Fleet(settings, store=site.store) as fleet:
            site.start("supervisors", "worker", "-Q", settings.fleet_queue)
            _enter(site, fleet, agents, tell)
            site.wait(ASLEEP, wanted=1)
            site.start("beat", "beat", "--pidfile", str(site.env.folder / "beat.pid"))
            with Host(fleet, site.env.broker_url):
                site.wait(BEATS, wanted=agents)  # all have been asked once
                empty_mib, beats = site.database_mib(), site.ask(BEATS)
                before_s = _own_cpu_s()
                shares = site.load(LOOK_S, settle_s=0.0)
                host = (_own_cpu_s() - before_s) / LOOK_S
                heard, grown_mib = site.ask(BEATS) - beats, site.database_mib() - empty_mib
                memory = site.memory_mib()
    return Findings(
        [
            Figure("heartbeats written", heard / LOOK_S, "1/s"),
            Figure("of those that were due", heard / (agents * LOOK_S / 15.0) * 100, "%"),
            Figure("CPU of beat", shares["beat"] * 100, "% of a core", max(2.0, 2.0 * agents / 1000)),
            Figure("CPU of the worker with the supervisors", shares["supervisors"] * 100, "% of a core"),
            Figure("CPU of PostgreSQL", shares["PostgreSQL"] * 100, "% of a core"),
            Figure("CPU of the host that writes them", host * 100, "% of a core"),
            Figure("memory of beat", memory["beat"], "MiB"),
            Figure("database for each heartbeat, until it is pruned", max(0.0, grown_mib) * 2**20 / max(1, heard), "bytes"),
        ]
    )


class Host:
    """Hears beat as any worker does, and writes a heartbeat for each agent that it names."""

    def __init__(self, fleet: Fleet, broker_url: str) -> None:
        self._fleet = fleet
        self._app = Celery("host", broker=broker_url, set_as_current=False)
        self._connection: Connection = self._app.connection()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._numbers: dict[str, int] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self._connection.release()
        self._app.close()

    def beat(self, _state: object, ids: Sequence[str], **_rest: object) -> None:
        """Heartbeats of these agents."""
        found = []
        for agent_id in ids:
            number = self._numbers[agent_id] = self._numbers.get(agent_id, 0) + 1
            found.append(Heartbeat(agent_id, 0.0, number, "running", (), {**METRICS}, {}))
        self._fleet.record_heartbeats(found)

    def _listen(self) -> None:
        handlers: Mapping[str, Any] = {"agent_heartbeat": self.beat, "agent_flush": lambda _state, **_rest: None}
        node = self._app.control.mailbox.Node(HOST, state=None, handlers=handlers, channel=self._connection.default_channel)
        with node.listen(callback=node.handle_message):
            while not self._over.is_set():
                try:
                    self._connection.drain_events(timeout=0.2)
                except TimeoutError:
                    continue


def _enter(site: Site, fleet: Fleet, agents: int, tell: Callable[[float], None]) -> None:
    """Bring so many agents into the fleet as their host would: they are there, they run."""
    with site.store.transaction() as tx:
        started_at = psutil.Process().create_time()
        workers.register(tx, WorkerIdentity(HOST, HOST, os.uname().nodename, "", os.getpid(), started_at, ("nowhere",), ""), LEASE_S)
    for number in range(agents):
        spec = AgentSpec(id=f"agent-{number}", type="echo")
        fleet.ready(spec, node=HOST, pid=os.getpid(), pid_started_at=started_at, capabilities={})
        if number % 100 == 0:
            tell(number / agents)


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


PROBE = Probe("heartbeats", "so many agents with a heartbeat each 15 s", full=10_000, quick=500, run=run)
