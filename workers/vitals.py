"""Facts about processes and this machine; law: the only place that asks psutil, and nothing here waits."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil

from orchestrator.clock import SYSTEM, Clock
from orchestrator.core.fencing import START_TOLERANCE_S, Process
from schemas.messages import Resources, WorkResources
from schemas.runs import WorkerIdentity, WorkerRow

MEBI = 1024.0 * 1024.0


def identity(*, worker_id: str, node: str, queues: tuple[str, ...], build: str) -> WorkerIdentity:
    """Who this process is."""
    return WorkerIdentity(
        worker_id=worker_id,
        node=node,
        host=socket.gethostname(),
        boot_id=boot_id(),
        pid=os.getpid(),
        pid_started_at=psutil.Process().create_time(),
        queues=queues,
        build=build,
    )


def process_lives(row: WorkerRow) -> bool:
    """Whether the process of a worker of this host is still the one that registered: a number may have been given to another since."""
    try:
        process = psutil.Process(row.identity.pid)
        same = abs(process.create_time() - row.identity.pid_started_at) < START_TOLERANCE_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True  # it is there, and somebody else's: not provably gone


def process_started_at(pid: int) -> float | None:
    """When a process of this host began, by the kernel; with it a number names one process for ever. None if there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


@lru_cache(maxsize=1)
def boot_id() -> str:
    """This boot of this machine, and this container: process numbers mean nothing outside."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - the link has no path as its target
    except OSError:
        return f"{psutil.boot_time():.0f}"
    return f"{boot} {space}"


class Meter:
    """The vital signs of this machine and of one process; CPU is the mean since the last reading, or since it was made."""

    def __init__(self, pid: int | None = None, *, clock: Clock = SYSTEM) -> None:
        self._process = psutil.Process(pid)
        self._clock = clock
        psutil.cpu_percent(None)  # the first call has nothing to compare with

    def read(self) -> Resources:
        """All but the graphics memory, which is not ours to ask."""
        memory = psutil.virtual_memory()
        return Resources(
            cpu_percent=psutil.cpu_percent(None),
            memory_percent=memory.percent,
            free_mem_mb=memory.available / MEBI,
            load=psutil.getloadavg()[0] / (psutil.cpu_count() or 1),
            rss_mb=self._rss_mb(),
        )

    def begin(self) -> Cost:
        """Measure from now on what something costs."""
        return Cost(self._clock.monotonic(), self._cpu_s())

    def end(self, cost: Cost) -> WorkResources:
        """What it cost. The process may have done other things meanwhile; what it had done alone, nobody can tell."""
        elapsed_s = max(self._clock.monotonic() - cost.began_at, 0.0)
        used_s = max(self._cpu_s() - cost.cpu_s, 0.0)
        return WorkResources(
            cpu_percent=min(100.0 * used_s / elapsed_s, 100.0 * (psutil.cpu_count() or 1)) if elapsed_s else 0.0,
            memory_percent=self._process.memory_percent(),
            rss_mb=self._rss_mb(),
            duration_ms=elapsed_s * 1000.0,
        )

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def _rss_mb(self) -> float:
        try:
            return self._process.memory_info().rss / MEBI
        except psutil.NoSuchProcess:
            return 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """A measurement that has begun."""

    began_at: float
    cpu_s: float


def this_process(node: str) -> Process:
    """This process as the worker `node`: the same one for ever, also after it has become another program."""
    return Process(node, os.getpid(), float(psutil.Process().create_time()))
