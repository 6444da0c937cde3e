"""Lists and views: pages by key, and SQL that people can rely on."""

from __future__ import annotations

from itertools import chain

import pytest

from orchestrator.errors import InvalidFilter
from orchestrator.store import listing
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
