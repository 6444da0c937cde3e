"""A world in one thread: processes, time, faults and a scheduler; law: the seed decides everything, so a failing seed is a recording."""

from __future__ import annotations

import heapq
import queue
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, cast

from celery.app.trace import trace_ok_t

from beat.ticks import Rounds
from orchestrator import crashpoints
from orchestrator.core.payloads import PayloadConverter
from orchestrator.dispatch import hand_back
from orchestrator.errors import DatabaseUnavailable
from orchestrator.store import Store, Transaction
from schemas.history import Failure
from schemas.runs import ActivityKey, PendingActivity
from schemas.settings import Settings
from tests.laws import Run
from tests.simulation import corpus_activities
from tests.simulation.corpus_activities import MAIN_QUEUE, SIDE_QUEUE, TASK_QUEUE
from tests.simulation.fibers import Fiber, Killed
from tests.simulation.twins import Message, NoWatchdog, ProcessClock, ShakyStore, TwinRunner, TwinVitals, Wire, twin_route
from workers.claims import Claims
from workers.decider import Decider
from workers.instances import Instances
from workers.lease import Lease
from workers.tasks import claim, conclude, told_by_celery
from workers.threads import Interruption
from workers.turns import Engine
from workers.watchdog import Watchdog

BEGIN = 1_700_000_000.0
STEPS_MAX = 60_000
QUIET_MAX_S = 900.0  # after the faults have ended, all must be over within this
BEATS = 2


class SimulatedCrash(BaseException):
    """A process ends here, as SIGKILL would end it."""


@dataclass(frozen=True)
class Faults:
    """How often the world misbehaves, per occasion; `until_s` is when it stops."""

    until_s: float = 20.0
    crash: float = 0.0  # at a crash point
    stall: float = 0.0  # a thread is not scheduled, between transactions
    freezes: int = 0  # of whole processes, for longer than their lease
    away: float = 0.0  # the database, before a transaction
    refused: float = 0.0  # … at the commit
    unknown: float = 0.0  # … after the commit
    outages: int = 0  # the database is away for seconds
    drop: float = 0.0
    double: float = 0.0
    late: float = 0.0
    wipes: int = 0
    restarts: int = 0  # of processes, anywhere between two steps
    stops: int = 0  # of workers, in good order
    clocks: int = 0  # wall clocks that are set, a worker's or the database's

    @classmethod
    def drawn(cls, chance: random.Random) -> Faults:
        """The faults of a seed: none, some, or many of some kinds."""
        if chance.random() < 0.1:
            return cls()

        def rate(most: float) -> float:
            return chance.random() ** 2 * most if chance.random() < 0.6 else 0.0

        def times(most: int) -> int:
            return chance.randint(1, most) if chance.random() < 0.4 else 0

        return cls(
            until_s=chance.uniform(4.0, 20.0),
            crash=rate(0.03),
            stall=rate(0.1),
            freezes=times(2),
            away=rate(0.05),
            refused=rate(0.05),
            unknown=rate(0.05),
            outages=times(2),
            drop=rate(1.0),
            double=rate(0.5),
            late=rate(0.5),
            wipes=times(2),
            restarts=times(3),
            stops=times(3),
            clocks=times(2),
        )


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


class Notes(queue.SimpleQueue[Any]):
    """What wakes an engine."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item)
        self._process.wake(self._process.nap)


class Process:
    """A worker process: engine, lease, attempts. `boot` makes it, `die` ends it without a word."""

    def __init__(self, world: World, name: str, queues: tuple[str, ...]) -> None:
        self.world = world
        self.name = name
        self.queues = queues
        self.clock = ProcessClock(world)
        self.clock.skew_s = world.random.choice((0.0, 0.0, -0.5, 0.5)) if world.faults.clocks else 0.0
        self.alive = False
        self.frozen_until = 0.0
        self.pid = 0
        self.host = world.random.choice(("here", "there"))
        self.fibers: list[Fiber] = []
        world.after(world.random.uniform(0.0, 0.5), self.boot)
        self._build()

    @property
    def frozen(self) -> bool:
        return self.world.steady < self.frozen_until

    def boot(self) -> None:
        if not self.alive:
            self.world.note(f"{self.name} boots")
            self._build()
            self.alive = True
            self.after(0.0, self._register)

    def die(self) -> None:
        self.alive = False
        self.life += 1
        for fiber in self.fibers:
            if not fiber.done and fiber is not self.world._fiber:
                fiber.kill()
        self.fibers = []

    def stop(self) -> None:
        """An orderly end without any patience: what is left is handed back."""
        if not self.alive or self.frozen or not self.engine.worker_id:
            return
        world = self.world
        world.note(f"{self.name} stops")

        def stop() -> None:
            try:
                self.engine.draining = True
                hand_back(world.store, world.wire, self.engine.worker_id, batch_max=world.settings.due_batch_max)
            except DatabaseUnavailable:
                world.note(f"{self.name} leaves its work to others")

        world.perform(self, stop, divisible=False)
        if self.alive:
            self.die()
            world.after(world.random.choice((0.05, 3.0)), self.boot)

    def freeze(self) -> None:
        self.world.note(f"{self.name} freezes")
        self.frozen_until = self.world.steady + self.world.settings.lease_s * self.world.random.uniform(0.5, 3.0)

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        """An event of this life of this process; a frozen one has it when it thaws."""
        life = self.life

        def happen() -> None:
            if not self.alive or self.life != life:
                return
            if self.frozen:
                self.world.after(self.frozen_until - self.world.steady, happen)
                return
            action()

        self.world.after(seconds, happen)

    def receive(self, message: Message) -> None:
        """A message for a Celery task."""
        assert message.activity is not None, "a doorbell has no task"
        key = message.activity.key
        self.after(0.0, lambda: self.world.perform(self, lambda: self._run_task(key, message), divisible=True))

    life = 0

    def _build(self) -> None:
        world = self.world
        settings = world.settings
        self.pid = world._ties = world._ties + 1
        notes = Notes(self)
        self.runner = TwinRunner(world, self, world.converter, notes)
        decider = Decider(
            Instances(settings.instances_max if settings.cache else 0),
            cast("Watchdog", NoWatchdog()),
            converter=world.converter,
            route=twin_route,
            fresh_id=world.fresh_id,
        )
        self.engine = Engine(
            world.store,
            world.wire,
            settings,
            decider=decider,
            runner=self.runner,
            queues=lambda: self.queues,
            notes=notes,
            clock=self.clock,
        )
        self.lease = Lease(
            world.store,
            world.wire,
            settings,
            node=self.name,
            queues=lambda: self.queues,
            clock=self.clock,
            signs=TwinVitals(world, self),
        )
        self.claims = Claims()
        world.engines.append(self.engine)
        self.renew = False
        self.looked_at = 0.0
        self.stepping = False
        self.nap = 0
        self.fibers = []

    def _register(self) -> None:
        def register() -> None:
            try:
                self.engine.worker_id, self.engine.skew_s = self.lease.register()
            except DatabaseUnavailable:
                self.after(0.5, self._register)
                return
            self.after(0.0, self._step)
            self.after(0.0, self._look)

        self.world.perform(self, register, divisible=False)

    def _step(self) -> None:
        """The engine's thread: again and again."""
        if self.stepping:
            return
        self.stepping = True
        divisible = bool(self.world.faults.stall) and self.world.faulty and self.world.random.random() < 0.3
        self.world.perform(self, self._cycle, divisible=divisible)

    def _cycle(self) -> None:
        world = self.world
        poll_s = world.settings.poll_s
        if self.renew:
            self._start_anew()
        if world.steady - self.looked_at >= poll_s:
            self.looked_at = world.steady
            self.engine.want()
        world.note(f"{self.name} cycle")
        try:
            self.engine.cycle(wait_s=0.0)
        finally:
            self.stepping = False
        self._again()

    def _again(self) -> None:
        left_s = max(0.0, self.looked_at + self.world.settings.poll_s - self.world.steady)
        wait_s = self.engine.patience_s(left_s) if self.engine._notes.empty() else 0.0
        if wait_s <= 0.0:
            self.after(0.0001, self._step)
        else:
            self._doze(wait_s)

    def _doze(self, wait_s: float) -> None:
        """Wait, or less if a note comes."""
        self.world.naps += 1
        nap = self.nap = self.world.naps
        self.after(wait_s, lambda: self.wake(nap))

    def wake(self, nap: int) -> None:
        """End a wait, if it is still the same."""
        if nap and self.nap == nap:
            self.nap = 0
            self.after(0.0001, self._step)

    def _start_anew(self) -> None:
        try:
            worker_id, skew_s = self.lease.register()
        except DatabaseUnavailable:
            return
        self.renew = False
        self.world.note(f"{self.name} starts anew")
        self.engine.start_anew(worker_id)
        self.engine.skew_s = skew_s

    def _look(self) -> None:
        """The lease's thread."""

        def lost() -> None:
            self.renew = True
            self.wake(self.nap)

        def skewed(skew_s: float) -> None:
            self.engine.skew_s = skew_s

        def look() -> None:
            try:
                self.lease.look(lost=lost, skewed=skewed)
            except DatabaseUnavailable:
                self.world.note(f"{self.name} cannot look")

        self.world.perform(self, look, divisible=False)
        self.after(self.world.settings.neighbours_s, self._look)

    def _run_task(self, key: ActivityKey, message: Message) -> None:
        world = self.world

        def body() -> Any:
            pending = self.runner.attempts[key].attempt.pending
            world.executed(pending)
            world.wait(world.random.choice((0.001, 0.2, 2.0)))
            if pending.scheduled.retry is not None and pending.key.attempt == 1 and world.random.random() < 0.3:
                raise Interruption  # a hard time limit
            return trace_ok_t(corpus_activities.task(*pending.scheduled.args), None, 0.0, None)

        present: Any = SimpleNamespace(
            orchestrator=SimpleNamespace(store=world.store, converter=world.converter, broker=world.wire, clock=self.clock),
            engine=self.engine,
            claims=self.claims,
            began=self.runner.adopt,
            ended=self._ended,
        )
        try:
            passage = claim(present, key)
            if passage.attempt is not None:
                conclude(passage, body)
        except Interruption:
            late = Failure(kind="timeout", type="start_to_close", message="the hard time limit")
            with suppress(DatabaseUnavailable):  # the deadline in the store comes after it
                told_by_celery(present.orchestrator, f"{key.run_id}--{key.seq}-{key.attempt}", late)
        except DatabaseUnavailable:
            world.after(1.0, lambda: world.wire._post(message))  # not acknowledged: it comes again
        except (Killed, SimulatedCrash):
            world.after(5.0, lambda: world.wire._post(message))
            raise

    def _ended(self, pending: PendingActivity, settlement: Any) -> None:
        self.runner.release(pending.key)
        if settlement is not None:
            self.engine.settle(settlement)


class BeatProcess(Process):
    """A beat that acts; two of them at once harm nobody."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world, name, ())

    def _build(self) -> None:
        super()._build()
        self.rounds = Rounds(self.world.store, self.world.wire, self.world.settings, clock=self.clock)

    def _register(self) -> None:
        self._tick()

    def _tick(self) -> None:
        def tick() -> None:
            pause_s = 1.0
            try:
                pause_s = self.rounds.go()
            except DatabaseUnavailable:
                self.world.note(f"{self.name} cannot tick")
            self.after(max(pause_s, 0.01), self._tick)

        divisible = bool(self.world.faults.stall) and self.world.faulty and self.world.random.random() < 0.3
        self.world.perform(self, tick, divisible=divisible)
