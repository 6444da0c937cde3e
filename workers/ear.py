"""The worker's ear: PostgreSQL says that there is work; law: what is heard is a doorbell, and the broker rings a little later anyway.

A thread with a connection of its own, in small installations on PostgreSQL; elsewhere it ends at once.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from orchestrator.errors import DatabaseUnavailable
from orchestrator.store import Store, hints, workers

log = logging.getLogger("orchestrator.ear")

HEAR_MAX_S = 1.0  # after this long a silence, look whether we are still who we were
DEAF_MAX_S = 5.0  # pause before the next try when the connection is lost


class Ear:
    """Listens for one worker; `worker_id` is asked now and then, for it changes when a lease is lost."""

    def __init__(self, store: Store, *, worker_id: Callable[[], str], ring: Callable[[], None]) -> None:
        self._store = store
        self._worker_id = worker_id
        self._ring = ring
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="orchestrator-ear", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._stopped.set()
        if not self._thread.is_alive():
            return
        try:
            with self._store.transaction(readonly=True, single=True) as tx:
                hints.poke(tx, self._worker_id())  # it wakes up, and sees that it is over
        except DatabaseUnavailable:
            return  # then it has noticed by itself
        self._thread.join(HEAR_MAX_S)

    def _work(self) -> None:
        while self._store.dialect == "postgresql" and not self._stopped.is_set():
            worker_id = self._worker_id()
            try:
                if self._is_small():
                    self._listen(worker_id)
            except DatabaseUnavailable as error:
                log.info("only the broker tells of work: %s", error.message)
            if self._worker_id() == worker_id:
                self._stopped.wait(DEAF_MAX_S)

    def _is_small(self) -> bool:
        with self._store.transaction(readonly=True) as tx:
            return len(workers.list_workers(tx)) <= hints.LISTENERS_MAX

    def _listen(self, worker_id: str) -> None:
        ear = self._store.listen(hints.channel_of(worker_id))
        if ear is None:
            return
        try:
            self._ring()  # for what has come while nobody listened
            while not self._stopped.is_set() and self._worker_id() == worker_id:
                if ear.hears(HEAR_MAX_S):
                    self._ring()
        finally:
            ear.close()
