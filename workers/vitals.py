"""Facts about processes and this machine; law: the only place that asks psutil."""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path

import psutil

from schemas.runs import WorkerIdentity, WorkerRow

START_TOLERANCE_S = 1.0  # the kernel's start times are rounded


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
