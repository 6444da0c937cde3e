"""What a peer must be able to do, and who the peers are; law: each peer runs with its fastest settings that a sane user would choose."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from benchmarks.processes import Pool

PAYLOAD = {"order": 4711, "customer": "Ada Lovelace", "note": "x" * 48}
"""What each step takes and gives back: about 100 bytes of JSON."""

SENDERS = 32
"""Threads that send signals at once (W5), for peers that are faster by it."""

PEERS = {
    "ours": "benchmarks.peers.ours:Ours",
    "ours-single": "benchmarks.peers.ours:OursSingle",
    "ours-sqlite": "benchmarks.peers.ours:OursSqlite",
    "ours-sent": "benchmarks.peers.ours:OursSent",
    "dbos": "benchmarks.peers.dbos_peer:Dbos",
    "celery": "benchmarks.peers.celery_chain:CeleryChain",
    "restate": "benchmarks.peers.restate_peer:Restate",
}
"""Name on the command line -> module and class."""

NEEDS = {"dbos": "dbos", "restate": "restate"}
"""Peer -> the package that it needs beyond our own dependencies."""


def restate_server() -> str | None:
    """The binary of Restate's server, if there is one."""
    return os.environ.get("RESTATE_SERVER") or shutil.which("restate-server")


@dataclass(frozen=True)
class Env:
    """Where a peer may work: all of it is private and fresh."""

    folder: Path  # for logs
    effects: Path  # where steps leave their marks, see `benchmarks.effects`
    database_url: str  # postgresql+psycopg://…, an empty database
    broker_url: str  # redis+socket://…, an empty Valkey
    results_url: str  # another database of the same Valkey


@dataclass(frozen=True)
class Bulk:
    """What many workflows took together, in seconds, from the first start to the last result."""

    wall_s: float
    started_s: float


@dataclass(frozen=True)
class Record:
    """What the peer's own records say it has done since its setup."""

    workflows: int
    steps: int


@dataclass(frozen=True)
class Killed:
    """How a run went during which a worker was killed: seconds from then to the end, and the attempts that the worker had begun, if that can be told."""

    seconds: float
    in_flight: int | None


class Peer(Protocol):
    """One engine, driven from a process of its own. Each call blocks until it is done and raises when something was lost."""

    in_process: frozenset[str]
    """Workloads that this peer runs fastest in the client's own process, without workers."""

    cannot: frozenset[str]
    """Workloads that make no sense for this peer."""

    @property
    def pool(self) -> Pool:
        """Its worker processes."""
        ...

    def setup(self, env: Env) -> None:
        """Prepare the database and a client."""
        ...

    def start_workers(self, count: int) -> None:
        """Have exactly `count` worker processes, all of them ready."""
        ...

    def run_sequential(self, count: int, steps: int) -> list[float]:
        """Run `count` workflows one after the other; seconds from start to result, for each."""
        ...

    def run_bulk(self, count: int, steps: int) -> Bulk:
        """Start `count` workflows at once and wait for all results."""
        ...

    def run_parallel(self, steps: int) -> float:
        """Run one workflow of `steps` parallel steps; seconds from start to result."""
        ...

    def run_signals(self, count: int) -> float:
        """Start a run, send it `count` signals, a call each, wait until it has counted them; seconds from the first signal on."""
        ...

    def run_timers(self, count: int, seconds: float) -> list[float]:
        """Start `count` workflows at once that sleep for `seconds`; how many seconds too late each of them went on."""
        ...

    def record(self) -> Record | None:
        """What its own tables say; None if it keeps no such record."""
        ...

    def versions(self) -> dict[str, str]:
        """The packages that matter, and their versions."""
        ...

    def teardown(self) -> None:
        """End the workers and the client. Safe to call at any point, and twice."""
        ...
