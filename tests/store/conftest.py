"""A store on each database, a second one as another process would have it, and a desk that does what engines do, tersely."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.clock import SYSTEM
from orchestrator.store import Store, activities, runs, turns
from schemas.history import ActivityScheduled, RunCompleted, RunStarted
from schemas.runs import ActivityKey, ClaimedRun, NewActivity, NewRun, StartOutcome, Status, TurnCommit

QUEUE = "orders"
TYPE = "Order"


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    opened = Store.open(database_url)
    opened.upgrade()
    yield opened
    opened.dispose()


@pytest.fixture
def other(store: Store, database_url: str) -> Iterator[Store]:
    """The same database through connections of its own."""
    opened = Store.open(database_url)
    yield opened
    opened.dispose()


@pytest.fixture
def desk(store: Store) -> Desk:
    return Desk(store)


@pytest.fixture
def rival(other: Store) -> Desk:
    return Desk(other, worker="rival")


class Desk:
    """One engine's dealings with the store, a transaction each."""

    def __init__(self, store: Store, worker: str = "me") -> None:
        self.store = store
        self.worker = worker

    def new(self, workflow_id: str | None = None, *, queue: str = QUEUE, **options) -> NewRun:
        fields = {name: options.pop(name) for name in list(options) if name in RunStarted.__dataclass_fields__}
        fields.setdefault("type", TYPE)
        run_id = fields.pop("run_id", None) or SYSTEM.fresh_id()
        return NewRun(RunStarted(workflow_id or f"w-{run_id}", run_id, queue=queue, **fields), **options)

    def start(self, workflow_id: str | None = None, **options) -> str:
        return self.start_all([self.new(workflow_id, **options)])[0].run_id

    def start_all(self, new: list[NewRun]) -> list[StartOutcome]:
        with self.store.transaction() as tx:
            return runs.start(tx, new)

    def send(self, run_id: str, *arrivals, dedup: str | None = None) -> set[str]:
        with self.store.transaction() as tx:
            return runs.deliver(tx, [(run_id, arrival, dedup) for arrival in arrivals])

    def claim(self, *, queues=(QUEUE,), types=(TYPE,), batch_max: int = 100, inbox_max: int = 100) -> list[ClaimedRun]:
        with self.store.transaction() as tx:
            return turns.claim(tx, worker=self.worker, queues=queues, types=types, batch_max=batch_max, inbox_max=inbox_max)

    def turn(self, claimed: ClaimedRun, *commands, number: int = 1, eager: bool = True, queue: str = QUEUE, **options) -> TurnCommit:
        """The `number`-th turn after a claim; the first consumes what the claim brought."""
        first = number == 1
        scheduled = [command for command in commands if isinstance(command, ActivityScheduled)]
        options.setdefault("arrivals", tuple(entry.arrival for entry in claimed.inbox) if first else ())
        return TurnCommit(
            run_id=claimed.run_id,
            epoch=claimed.epoch,
            turn=claimed.turn + number,
            at=SYSTEM.now(),
            flags=1,
            commands=tuple(commands),
            consumed=tuple(entry.id for entry in claimed.inbox) if first else (),
            activities=tuple(NewActivity(command, queue, eager=eager and not command.task) for command in scheduled),
            more=claimed.more and first,
            **options,
        )

    def closing(self, claimed: ClaimedRun, result: object = "done", *, number: int = 1, **options) -> TurnCommit:
        return self.turn(claimed, RunCompleted(result), number=number, status=Status.COMPLETED, result=result, **options)

    def commit(self, *commits: TurnCommit) -> frozenset[str]:
        """Commit turns; return what was lost."""
        with self.store.transaction(purpose="turns.commit") as tx:
            return turns.commit(tx, commits, worker=self.worker, build="b1").lost

    def running(self, *commands, workflow_id: str | None = None, eager: bool = True, **options) -> ClaimedRun:
        """A run that has taken one turn with these commands."""
        run_id = self.start(workflow_id, **options)
        claimed = next(claimed for claimed in self.claim() if claimed.run_id == run_id)
        assert not self.commit(self.turn(claimed, *commands, eager=eager))
        return claimed

    def settle(self, *settlements) -> tuple[set[str], set[ActivityKey]]:
        with self.store.transaction() as tx:
            return activities.settle(tx, settlements)

    def ask(self, question, *args, **kwargs):
        """Put one question to the store in a transaction of its own."""
        with self.store.transaction() as tx:
            return question(tx, *args, **kwargs)

    def rows(self, sentence: str, **params):
        with self.store.transaction(readonly=True) as tx:
            return tx.run(sentence, **params)

    def count(self, table: str):
        return self.rows(f"SELECT count(*) FROM {table}")[0][0]
