"""Celery's scheduler on our store: `celery -A … beat` with timers, sweeps and leases; law: any number may run, one acts, none is missed.

The one that holds the lease acts; it renews the lease every third of its length. If it dies, another takes over when the lease ends, with
the times at which the entries of `beat_schedule` ran last, so that a take-over neither repeats nor forgets.

An entry is fired in three steps: make sure that the lease is ours and that nobody has fired the entry since; send its message; record the
fire, again only if both still hold. A crash between the last two sends the message again: at least once, as with any Celery task. A broker
that is away postpones a fire, it does not skip it; however long it was away, an entry that was due many times fires once.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from typing import Any

from celery import Celery
from celery.beat import Scheduler, SchedulingError
from kombu.exceptions import OperationalError

from beat.fleet import Pulse
from beat.ticks import Rounds
from orchestrator.celery import check_or_refuse, orchestrator_of
from orchestrator.clock import utc
from orchestrator.crashpoints import crashpoint
from orchestrator.errors import DatabaseNotMigrated, DatabaseUnavailable
from orchestrator.fleet import Fleet
from orchestrator.store import Transaction, control

log = logging.getLogger("beat.scheduler")

LEASE = "beat"
RETRY_S = 1.0  # pause after the database or the broker turned out to be away
CONNECT_MAX_S = 4  # less than a lease: timers must not wait for a broker that does not answer
CLOCK_JUMP_S = 5.0  # a wall clock that moves by more than this against the steady one was set


class StoreScheduler(Scheduler):
    """For `beat_scheduler="beat.scheduler:StoreScheduler"`; the application needs an `Orchestrator`."""

    # Celery's own would wait for the broker inside the tick, and all timers with it.
    producer: Any = None

    def __init__(self, app: Celery, *, lazy: bool = False, **options: Any) -> None:  # noqa: ANN401 - Celery's options, handed on
        self._ours = orchestrator_of(app)
        if lazy:  # made for the banner of a beat that starts, which would be the first to stumble over a wrong URL
            check_or_refuse(self._ours)
        self._clock = self._ours.clock
        self._holder = f"{platform.node()}:{os.getpid()}:{self._clock.fresh_id()}"
        self._active: bool | None = None  # None: not known yet
        self._renew_at = 0.0  # on the monotonic clock, as the next
        self._send_again_at = 0.0
        self._recorded: dict[str, float | None] = {}  # what the store had as the last run of each entry when we looked last
        self._clock_offset = self._clock.now() - self._clock.monotonic()
        self._complained: set[str] = set()
        self._in_tick = False
        super().__init__(app, lazy=lazy, **options)

    def setup_schedule(self) -> None:
        """The entries of the configuration; their times come from the store when this beat takes over."""
        self.merge_inplace(self.app.conf.beat_schedule)
        self.install_default_entries(self.schedule)

    def tick(self, *_: Any, **__: Any) -> float:  # noqa: ANN401 - Celery's has its imports as parameters
        """Do what is due if we are the active beat; return how long to sleep. Whatever is away is tried again, beat never ends for it."""
        self._in_tick = True
        try:
            delay = min(self._act(), float(self.max_interval or RETRY_S)) if self._hold_lease() else self._ours.settings.tick_s
            self._complained.discard("database")
        except (DatabaseUnavailable, DatabaseNotMigrated) as error:
            self._complain("database", "beat goes on trying: %s", error)
            self._doubt()
            delay = RETRY_S
        finally:
            self._in_tick = False
        return delay

    def apply_entry(self, entry: Any, producer: object = None) -> None:  # noqa: ANN401 - a ScheduleEntry; its stub says that all of it may be None
        """Fire an entry: check, send, record. If it cannot be sent now it stays due."""
        try:
            sender = self.app.amqp.Producer(self._connected(), auto_declare=False)
        except self._away as error:
            self._postpone(entry, error)
            return
        if not self._still_ours(entry.name):
            return
        log.info("sending due task %s (%s)", entry.name, entry.task)
        # Trying again is our part, at the next tick: this one has more to do.
        once = type(entry)(**{**dict(entry), "options": {"retry": False, **entry.options}})
        try:
            crashpoint("beat.before_send")
            self.apply_async(once, producer=sender, advance=False)
            crashpoint("beat.after_send")
        except SchedulingError as error:
            if isinstance(error.__context__, self._away):
                self._postpone(entry, error)
                return
            log.exception("entry %s could not be sent and is left out this time", entry.name)
        self._complained.discard("broker")
        self._record(entry.name)

    def close(self) -> None:
        """Let the next beat go on at once. Celery calls this from a signal handler too, and then once more at the end."""
        if self._in_tick:
            return  # the interrupted tick may hold a transaction, which would wait for ours and ours for it
        super().close()
        if self._active:
            self._active = False
            try:
                with self._ours.store.transaction(purpose="beat.release") as tx:
                    control.release_lease(tx, LEASE, self._holder)
            except (DatabaseUnavailable, DatabaseNotMigrated) as error:
                log.warning("the lease of beat ends by itself, it could not be given back: %s", error)
        self._ours.broker.flush()

    @property
    def info(self) -> str:
        """A line for Celery's banner."""
        try:
            return f"    . store -> {self._ours.store}"
        except DatabaseUnavailable as error:
            return f"    . store -> {error}"

    @cached_property
    def _rounds(self) -> Rounds:
        return Rounds(self._ours.store, self._ours.broker, self._ours.settings, clock=self._clock)

    @cached_property
    def _pulse(self) -> Pulse:
        ours = self._ours
        fleet = Fleet(ours.settings, store=ours.store, bell=ours.broker, clock=self._clock)
        return Pulse(fleet, ours.settings, broadcast=self._broadcast, clock=self._clock)

    @cached_property
    def _away(self) -> tuple[type[Exception], ...]:
        """What is raised when the broker cannot be reached."""
        connection: Any = self.app.connection_for_write()  # the stub forgets what its errors are
        return (OperationalError, OSError, *connection.connection_errors)

    # --- the lease ---

    def _hold_lease(self) -> bool:
        now = self._clock.monotonic()
        if self._active and now < self._renew_at:
            return True
        with self._ours.store.transaction(purpose="beat.lease") as tx:
            held = self._extend(tx)
            if held and not self._active:
                self._take_over(tx)
        if held != self._active:
            log.info("this beat is active" if held else "another beat is active, this one is ready to take over")
        if not held:
            self._pulse.stand_by()
        self._active = held
        self._renew_at = now + self._ours.settings.beat_lease_s / 3
        return held

    def _extend(self, tx: Transaction) -> bool:
        return control.take_lease(tx, LEASE, self._holder, self._ours.settings.beat_lease_s)

    def _take_over(self, tx: Transaction) -> None:
        """Continue with the entries where the beat before us stopped; those it did not know count from now."""
        known = control.load_beat_entries(tx)
        control.remove_beat_entries(tx, sorted(known.keys() - self.schedule.keys()))
        new: dict[str, tuple[float | None, int]] = {}
        entry: Any  # see apply_entry
        for name, entry in self.schedule.items():
            if name in known:
                at, entry.total_run_count = known[name]
                entry.last_run_at = self._moment(at) if at is not None else entry.default_now()
            else:
                entry.last_run_at = entry.default_now()
                new[name] = (entry.last_run_at.timestamp(), entry.total_run_count)
        control.save_beat_entries(tx, new)
        self._recorded = {name: at for name, (at, _) in (known | new).items()}
        self._heap = None

    def _doubt(self) -> None:
        """Look into the store before anything else is done."""
        if self._active:
            self._active = False

    # --- due things ---

    def _act(self) -> float:
        self._notice_clock_jump()
        wait = self._send_again_at - self._clock.monotonic()
        delay = wait if wait > 0 else float(super().tick() or 0.0)
        if not self._active:
            return 0.0  # somebody else has fired an entry: look again who is active
        return max(0.0, min(delay, self._rounds.go(), self._see_to_agents()))

    def _see_to_agents(self) -> float:
        try:
            return self._pulse.go()
        except self._away as error:
            self._complain(
                "agents", "beat cannot reach the broker, agents are asked again when it is back: %s: %s", type(error).__name__, error
            )
            self._disconnect()
            return RETRY_S

    def _broadcast(self, command: str, arguments: Mapping[str, Any]) -> None:
        self.app.control.broadcast(command, arguments=dict(arguments), connection=self._connected())
        self._complained.discard("agents")

    def _still_ours(self, name: str) -> bool:
        """Is the lease ours, and has nobody fired the entry since we looked?"""
        with self._ours.store.transaction(purpose="beat.check") as tx:
            if self._extend(tx) and control.load_beat_entries(tx).get(name, (None, 0))[0] == self._recorded.get(name):
                return True
        self._doubt()
        return False

    def _record(self, name: str) -> None:
        """Write the fire down, once: a beat that lost its lease while it was sending changes nothing."""
        fired: Any = self.schedule[name]  # advanced by Celery before the fire
        at = fired.last_run_at.timestamp()
        with self._ours.store.transaction(purpose="beat.record") as tx:
            mine = self._extend(tx) and control.load_beat_entries(tx).get(name, (None, 0))[0] == self._recorded.get(name)
            if mine:
                control.save_beat_entries(tx, {name: (at, fired.total_run_count)})
        if mine:
            self._recorded[name] = at
        else:
            self._doubt()

    def _postpone(self, entry: Any, error: BaseException) -> None:  # noqa: ANN401 - see apply_entry
        self._complain("broker", "beat cannot reach the broker, entries wait until it is back: %s: %s", type(error).__name__, error)
        self._disconnect()
        self.schedule[entry.name] = entry  # as if Celery had not advanced it
        self._heap = None
        self._send_again_at = self._clock.monotonic() + RETRY_S

    def _disconnect(self) -> None:
        connection = self.__dict__.pop("connection", None)
        if connection is not None:
            connection.release()

    def _connected(self) -> Any:  # noqa: ANN401 - kombu's connection; its types are not ours to name
        return self.connection.ensure_connection(max_retries=1, interval_start=0, timeout=CONNECT_MAX_S)

    def _notice_clock_jump(self) -> None:
        """After the wall clock was set: an entry never waits for a future that its last run came from."""
        offset = self._clock.now() - self._clock.monotonic()
        if abs(offset - self._clock_offset) > CLOCK_JUMP_S:
            log.warning("the clock was set by %.0f s", offset - self._clock_offset)
            self._heap = None
            entry: Any  # see apply_entry
            for entry in self.schedule.values():
                entry.last_run_at = min(entry.last_run_at, entry.default_now())
        self._clock_offset = offset

    def _moment(self, at: float) -> datetime:
        return utc(at).astimezone(self.app.timezone)

    def _complain(self, about: str, sentence: str, *details: object) -> None:
        if about not in self._complained:
            log.warning(sentence, *details)
        self._complained.add(about)
