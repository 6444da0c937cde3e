"""Lists and views: pages by key, and SQL that people can rely on."""

from __future__ import annotations

import re
from itertools import chain
from typing import Any, cast

import pytest

from orchestrator.errors import InvalidFilter
from orchestrator.store import Transaction, listing
from schemas.history import ActivityScheduled, TimerStarted
from schemas.runs import RunFilter, Status


def pages(desk, **wanted):
    found, after = [], None
    while True:
        page = desk.ask(listing.list_runs, RunFilter(page_after=after, **wanted))
        found.append([run.workflow_id for run in page.runs])
        if (after := page.next_page) is None:
            return found


def test_pages_go_from_the_newest_to_the_oldest_without_gap_or_repeat(desk):
    desk.start_all([desk.new(f"w-{n}") for n in range(7)])  # all at about the same time
    for n in range(7, 10):
        desk.start(f"w-{n}")
    found = pages(desk, limit=3)
    assert [len(page) for page in found] == [3, 3, 3, 1]
    assert sorted(chain.from_iterable(found)) == sorted(f"w-{n}" for n in range(10))
    assert found[0] == ["w-9", "w-8", "w-7"]
    assert desk.ask(listing.count_runs, RunFilter(limit=3)) == 10


def test_filters_can_be_combined(desk):
    closed = desk.running(workflow_id="order-1", queue="orders")
    assert not desk.commit(desk.closing(closed, number=2))
    desk.start("order-2", queue="mail")
    desk.start("Order-3", type="Invoice")
    desk.start("100%_order", type="Invoice")
    now = desk.rows("SELECT {now}")[0][0]

    def found(**wanted):
        names = sorted(chain.from_iterable(pages(desk, **wanted)))
        assert desk.ask(listing.count_runs, RunFilter(**wanted)) == len(names)
        return names

    assert found(status=(Status.COMPLETED,)) == ["order-1"]
    assert found(status=(Status.COMPLETED, Status.RUNNING), type=("Order",)) == ["order-1", "order-2"]
    assert found(queue=("mail",)) == ["order-2"]
    assert found(id_prefix="order-") == ["order-1", "order-2"]
    assert found(id_prefix="100%_") == ["100%_order"]
    assert found(started_after=now) == []
    assert len(found(started_before=now + 1)) == 4
    assert found(stuck=True) == []
    assert len(found(stuck=False, type=("Invoice",))) == 2


def test_a_beginning_is_taken_letter_by_letter_whatever_the_locale_and_the_alphabet(desk):
    ids = ["a", "ab", "aB", "a-b", "b", "ä", "äx", "a\ud7ff1", "a\U0010ffff", "a\U0010ffff2", "\U0010ffff", "A"]
    desk.start_all([desk.new(workflow_id) for workflow_id in ids])
    for prefix in [*ids, "a\ud7ff", "nothing"]:
        found = chain.from_iterable(pages(desk, id_prefix=prefix))
        assert sorted(found) == sorted(workflow_id for workflow_id in ids if workflow_id.startswith(prefix)), prefix


def test_a_page_of_the_few_is_found_without_looking_at_the_many(desk):
    """What a database would read: no list of runs that failed, run, are stuck or begin alike goes through all of them."""
    few = [RunFilter(status=(status,)) for status in Status if status not in {Status.COMPLETED, Status.CONTINUED_AS_NEW}]
    for wanted in [*few, RunFilter(status=tuple(listing.ENDED_BADLY)), RunFilter(stuck=True), RunFilter(id_prefix="order-")]:
        for step in plan(desk, wanted):
            assert not re.search(r"Seq Scan on runs|runs_by_start|SCAN r$", step), (wanted, step)


def plan(desk, wanted: RunFilter) -> list[str]:
    """The steps of a page, among many runs."""
    many = "order-" if wanted.id_prefix == "" else "other-"
    desk.start_all([desk.new(f"{many}{number}") for number in range(300)])
    with desk.store.transaction() as tx:
        tx.run("UPDATE runs SET status = 'completed', ready = false WHERE workflow_id NOT LIKE '%77'")
        tx.run("ANALYZE")
        asked = Explained(tx)
        listing.list_runs(cast("Transaction", asked), wanted)
    return asked.said


class Explained:
    """A transaction that tells how it would run what it is asked."""

    def __init__(self, tx: Transaction) -> None:
        self.dialect = tx.dialect
        self.said: list[str] = []
        self._tx = tx

    def send(self, sentence: str, **params: Any) -> None:
        self._tx.send(sentence, **params)

    def run(self, sentence: str, **params: Any) -> list[Any]:
        how = "EXPLAIN" if self.dialect == "postgresql" else "EXPLAIN QUERY PLAN"
        self.said += [str(row[-1]) for row in self._tx.run(f"{how} {sentence}", **params)]
        return []


@pytest.mark.parametrize("wanted", [RunFilter(limit=0), RunFilter(page_after="nonsense")])
def test_a_senseless_filter_is_refused(desk, wanted):
    with pytest.raises(InvalidFilter):
        desk.ask(listing.list_runs, wanted)


def test_a_closed_run_can_be_deleted_and_an_open_one_not(desk):
    run = desk.running(memo={"a": 1})
    assert not desk.ask(listing.delete, run.run_id)
    assert not desk.commit(desk.closing(run, number=2))
    assert desk.ask(listing.delete, run.run_id)
    assert not desk.ask(listing.delete, run.run_id)
    assert [desk.count(table) for table in ("runs", "turns", "run_payloads")] == [0, 0, 0]


def test_the_views_show_runs_events_and_what_they_wait_for(desk):
    desk.running(ActivityScheduled(1, "1", "charge", ("\x00", "100%")), TimerStarted(2, 4e9), workflow_id="order-1", run_timeout_s=60.0)

    runs = desk.rows("SELECT workflow_id, status, turns, history_events, closed_at FROM workflow_runs")
    assert runs == [("order-1", "running", 1, 3, None)]
    events = desk.rows("SELECT workflow_id, turn, kind FROM workflow_events ORDER BY turn, position")
    assert events == [("order-1", 1, "run_started"), ("order-1", 1, "activity_scheduled"), ("order-1", 1, "timer_started")]
    assert desk.rows("SELECT type, state, attempt, worker FROM pending_activities") == [("charge", "started", 1, "me")]
    timers = desk.rows("SELECT kind, fire_at FROM pending_timers ORDER BY fire_at")
    assert [kind for kind, _ in timers] == ["run_timeout", "timer"]
    assert str(timers[1][1]).startswith("2096-10-02")
