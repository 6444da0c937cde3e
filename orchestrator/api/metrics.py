"""What Prometheus reads; law: counts come from the store, so that every process of the API tells the same, and are taken at most every KEPT_S."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.clock import Clock
from orchestrator.store import Store, census
from orchestrator.store.census import Census

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
KEPT_S = 2.0


class Metrics(Collector):
    """The store as gauges."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._text = b""
        self._taken_at: float | None = None

    def text(self) -> bytes:
        """The exposition; raises DatabaseUnavailable."""
        with self._lock:
            now = self._clock.monotonic()
            if self._taken_at is None or now - self._taken_at > KEPT_S:
                registry = CollectorRegistry()
                registry.register(self)
                self._text = generate_latest(registry)
                self._taken_at = now
            return self._text

    def describe(self) -> Iterable[Metric]:
        """Nothing before it is asked for."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """One gauge a count."""
        with self._store.transaction(readonly=True) as tx:
            found = census.take(tx)
        yield from families(found)


def families(found: Census) -> Iterator[Metric]:
    """A census as metrics."""
    yield _by("orchestrator_runs", "runs of workflows by status", ("status",), _keyed(found.runs))
    yield _by("orchestrator_runs_stuck", "runs whose last turn could not be taken", (), {(): found.stuck})
    yield _by("orchestrator_queue_ready", "runs that wait for a worker", ("queue",), _keyed(found.ready))
    yield _by("orchestrator_activities", "unresolved activities", ("queue", "state"), found.activities)
    yield _by("orchestrator_workers", "workers that are alive", (), {(): found.workers})
    yield _by("orchestrator_dead_letters", "what was set aside", ("kind",), _keyed(found.dead_letters))
    yield _by("orchestrator_agents", "agents by state", ("type", "status"), found.agents)
    yield _by("orchestrator_works_open", "works that are accepted and not done", ("type",), _keyed(found.works_open))
    yield _by("orchestrator_works_done", "works that are done and still remembered", ("type", "status"), found.works_done)


def _keyed(counts: Mapping[str, int]) -> Mapping[tuple[str, ...], int]:
    return {(key,): count for key, count in counts.items()}


def _by(name: str, text: str, labels: tuple[str, ...], counts: Mapping[tuple[str, ...], int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, count in sorted(counts.items()):
        family.add_metric(list(key), count)
    return family
