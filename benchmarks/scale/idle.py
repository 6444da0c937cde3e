"""W8: what the development stack costs when nobody uses it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from benchmarks.arena import Arena, tree_cpu_s
from benchmarks.processes import PeerFailed
from benchmarks.scale.figures import Figure, Findings, Probe
from benchmarks.scale.site import MIB, SETTLE_S, pss, tree_pss

READY_MAX_S = 60.0
STOP_MAX_S = 60.0
PARTS = ("valkey-server", "flower", "beat", "worker", "api")


def run(arena: Arena, seconds: int, tell: Callable[[float], None]) -> Findings:
    """Start `orchestrator dev` as a newcomer does, and let it be."""
    with arena.place("idle") as place:
        began = time.perf_counter()
        stack, log = _start(place.env.folder)
        try:
            _await_ready(stack, log)
            ready_s = time.perf_counter() - began
            time.sleep(SETTLE_S)
            cpu_s = tree_cpu_s(stack.pid)
            for second in range(seconds):
                time.sleep(1)
                tell((second + 1) / seconds)
            share = (tree_cpu_s(stack.pid) - cpu_s) / seconds
            parts = {_part(process): pss(process) / MIB for process in psutil.Process(stack.pid).children(recursive=True)}
            memory = tree_pss(stack.pid) / MIB
        finally:
            stack.send_signal(signal.SIGTERM)
            stack.wait(STOP_MAX_S)
    figures = [
        Figure("from the command to ready", ready_s, "s"),
        Figure("CPU", share * 100, "% of a core", 3.0),
        Figure("memory", memory, "MiB", 400.0),
    ]
    listed = ", ".join(f"{name} {mib:.0f}" for name, mib in sorted(parts.items(), key=lambda item: -item[1]))
    return Findings(figures, notes=[f"memory by process, in MiB, what is shared divided among those who share it: {listed}"])


def _start(folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("ORCHESTRATOR_")}
    variables["ORCHESTRATOR_HOME"] = str(folder / "home")
    log = folder / "dev.log"
    with log.open("wb") as out:
        argv = (sys.executable, "-m", "orchestrator", "dev")
        return subprocess.Popen(argv, cwd=folder, env=variables, stdin=subprocess.DEVNULL, stdout=out, stderr=out), log


def _await_ready(stack: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_MAX_S
    while "ready: " not in log.read_text():
        if stack.poll() is not None or time.monotonic() > deadline:
            raise PeerFailed(f"orchestrator dev is not ready:\n{log.read_text()}")
        time.sleep(0.02)


def _part(process: psutil.Process) -> str:
    words = " ".join(process.cmdline()[:8])
    return next((part for part in PARTS if part in words), process.name())


PROBE = Probe("idle", "W8: `orchestrator dev` when nobody uses it, so many seconds", full=60, quick=5, run=run)
