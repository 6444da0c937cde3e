"""How many steps a second a deployment carries: bounds, and a simulation of them; law: costs are measured, the rest follows.

Workers, the database and its disk are the stations of a closed queueing network: each worker process has a few batches in hand, and each batch
visits a core of the workers' machine, a core of the database and its disk, where all that wait are served by one flush (group commit).
`capacity` gives the asymptotic bounds of such a network (Denning and Buzen, "The Operational Analysis of Queueing Network Models", 1978),
`simulate` plays it out.
"""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Costs:
    """What one step costs, in seconds of CPU, when `batch` steps are committed together; `flush_s` is one flush of the disk."""

    worker_s: float
    store_s: float
    client_s: float
    broker_s: float
    batch: float
    flush_s: float


@dataclass(frozen=True)
class Deployment:
    """Who works. With `shared_cores` all of them share one machine; else each worker process has a core, and the database `store_cores`."""

    workers: int
    store_cores: int = 1
    shared_cores: int | None = None
    in_hand: int = 2  # batches of a worker process: one that runs and one that waits for its commit
    shards: int = 1  # databases, each with its namespaces and its cores


def bounds(costs: Costs, deployment: Deployment) -> dict[str, float]:
    """What each part carries by itself, in steps per second."""
    found = {
        "worker processes": deployment.workers / costs.worker_s,
        "database": deployment.shards * deployment.store_cores / costs.store_s,
        # Group commit: whatever waits when a flush ends goes with the next one.
        "disk": deployment.shards * deployment.workers * deployment.in_hand * costs.batch / costs.flush_s,
    }
    if deployment.shared_cores is not None:
        everything = costs.worker_s + costs.store_s + costs.client_s + costs.broker_s
        found["cores of the one machine"] = deployment.shared_cores / everything
        found["database"] = deployment.shared_cores / costs.store_s
    return found


def capacity(costs: Costs, deployment: Deployment) -> tuple[float, str]:
    """Steps per second, and the part that lets no more through."""
    part, most = min(bounds(costs, deployment).items(), key=lambda item: item[1])
    return most, part


@dataclass
class Station:
    """Serves at most `servers` batches at once, first come first served; `group` serves all that wait as one."""

    servers: int
    group: bool = False
    queue: deque[tuple[float, Callable[[], None]]] = field(default_factory=deque)
    busy: int = 0


class Network:
    """Stations and a clock."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._chance = random.Random(seed)  # noqa: S311 - a simulation, to be repeated

    def visit(self, station: Station, mean_s: float, then: Callable[[], None]) -> None:
        """Wait for a server, be served (a time around the mean), go on."""
        station.queue.append((mean_s * self._chance.uniform(0.5, 1.5), then))
        self._serve(station)

    def run(self, until_s: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until_s:
            self.now, _, act = heapq.heappop(self._events)
            act()

    def _serve(self, station: Station) -> None:
        while station.queue and station.busy < station.servers:
            station.busy += 1
            served = [station.queue.popleft()]
            if station.group:
                served += station.queue
                station.queue.clear()
            self._number += 1
            heapq.heappush(self._events, (self.now + served[0][0], self._number, lambda done=served: self._done(station, done)))

    def _done(self, station: Station, served: list[tuple[float, Callable[[], None]]]) -> None:
        station.busy -= 1
        for _, then in served:
            then()
        self._serve(station)


def simulate(costs: Costs, deployment: Deployment, *, seconds: float = 20.0, seed: int = 1) -> float:
    """Steps per second of the network, once it has run in."""
    network = Network(seed)
    tally = _Tally(after_s=seconds / 4)
    machine = Station(deployment.shared_cores) if deployment.shared_cores else None
    databases = [(machine or Station(deployment.store_cores), Station(1, group=True)) for _ in range(deployment.shards)]
    for number in range(deployment.workers):
        worker = _Worker(network, costs, machine, *databases[number % deployment.shards], tally)
        for _ in range(deployment.in_hand):
            worker.turn()
    network.run(seconds)
    return tally.steps / (seconds - tally.after_s)


@dataclass
class _Tally:
    """Steps that were committed after the network had run in."""

    after_s: float
    steps: float = 0.0


@dataclass
class _Worker:
    """A process whose interpreter runs one batch at a time, while its other batches are at the database."""

    network: Network
    costs: Costs
    machine: Station | None  # that it shares with all others; None: it has a core of its own
    store: Station
    disk: Station
    tally: _Tally
    interpreter: Station = field(default_factory=lambda: Station(1))
    waiting: int = 0
    turning: bool = False

    def turn(self) -> None:
        """Take a batch through its turn, when the one before has left the interpreter."""
        if self.turning:
            self.waiting += 1
            return
        self.turning = True
        self.network.visit(self.machine or self.interpreter, self.costs.batch * self.costs.worker_s, self.commit)

    def commit(self) -> None:
        """Give the batch to the database, and begin with the next one."""
        self.turning = False
        self.network.visit(self.store, self.costs.batch * self.costs.store_s, self.flush)
        if self.waiting:
            self.waiting -= 1
            self.turn()

    def flush(self) -> None:
        """Wait for the disk."""
        self.network.visit(self.disk, self.costs.flush_s, self.tell)

    def tell(self) -> None:
        """Count the batch, let client and broker have their share of the machine, take the next batch."""
        if self.network.now > self.tally.after_s:
            self.tally.steps += self.costs.batch
        if self.machine is not None:
            self.network.visit(self.machine, self.costs.batch * (self.costs.client_s + self.costs.broker_s), self.turn)
        else:
            self.turn()
