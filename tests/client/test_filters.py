"""Filters as people type them: what is not understood is an error that says how to write it."""

from datetime import UTC, datetime

import pytest

from orchestrator import workflow
from orchestrator.errors import InvalidArgument, InvalidFilter
from orchestrator.filters import parse, run_filter
from schemas.runs import RunFilter, Status


@workflow.defn
async def filters_a() -> None: ...


@workflow.defn
async def filters_b() -> None: ...


@pytest.mark.parametrize(
    "text,meaning",
    [
        ("", RunFilter()),
        ("status=failed", RunFilter(status=(Status.FAILED,))),
        ("status=Failed,timed_out type=A,B", RunFilter(status=(Status.FAILED, Status.TIMED_OUT), type=("A", "B"))),
        ("queue=orders stuck", RunFilter(queue=("orders",), stuck=True)),
        ("stuck=no  id^=order-", RunFilter(stuck=False, id_prefix="order-")),
        ('id^="order 1"', RunFilter(id_prefix="order 1")),
        ("started>2026-01-31", RunFilter(started_after=datetime(2026, 1, 31, tzinfo=UTC).timestamp())),
        ("started<2026-01-31T12:00:00+01:00", RunFilter(started_before=datetime(2026, 1, 31, 11, tzinfo=UTC).timestamp())),
    ],
)
def test_a_text_means_a_filter(text, meaning):
    assert parse(text) == meaning


@pytest.mark.parametrize(
    "text,says",
    [
        ("status=broken", "'broken' does not exist; there are running"),
        ("state=failed", "did you mean|there are"),
        ("statsu=failed", "did you mean 'status'"),
        ("failed", "no 'failed'"),
        ("status", "write it as status="),
        ("id=x", r"write it as id\^="),
        ("type=", "value is missing"),
        ("type=a,", "names"),
        ("type=a type=b", "before"),
        ("stuck=maybe", "yes or no"),
        ("started>yesterday", "no time"),
        ("started>=2026-01-31", "started>, started<"),
        ('id^="open', "cannot be read"),
        ("; DROP TABLE runs", "no term"),
    ],
)
def test_a_text_without_meaning_is_refused(text, says):
    with pytest.raises(InvalidFilter, match=says):
        parse(text)


@pytest.mark.parametrize(
    "fields", [{"colour": "red"}, {"limit": 0}, {"limit": "many"}, {"status": 5}, {"started_after": "soon"}, {"id_prefix": 3}]
)
def test_fields_without_meaning_are_refused(fields):
    with pytest.raises(InvalidFilter):
        run_filter(None, **fields)


def test_fields_narrow_what_a_text_or_record_says():
    assert run_filter("status=failed", type="A") == RunFilter(status=(Status.FAILED,), type=("A",))
    assert run_filter(RunFilter(type=("A",)), type=["B"], stuck=True) == RunFilter(type=("B",), stuck=True)
    assert run_filter(status=Status.FAILED, started_after=datetime(1970, 1, 2, tzinfo=UTC)) == RunFilter(
        status=(Status.FAILED,), started_after=86400.0
    )
    with pytest.raises(InvalidFilter):
        run_filter(5)  # type: ignore[arg-type] # the point


def test_a_list_goes_over_all_pages_newest_first(client):
    for n in range(7):
        client.start_workflow(filters_a if n % 2 else filters_b, id=f"x-{n}")
    assert [run.workflow_id for run in client.list_workflows(page_after=None)] == [f"x-{n}" for n in reversed(range(7))]
    wanted = RunFilter(limit=2)
    assert [run.workflow_id for run in client.list_workflows(wanted)] == [f"x-{n}" for n in reversed(range(7))]
    assert [run.workflow_id for run in client.list_workflows(wanted, limit=3)] == ["x-6", "x-5", "x-4"]
    assert {run.type for run in client.list_workflows("type=filters_a")} == {"filters_a"}
    assert client.count_workflows("type=filters_a") == 3
    assert client.count_workflows(status="running", id_prefix="x-") == 7
    assert client.count_workflows("status=failed") == 0
    page = client.page_workflows(wanted)
    assert client.page_workflows(wanted, page_after=page.next_page).runs[0].workflow_id == "x-4"


def test_a_wrong_filter_is_refused_before_the_first_run_is_asked_for(client):
    with pytest.raises(InvalidFilter):
        client.list_workflows("status=broken")
    with pytest.raises(InvalidArgument):
        client.list_workflows(limit=0)
