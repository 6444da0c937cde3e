"""Strikes and what they must not break."""

from __future__ import annotations

import threading

from orchestrator.store import Store
from workers.threads import Interruption, Threads, shield

WAIT_MAX_S = 10.0


class Writer:
    """A job that waits for the store behind a shield."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.begun, self.over = threading.Event(), threading.Event()
        self.committed = False

    def run(self) -> None:
        shield(up=True)
        self.begun.set()
        with self.store.transaction() as tx:
            tx.run("SELECT 1")
        self.committed = True
        shield(up=False)
        raise AssertionError("the strike was held back until here")

    def conclude(self) -> None:
        self.over.set()


def test_a_strike_waits_for_the_end_of_a_transaction_and_the_store_stays_open_to_others(sqlite_url):
    store = Store.open(sqlite_url)
    threads = Threads(1, name="struck")
    job = Writer(store)
    with store.transaction():
        threads.submit(job)
        assert job.begun.wait(WAIT_MAX_S)
        assert threads.strike(job, Interruption)
    assert job.over.wait(WAIT_MAX_S)
    assert job.committed
    with store.transaction() as tx:
        assert tx.run("SELECT 1") == [(1,)]
    threads.close()
    store.dispose()
