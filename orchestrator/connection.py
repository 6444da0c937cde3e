"""What a client and its handles share: the store, the doorbell and the waiter, opened at first use; law: commit first, then ring.

An outage of the database shorter than RETRY_MAX_S is not told to the caller: everything written here may be written twice. An outage of
the broker is never told: what is committed will be found.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from orchestrator.clock import SYSTEM, Clock
from orchestrator.core.payloads import PayloadConverter
from orchestrator.delivering import D, Deliveries
from orchestrator.dispatch import Broker, CeleryBroker, celery_for, ring_all
from orchestrator.errors import BrokerUnavailable, DatabaseNotMigrated, DatabaseUnavailable
from orchestrator.store import Store, Transaction, Unmet, control, hints, runs, sessions
from orchestrator.waiting import Awaited, Waiter
from schemas.settings import Settings

if TYPE_CHECKING:
    from celery import Celery
    from sqlalchemy.orm import Session

T = TypeVar("T")

RETRY_MAX_S = 5.0  # how long a lost database is tried again before the caller hears of it
RETRY_PAUSE_MAX_S = 0.5
HINT_PAUSE = 4.0  # after a write with a hint, this many times as long without: hints make commits wait for each other
TOLD_RING_S = 0.05  # a queue of which a worker was told by a hint is rung for this much later, in case it has not heard


class Connection:
    """Store, doorbell and waiter of one client; safe after fork. What was given is not closed, what was opened here is."""

    _pid: int
    _lock: threading.RLock
    _store: Store | None
    _bell: Broker | None
    _closers: list[Callable[[], None]]
    _deliveries: Deliveries[Any] | None

    def __init__(
        self,
        settings: Settings,
        converter: PayloadConverter,
        *,
        store: Store | None = None,
        bell: Broker | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self.settings = settings
        self.converter = converter
        self.clock = clock
        self.waiter = Waiter(self._look, clock, listen=lambda: self.store().listen())
        self._given = (store, bell)
        self._inherited: list[object] = []  # what a parent process opened; collecting it here would close it there
        self._migrated = False
        self._hint_at = 0.0  # on the monotonic clock
        self._reset()

    def read(self, ask: Callable[[Transaction], T]) -> T:
        """What `ask` finds in a transaction that sees one moment."""
        return self._persistently(partial(self._in_transaction, ask, readonly=True, purpose="client.read"))

    def write(self, act: Callable[[Transaction], T], *, purpose: str, quick: Callable[[Transaction], T] | None = None) -> T:
        """Commit what `act` writes; it may run several times, also after it was committed.

        `quick` does the same by a single transaction, or raises Unmet; it is tried first.
        """
        self._broker()  # a URL that names no broker is told before anything is written

        def go() -> T:
            if quick is not None:
                with suppress(Unmet), self.store().transaction(single=True, purpose=purpose) as tx:
                    return quick(tx)
            return self._in_transaction(act, readonly=False, purpose=purpose)

        return self._persistently(go)

    def write_with(self, session: Session, act: Callable[[Transaction], tuple[T, Iterable[str]]]) -> T:
        """Write in the transaction of a caller's session, and ring for the queues that `act` names once that has committed."""
        self._broker()
        value, queues = act(sessions.joined(self.store(), session))
        for queue in queues:
            sessions.after_commit(session, ("ring", queue), partial(self.ring, [queue]))
        return value

    def ring(self, queues: Iterable[str], *, told: Collection[str] = ()) -> None:
        """Say that these queues have ready work, `told` ones not at once; never raises because the broker is away."""
        waiting = set(queues)
        ring_all(self._broker(), waiting.difference(told))
        for queue in sorted(waiting.intersection(told)):
            self._broker().ring(queue, delay_s=TOLD_RING_S)

    @contextmanager
    def hinting(self, count: int = 1) -> Iterator[bool]:
        """Whether the write in this block, of so many things, may give hints. The longer it takes, the later the next one may."""
        began = self.clock.monotonic()
        may = self.settings.hints and count <= hints.TURNS_MAX and began >= self._hint_at
        yield may
        if may:
            now = self.clock.monotonic()
            self._hint_at = now + HINT_PAUSE * (now - began)

    def read_once(self, ask: Callable[[Transaction], T]) -> T:
        """As `read`, without a second try."""
        return self._in_transaction(ask, readonly=True, purpose="client.read")

    def store(self) -> Store:
        """The store, its schema checked once."""
        with self._here():
            if self._store is None:
                self._store = Store.of(self.settings, clock=self.clock)
                self._closers.append(self._store.dispose)
            if not self._migrated:
                self._check(self._store)
                self._migrated = True
            return self._store

    def deliveries(self, write: Callable[[Sequence[D]], Sequence[Exception | None]]) -> Deliveries[D]:
        """Where threads of this process deliver together; the first to ask says how they are written."""
        with self._here():
            if self._deliveries is None:
                self._deliveries = Deliveries(write)
            return self._deliveries

    def close(self) -> None:
        """Stop waiting, send what is to be rung, close what was opened here; the next use opens it again."""
        self.waiter.close()
        with self._here():
            closers, self._closers = self._closers, []
            self._store, self._bell = self._given
            for closer in reversed(closers):
                closer()

    def _broker(self) -> Broker:
        with self._here():
            if self._bell is None:
                app = self._celery()
                bell = CeleryBroker(app, window_s=self.settings.ring_window_s, clock=self.clock)
                self._closers += [app.close, bell.flush]
                self._bell = bell
            return self._bell

    def _celery(self) -> Celery:
        app = celery_for(self.settings)
        try:
            # Now, not in the bell's thread: a fork in the middle of an import leaves the child with half a module, or its lock.
            _ = app.amqp, app.connection_for_write().transport  # these properties import, and connect to nothing
        except (KeyError, ImportError, AttributeError, ValueError) as error:
            scheme = self.settings.broker_url.partition(":")[0]
            raise BrokerUnavailable(
                f"the broker URL names no broker that can be used ({scheme}): {error}. Check ORCHESTRATOR_BROKER_URL."
            ) from error
        return app

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._deliveries = None
        self._store, self._bell = self._given
        self._closers = []

    def _here(self) -> threading.RLock:
        if self._pid != os.getpid():  # a child of fork: locks, threads and sockets are the parent's
            self._inherited += [self._store, self._bell, self._closers]
            self._reset()
        return self._lock

    def _in_transaction(self, act: Callable[[Transaction], T], *, readonly: bool, purpose: str) -> T:
        with self.store().transaction(readonly=readonly, purpose=purpose) as tx:
            return act(tx)

    def _persistently(self, act: Callable[[], T]) -> T:
        try:
            return act()
        except DatabaseUnavailable:
            again = Retrying(
                retry=retry_if_exception_type(DatabaseUnavailable),
                stop=stop_after_delay(RETRY_MAX_S),
                wait=wait_random_exponential(multiplier=0.02, max=RETRY_PAUSE_MAX_S),
                sleep=self.clock.sleep,
                reraise=True,
            )
            return again(act)

    def _check(self, store: Store) -> None:
        file = self.settings.home.absolute() / "orchestrator.db"
        ours = self._given[0] is None and self.settings.database_url == f"sqlite:///{file}"
        if ours:
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseUnavailable(
                    f"the folder {file.parent} cannot be made: {error}. Set ORCHESTRATOR_HOME to one that can."
                ) from error
        try:
            store.check_migrated()
        except DatabaseNotMigrated:
            if not ours:
                raise
            store.upgrade()  # the file of this folder is nobody else's: a newcomer has nothing to do

    def _look(self, awaited: Sequence[Awaited]) -> Mapping[Awaited, Any]:
        run_ids = [key for kind, key in awaited if kind == "run"]
        questions = [key for kind, key in awaited if kind == "question"]
        found: dict[Awaited, Any] = {}
        if run_ids:
            with self.store().transaction(readonly=True, single=True) as tx:
                found.update((("run", run_id), outcome) for run_id, outcome in runs.outcome(tx, run_ids).items())
        if questions:
            with self.store().transaction(readonly=True, single=True) as tx:
                found.update((("question", question.id), question) for question in control.answered(tx, questions))
        return found
