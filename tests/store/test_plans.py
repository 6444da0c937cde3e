"""Statements of PostgreSQL look at what they are about, whatever the statistics say: a table that was empty a moment ago may be full.

Vacuum finds queues empty now and then and says so; until it comes by again, PostgreSQL plans for no rows at all. Then to read a whole table
for each row of a batch looks as cheap to it as to find each row by its index. Once, that made a recovery of two seconds last for a minute.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from sqlalchemy import event
from sqlmodel import SQLModel

from orchestrator.clock import SYSTEM
from orchestrator.store import Store, activities, due, runs, turns, workers
from schemas.history import (
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityScheduled,
    Failure,
    RunTerminated,
    SignalReceived,
    TimerStarted,
)
from schemas.runs import ActivityKey, Beat, ClaimedRun, Resolved, TryAgain, TurnCommit, TurnFailure
from tests.conftest import command
from tests.store.conftest import QUEUE, Desk

BATCH = 200
BATCHES = 5
LOOKED_MAX = 20  # rows that the parts of a plan may see for each row that a statement is about
STEP = ActivityScheduled(1, "1", "pack")
WRONG = Failure("application", "no")
EXPLAIN = """
LOAD 'auto_explain'; SET auto_explain.log_min_duration = 0; SET auto_explain.log_analyze = on; SET auto_explain.log_timing = off;
SET auto_explain.log_format = json; SET auto_explain.log_level = notice; SET client_min_messages = notice
"""


@dataclass
class Plans:
    """What was run, and how many rows the parts of its plans gave or threw away."""

    seen: list[tuple[int, str]] = field(default_factory=list)

    def note(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        _, told, plan = (diagnostic.message_primary or "").partition("plan:\n")
        if told:
            explained = json.loads(plan)
            self.seen.append((looked_at(explained["Plan"]), explained["Query Text"]))

    def worst(self) -> tuple[int, str]:
        found, self.seen = max(self.seen), []
        return found


def looked_at(node: dict[str, Any]) -> int:
    removed = sum(node.get(f"Rows Removed by {what}", 0) for what in ("Filter", "Join Filter", "Index Recheck"))
    return int((node["Actual Rows"] + removed) * node["Actual Loops"]) + sum(map(looked_at, node.get("Plans", ())))


@pytest.fixture
def plans() -> Plans:
    return Plans()


@pytest.fixture
def desk(empty_postgres_url: str, plans: Plans) -> Iterator[Desk]:
    """A database that has been busy, was emptied, and was vacuumed while it was empty; connections that were made after that."""
    before = Store.open(empty_postgres_url)
    before.upgrade()
    for table in SQLModel.metadata.tables:
        command(empty_postgres_url, f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
    work_through(Desk(before))
    before.dispose()
    for table in SQLModel.metadata.tables:
        command(empty_postgres_url, f"DELETE FROM {table}")
        command(empty_postgres_url, f"VACUUM (ANALYZE, TRUNCATE false) {table}")
    store = Store.open(empty_postgres_url)

    @event.listens_for(store._engine, "connect")
    def listen(connection: psycopg.Connection[Any], _record: object) -> None:
        connection.execute(EXPLAIN)
        connection.add_notice_handler(plans.note)

    yield Desk(store)
    store.dispose()


def work_through(desk: Desk) -> tuple[list[ClaimedRun], ...]:
    """Whatever engines and beat write for many runs at once, each time for one batch of several; the runs are returned by batch."""
    for _ in range(BATCHES):
        desk.start_all([desk.new() for _ in range(BATCH)])
    batches = tuple(desk.claim(batch_max=BATCH) for _ in range(BATCHES))
    eager, queued, canceled, failing, released = batches
    single(desk, [desk.turn(run, STEP, TimerStarted(2, 0.0)) for run in eager])
    single(desk, [desk.turn(run, STEP, eager=False) for run in queued])
    desk.commit(*(desk.turn(run, STEP, eager=False) for run in canceled))
    desk.ask(turns.fail_turns, [TurnFailure(run.run_id, run.epoch, WRONG, 0.0) for run in failing])
    desk.ask(turns.release, [(run.run_id, run.epoch) for run in released])

    single(desk, [desk.turn(run, number=2, settled=(key(run),), arrivals=(ActivityCompleted(1, None, 1),), fired=(2,)) for run in eager])
    desk.ask(activities.claim, worker=desk.worker, queues=[QUEUE], types=["pack"], batch_max=BATCH)
    desk.ask(activities.beat, [Beat(key(run)) for run in queued])
    desk.settle(*(TryAgain(key(run), SYSTEM.now(), WRONG) for run in queued))
    desk.settle(*(Resolved(key(run, 2), ActivityCompleted(1, None, 2)) for run in queued))
    desk.commit(*(desk.turn(run, ActivityCancelRequested(1, wait=False), number=2) for run in canceled))
    desk.ask(runs.deliver, [(run.run_id, SignalReceived("go"), None) for run in released])
    desk.ask(turns.load, {run.run_id: 0 for run in queued})

    desk.commit(*(desk.turn(run, TimerStarted(3, 0.0), number=3) for run in eager))
    desk.ask(due.fire_timers, BATCH)
    desk.claim(batch_max=BATCH)
    desk.ask(workers.release_runs, desk.worker, BATCH)
    return batches


def single(desk: Desk, commits: Sequence[TurnCommit]) -> None:
    with desk.store.transaction(single=True) as tx:
        turns.commit(tx, commits, worker=desk.worker, build="b")


def key(run: ClaimedRun, attempt: int = 1) -> ActivityKey:
    return ActivityKey(run.run_id, 1, attempt)


def test_a_statement_for_many_runs_finds_each_of_them_by_its_index(desk, plans):
    work_through(desk)
    looked, text = plans.worst()
    assert looked <= LOOKED_MAX * BATCH, text


def test_a_statement_for_one_run_does_not_look_at_the_others(desk, plans):
    *_, released = work_through(desk)
    first, second, third = desk.claim(batch_max=3)
    task = ActivityScheduled(9, "9", "ship", task=True)
    plans.worst()
    desk.commit(desk.turn(first, task))
    assert desk.ask(activities.start, ActivityKey(first.run_id, 9, 1), "me")
    desk.settle(Resolved(ActivityKey(first.run_id, 9, 1), ActivityCompleted(9, None, 1)))
    desk.commit(desk.closing(second))
    desk.send(released[0].run_id, SignalReceived("go"))
    desk.ask(runs.close_from_outside, third.run_id, RunTerminated("enough"))
    looked, text = plans.worst()
    assert looked <= 2 * LOOKED_MAX, text


def test_and_this_would_tell(desk, plans):
    *_, released = work_through(desk)
    plans.worst()
    naive = "UPDATE runs SET priority = v.priority FROM {rows run_id:text, priority:int} WHERE runs.run_id = v.run_id"
    with desk.store.transaction() as tx:
        tx.send_rows(naive, [(run.run_id, 1) for run in released])
    assert plans.worst()[0] > LOOKED_MAX * BATCH
