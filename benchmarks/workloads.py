"""What a workload is and how one measurement is taken; law: a figure counts only if effects and records agree that all work was done."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from benchmarks import effects
from benchmarks.arena import Seat, machine_cpu_s
from benchmarks.driver import Driver
from benchmarks.processes import PeerFailed

WORKERS = 2
WARM_UP = 10
"""Uncounted workflows before each measurement: enough to reach every worker, so that modules are loaded and connections open, as in any process that has been up for a second."""


@dataclass(frozen=True)
class Size:
    """How much of a workload: workflows, and steps in each."""

    workflows: int
    steps: int


@dataclass(frozen=True)
class Measured:
    """The figure of the workload, and how its parts spread if it has parts; in the workload's unit."""

    value: float
    p99: float | None = None
    in_flight: int | None = None  # attempts that a killed worker had begun


@dataclass(frozen=True)
class Workload:
    """One question to all peers."""

    name: str
    title: str
    unit: str
    more_is_better: bool
    full: Size
    quick: Size
    run: Callable[[Driver, Size], Measured]
    leaves_marks: bool = True  # each step is one; otherwise there are none, and what a peer returns is the proof
    kills: bool = False  # what a killed process has used cannot be told: no CPU figures


@dataclass(frozen=True)
class Sample:
    """One peer, one workload, one round."""

    peer: str
    workload: str
    round: int
    value: float
    p99: float | None
    cpu_ms_per_step: float | None
    steps: int
    executed: int  # more than `steps` means that some ran twice
    in_flight: int | None  # attempts that a killed worker had begun: as many may be executed twice
    foreign: float  # share of the machine's CPU that other programs used meanwhile, 0 to 1

    @property
    def repeated(self) -> float | None:
        """Steps that were executed more than once, as a share of what was in flight; None if that is not known."""
        return None if not self.in_flight else (self.executed - self.steps) / self.in_flight


def measure(seat: Seat, workload: Workload, size: Size, *, number: int) -> Sample:
    """Run the workload once, with as many workers as the peer wants for it. Raises PeerFailed if work is missing."""
    driver = seat.driver
    driver.start_workers(0 if workload.name in driver.in_process else WORKERS)
    driver.run_sequential(WARM_UP, 1)
    steps = size.workflows * size.steps
    marks, record, cpu_s = effects.count(seat.env.effects), driver.record(), seat.cpu_s()
    machine_s, began = machine_cpu_s(), time.perf_counter()
    measured = workload.run(driver, size)
    cpu_s, machine_s, wall_s = seat.cpu_s() - cpu_s, machine_cpu_s() - machine_s, time.perf_counter() - began
    executed = effects.count(seat.env.effects) - marks if workload.leaves_marks else steps
    if executed < steps:
        raise PeerFailed(f"{driver.name} executed {executed} of {steps} steps of {workload.name}.")
    after = driver.record()
    if record is not None and after is not None:
        done = (after.workflows - record.workflows, after.steps - record.steps)
        expected = (size.workflows, steps if workload.leaves_marks else done[1])
        if done != expected:
            raise PeerFailed(f"{driver.name} recorded {done} workflows and steps of {workload.name}, expected {expected}.")
    if workload.kills:  # the CPU time of who was killed is gone with them
        foreign, cpu_ms = 0.0, None
    else:
        foreign, cpu_ms = min(1.0, max(0.0, (machine_s - cpu_s) / (wall_s * (psutil.cpu_count() or 1)))), cpu_s / steps * 1000
    return Sample(driver.name, workload.name, number, measured.value, measured.p99, cpu_ms, steps, executed, measured.in_flight, foreign)


def milliseconds(latencies_s: Sequence[float]) -> Measured:
    """Median and 99th percentile, which is the smallest value that 99 % do not exceed."""
    ordered = sorted(latencies_s)
    return Measured(statistics.median(ordered) * 1000, ordered[math.ceil(len(ordered) * 0.99) - 1] * 1000)
