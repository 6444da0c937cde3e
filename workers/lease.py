"""The worker's sign of life; law: ownership is a lease judged by the database's clock, and it never waits for anything but the database.

A thread of its own: extends the lease, takes over at once from a former process of the same node name, and looks for processes of this host
that are gone. If the row has vanished, others took our work: the engine starts anew under a new identity.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from orchestrator.clock import Clock
from orchestrator.dispatch import Broker, recover, recover_neighbours
from orchestrator.errors import DatabaseUnavailable
from orchestrator.store import Store, workers
from schemas.runs import WorkerIdentity, WorkerRow
from schemas.settings import Settings
from workers import vitals

log = logging.getLogger("orchestrator.lease")

JITTER = 0.2  # share of an interval by which beats are spread
FROZEN_S = 10.0  # a transaction whose process has said nothing for so long, and is no living worker, is ended


class Vitals(Protocol):
    """What a lease asks about processes; `workers.vitals` answers, the simulation has its own."""

    def identity(self, *, worker_id: str, node: str, queues: tuple[str, ...], build: str) -> WorkerIdentity:
        """Who this process is."""
        ...

    def process_lives(self, row: WorkerRow) -> bool:
        """Whether the process of a worker of this host is still there."""
        ...


class Lease:
    """One worker process's row in `workers`."""

    def __init__(
        self,
        store: Store,
        broker: Broker,
        settings: Settings,
        *,
        node: str,
        queues: Callable[[], Sequence[str]],
        clock: Clock,
        signs: Vitals = vitals,
    ) -> None:
        self._store = store
        self._broker = broker
        self._settings = settings
        self._node = node
        self._queues = queues
        self._clock = clock
        self._signs = signs
        self._identity = signs.identity(worker_id="", node=node, queues=(), build=settings.build)
        self._extend_at = 0.0  # on the monotonic clock
        self._thaw_at = 0.0  # likewise: when locks of frozen processes are looked for
        self._stopping = False
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def register(self) -> tuple[str, float]:
        """Become a worker; returns the new worker id and how far the database's clock is ahead of ours."""
        identity = self._signs.identity(
            worker_id=self._clock.fresh_id(),
            node=self._node,
            queues=tuple(self._queues()),
            build=self._settings.build,
        )
        with self._store.transaction(purpose="workers.register") as tx:
            workers.register(tx, identity, self._settings.lease_s)
            former = [row for row in workers.predecessors(tx, self._node, identity.worker_id) if self._is_gone(row, identity)]
            workers.retry_stuck(tx, list(identity.queues))
            skew_s = tx.now() - self._clock.now()
        self._identity = identity
        for row in former:
            recover(self._store, self._broker, row, batch_max=self._settings.due_batch_max)
        return identity.worker_id, skew_s

    def start(self, *, lost: Callable[[], None], skewed: Callable[[float], None]) -> None:
        """Extend the lease from now on. `lost` is called when others took our work, `skewed` with the difference of the clocks."""
        self._thread = threading.Thread(target=self._keep, args=(lost, skewed), name="orchestrator-lease", daemon=True)
        self._thread.start()

    def tell_stopping(self) -> None:
        """With the next sign of life, which comes soon: this worker takes nothing more."""
        self._stopping, self._extend_at = True, 0.0

    def stop(self) -> None:
        """No further signs of life; the row stays for whoever hands our work back."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(self._settings.neighbours_s + 1.0)

    def look(self, *, lost: Callable[[], None], skewed: Callable[[float], None]) -> None:
        """One round: extend the lease if it is time, and recover the neighbours that are gone."""
        if self._clock.monotonic() >= self._extend_at:
            self._extend_at = self._clock.monotonic() + self._settings.lease_beat_s * (1 - JITTER * self._clock.random())
            self._extend(lost, skewed)
        recover_neighbours(
            self._store,
            self._broker,
            host=self._identity.host,
            boot_id=self._identity.boot_id,
            alive=self._signs.process_lives,
            batch_max=self._settings.due_batch_max,
        )

    def _is_gone(self, row: WorkerRow, identity: WorkerIdentity) -> bool:
        here = row.identity.host == identity.host and row.identity.boot_id == identity.boot_id
        # Elsewhere, the same node name means a replacement, as orchestrators of containers do it; the fence protects from the rare twin.
        return not (here and self._signs.process_lives(row))

    def _keep(self, lost: Callable[[], None], skewed: Callable[[float], None]) -> None:
        while not self._stopped.wait(self._settings.neighbours_s * (1 - JITTER * self._clock.random())):
            try:
                self.look(lost=lost, skewed=skewed)
            except DatabaseUnavailable as error:
                log.warning("the lease could not be extended: %s", error.message)

    def _extend(self, lost: Callable[[], None], skewed: Callable[[float], None]) -> None:
        with self._store.transaction(purpose="workers.extend") as tx:
            if self._clock.monotonic() >= self._thaw_at:
                self._thaw_at = self._clock.monotonic() + self._settings.lease_s
                workers.end_frozen(tx, FROZEN_S)
            ours = workers.extend(tx, self._identity.worker_id, self._settings.lease_s, stopping=self._stopping)
            skew_s = tx.now() - self._clock.now()
        skewed(skew_s)
        if not ours:
            log.warning("the lease of worker %s was over and others took its work; it goes on under a new identity", self._node)
            lost()
