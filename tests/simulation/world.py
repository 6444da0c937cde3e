"""A world in one thread: processes, time, faults and a scheduler; law: the seed decides everything, so a failing seed is a recording."""

from __future__ import annotations

import heapq
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import cast
from unittest.mock import patch

from orchestrator import crashpoints
from orchestrator.core.payloads import PayloadConverter
from orchestrator.store import Store, Transaction, hints
from schemas.runs import ActivityKey, PendingActivity
from schemas.settings import Settings
from tests.laws import Run
from tests.simulation.corpus_activities import MAIN_QUEUE, SIDE_QUEUE, TASK_QUEUE
from tests.simulation.faults import Faults, SimulatedCrash
from tests.simulation.fibers import Fiber
from tests.simulation.processes import BeatProcess, Process
from tests.simulation.twins import ProcessClock, ShakyStore, Wire
from workers.turns import Engine

BEGIN = 1_700_000_000.0
STEPS_MAX = 60_000
QUIET_MAX_S = 900.0  # after the faults have ended, all must be over within this
BEATS = 2


@lru_cache(maxsize=1)
def migrated() -> sqlite3.Connection:
    """An empty database with the newest schema, to copy from."""
    store = Store.open("sqlite://")
    store.upgrade()
    made = sqlite3.connect(":memory:", check_same_thread=False)
    with store.transaction(readonly=True):
        pass
    connection = store._engine.raw_connection()
    cast("sqlite3.Connection", connection.driver_connection).backup(made)
    connection.close()
    store.dispose()
    return made


@dataclass
class World:
    """Everything there is; `go` runs it."""

    seed: int
    faults: Faults
    settings: Settings
    aim: str = ""  # a crash point at which the first process that comes by dies, once, or `aim_hit`-th
    aim_hit: int = 1
    steady: float = 0.0
    jumped_s: float = 0.0
    trace: list[str] = field(default_factory=list)
    executions: Counter[ActivityKey] = field(default_factory=Counter)
    visited: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    naps: int = 0
    acknowledged: set[str] = field(default_factory=set)  # what callers were told to be stored
    runs: list[Run] = field(default_factory=list)  # as they are found at the end
    engines: list[Engine] = field(default_factory=list)  # of all lives of all processes
    aimed: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        random.seed(self.seed)  # tenacity's jitter
        self.converter = PayloadConverter()
        self._ids = 0
        self._ties = 0
        self._events: list[tuple[float, float, int, Callable[[], None]]] = []
        self._fibers: list[Fiber] = []
        self._fiber: Fiber | None = None
        self.actor: Process | None = None
        self._away_until = 0.0
        self.clock = ProcessClock(self)
        self.store = cast("ShakyStore", ShakyStore.open("sqlite://", clock=self.clock))
        self.store.world = self
        connection = self.store._engine.raw_connection()
        migrated().backup(cast("sqlite3.Connection", connection.driver_connection))
        connection.close()
        self.wire = Wire(self)
        self.workers = [
            Process(self, "w1", (MAIN_QUEUE, TASK_QUEUE)),
            Process(self, "w2", (MAIN_QUEUE, SIDE_QUEUE)),
            Process(self, "w3", (SIDE_QUEUE, TASK_QUEUE)),
        ]
        self.beats = [BeatProcess(self, f"beat{n}") for n in range(BEATS)]
        self._plan_faults()
        crashpoints.arm(self._at_crashpoint)
        self._hints = patch.object(hints, "wake", self.wire.hint)
        self._hints.start()

    # --- time and chance -----------------------------------------------------------------------------------------------------

    @property
    def wall(self) -> float:
        return BEGIN + self.steady + self.jumped_s

    @property
    def faulty(self) -> bool:
        return self.steady < self.faults.until_s

    def chance(self, rate: float) -> bool:
        return rate > 0 and self.faulty and self.random.random() < rate

    def fresh_id(self) -> str:
        self._ids += 1
        return f"id-{self._ids:06d}"

    def pass_time(self, seconds: float) -> None:
        self.steady += seconds

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        self._ties += 1
        # Events of the same moment come in random order.
        heapq.heappush(self._events, (self.steady + seconds, self.random.random(), self._ties, action))

    def note(self, text: str) -> None:
        self.trace.append(f"{self.steady:.4f} {text}")

    # --- the scheduler -------------------------------------------------------------------------------------------------------

    def go(self, done: Callable[[], bool], *, look_every_s: float = 1.0) -> None:
        """Run until `done()`, and until the faults have ended; raise if that takes for ever."""
        look_at = 0.0
        for _ in range(STEPS_MAX):
            if self.steady >= look_at and not self.faulty:
                if done():
                    return
                look_at = self.steady + look_every_s
            if self.steady > self.faults.until_s + QUIET_MAX_S:
                break
            at, _, _, action = heapq.heappop(self._events)
            self.steady = max(self.steady, at) + self.random.uniform(0.0, 0.0005)
            action()
        raise AssertionError(f"seed {self.seed}: nothing ends at {self.steady:.0f} s after {len(self.trace)} steps; {self.faults}")

    def end(self) -> None:
        """Unwind whatever still stands somewhere; nothing of it acts any more."""
        crashpoints.arm(None)
        self._hints.stop()
        for process in (*self.workers, *self.beats):
            process.alive = False
        for fiber in self._fibers:
            fiber.kill()
        for engine in self.engines:
            engine.close()
        self.store.dispose()

    @contextmanager
    def quietly(self) -> Iterator[Transaction]:
        """Look into the tables, unseen by faults."""
        before, self.actor = self.actor, None
        try:
            with self.store.transaction(readonly=True) as tx:
                yield tx
        finally:
            self.actor = before

    def perform(self, process: Process | None, body: Callable[[], None], *, divisible: bool) -> None:
        """Let a process do something; it may die of it, and if `divisible`, stop in its middle while others act."""
        if divisible:
            fiber = Fiber(body)
            self._fibers = [other for other in self._fibers if not other.done]
            self._fibers.append(fiber)
            if process is not None:
                process.fibers.append(fiber)
            self.resume(process, fiber)
        else:
            self._guarded(process, body)

    def resume(self, process: Process | None, fiber: Fiber) -> None:
        """Go on with a fiber of a process, if both still are."""
        if fiber.done or (process is not None and not process.alive):
            return
        if process is not None and process.frozen:
            self.after(process.frozen_until - self.steady, lambda: self.resume(process, fiber))
            return
        self._fiber = fiber
        self._guarded(process, lambda: cast("None", fiber.resume()))
        self._fiber = None

    def wait(self, seconds: float) -> None:
        """Inside a fiber: let others act for that long."""
        fiber, process = self._fiber, self.actor
        assert fiber is not None, "only fibers can wait"
        self.after(seconds, lambda: self.resume(process, fiber))
        fiber.pause()

    def between(self, what: str) -> None:
        """Between two transactions: perhaps this thread is not scheduled for a while."""
        if self._fiber is not None and self.actor is not None and self.chance(self.faults.stall):
            seconds = self.random.choice((0.001, 0.05, 2.0))
            self.note(f"{self.actor.name} stalls {seconds} at {what}")
            self.wait(seconds)

    def crash(self, process: Process, why: str) -> None:
        """A process ends."""
        if not process.alive:
            return
        self.note(f"{process.name} dies {why}")
        self.deaths += 1
        process.die()
        self.after(self.random.choice((0.05, 1.0, 10.0)), process.boot)

    def _guarded(self, process: Process | None, body: Callable[[], None]) -> None:
        before, self.actor = self.actor, process
        try:
            body()
        except SimulatedCrash as crash:
            assert process is not None, "only processes die"
            self.crash(process, f"at {crash}")
        finally:
            self.actor = before

    # --- what goes wrong -------------------------------------------------------------------------------------------------------

    def database_fault(self, *, readonly: bool) -> str:
        if self.actor is None:
            return ""
        if self.steady < self._away_until:
            return "away"
        faults = self.faults
        if self.chance(faults.away):
            return "away"
        if not readonly and self.chance(faults.refused):
            return "refused"
        if not readonly and self.chance(faults.unknown):
            return "unknown"
        return ""

    def executed(self, pending: PendingActivity) -> None:
        self.note(f"execute {pending.key} in {pending.worker}")
        self.executions[pending.key] += 1

    def _at_crashpoint(self, name: str) -> None:
        if self.actor is None:
            return
        self.visited[name] += 1
        if name == self.aim and self.visited[name] == self.aim_hit:
            self.aimed += 1
            raise SimulatedCrash(name)
        if self.chance(self.faults.crash):
            raise SimulatedCrash(name)

    def _plan_faults(self) -> None:
        faults = self.faults

        def sometime(times: int, action: Callable[[], None]) -> None:
            for _ in range(times):
                self.after(self.random.uniform(0.0, faults.until_s), action)

        def processes() -> Process:
            return self.random.choice([*self.workers, *self.beats])

        def outage() -> None:
            self._away_until = self.steady + self.random.uniform(0.1, 5.0)
            self.note("the database is away")

        def set_clock() -> None:
            target = self.random.choice([*self.workers, None])
            jump_s = self.random.choice((-2.0, -0.1, 0.1, 3.0))
            self.note(f"clock of {target.name if target else 'the database'} jumps {jump_s}")
            if target is None:
                self.jumped_s += abs(jump_s)
            else:
                target.clock.skew_s += jump_s

        sometime(faults.wipes, self.wire.wipe)
        sometime(faults.outages, outage)
        sometime(faults.restarts, lambda: self.crash(processes(), "anywhere"))
        sometime(faults.stops, lambda: self.random.choice(self.workers).stop())
        sometime(faults.freezes, lambda: self.random.choice(self.workers).freeze())
        sometime(faults.clocks, set_clock)
