"""The processes of a world: workers and beats, with the product's own engine, lease and rounds in them; law: none has a thread of its own."""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from celery.app.trace import trace_ok_t

from beat.ticks import Rounds
from orchestrator.dispatch import hand_back
from orchestrator.errors import DatabaseUnavailable
from schemas.history import Failure
from schemas.runs import ActivityKey, PendingActivity
from tests.simulation import corpus_activities
from tests.simulation.faults import SimulatedCrash
from tests.simulation.fibers import Fiber, Killed
from tests.simulation.twins import Message, NoWatchdog, ProcessClock, TwinRunner, TwinVitals, twin_route
from workers.claims import Claims
from workers.decider import Decider
from workers.instances import Instances
from workers.lease import Lease
from workers.tasks import claim, conclude, told_by_celery
from workers.threads import Interruption
from workers.turns import Engine
from workers.watchdog import Watchdog

if TYPE_CHECKING:
    from tests.simulation.world import World


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
