"""A migrated database, a client on it whose bell only remembers, and a worker's part written by hand; law: no worker, no broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from orchestrator.client import Client
from orchestrator.store import Store, turns
from schemas.history import FLAGS_NOW, Failure, RunCompleted, RunContinued, RunFailed, RunStarted, Terminal
from schemas.runs import ClaimedRun, NewRun, PendingActivity, Status, TurnCommit


class Bell:
    """A broker that remembers what it was asked to ring."""

    def __init__(self) -> None:
        self.rung: list[str] = []

    def ring(self, queue: str, *, delay_s: float = 0.0) -> None:
        self.rung.append(queue)

    def send(self, activity: PendingActivity) -> None:
        raise AssertionError("a client sends no tasks")


class Hand:
    """Does what a worker would: claims runs and closes them."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def claim(self, *types: str, queue: str = "default") -> list[ClaimedRun]:
        with self.store.transaction() as tx:
            return turns.claim(tx, worker="hand", queues=[queue], types=list(types), batch_max=100, inbox_max=100)

    def complete(self, run: ClaimedRun, result: object = None) -> None:
        self._commit(run, RunCompleted(result), status=Status.COMPLETED, result=result)

    def fail(self, run: ClaimedRun, message: str) -> None:
        failure = Failure(kind="application", message=message, type="Broken")
        self._commit(run, RunFailed(failure), status=Status.FAILED, failure=failure)

    def continue_as_new(self, run: ClaimedRun, run_id: str) -> None:
        started = next(entry.arrival for entry in run.inbox if isinstance(entry.arrival, RunStarted))
        following = RunStarted(started.workflow_id, run_id, started.type, started.queue, continued_from=run.run_id)
        self._commit(run, RunContinued(), status=Status.CONTINUED_AS_NEW, continued_as=NewRun(following))

    def _commit(self, run: ClaimedRun, command: Terminal, **close: object) -> None:
        with self.store.transaction() as tx:
            written = turns.commit(
                tx,
                [
                    TurnCommit(
                        run.run_id,
                        run.epoch,
                        run.turn + 1,
                        at=tx.now(),
                        flags=int(FLAGS_NOW),
                        arrivals=tuple(entry.arrival for entry in run.inbox),
                        commands=(command,),
                        consumed=tuple(entry.id for entry in run.inbox),
                        **close,  # type: ignore[arg-type] # fields of the record
                    ),
                ],
                worker="hand",
                build="",
            )
        assert not written.lost


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store.open(database_url)
    opened.upgrade()
    yield opened
    opened.dispose()


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def open_client(database_url: str, store: Store, bell: Bell) -> Iterator[Callable[..., Client]]:
    opened: list[Client] = []

    def make(**options: object) -> Client:
        opened.append(Client(database_url, "memory://", bell=bell, **options))  # type: ignore[arg-type] # as the test says
        return opened[-1]

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def client(open_client: Callable[..., Client]) -> Client:
    return open_client()


@pytest.fixture
def hand(store: Store) -> Hand:
    return Hand(store)
