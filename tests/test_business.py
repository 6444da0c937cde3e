"""Your records and ours: two databases where two are named, one where one is, and a block that fails leaves nothing."""

from __future__ import annotations

import pytest
import sqlalchemy
from sqlmodel import Field, SQLModel, select

from orchestrator import business
from orchestrator import settings as settings_module
from orchestrator.settings import load
from orchestrator.store import Store


class Records(SQLModel):
    """A group of tables of its own, as an application has it."""

    metadata = sqlalchemy.MetaData()


class Booking(Records, table=True):
    order_id: str = Field(primary_key=True)


def tables(url: str) -> set[str]:
    engine = sqlalchemy.create_engine(url)
    found = set(sqlalchemy.inspect(engine).get_table_names())
    engine.dispose()
    return found


@pytest.fixture(params=["two", "one"])
def urls(request, tmp_path, sqlite_url, monkeypatch):
    """That of our store, and that of the business."""
    other = f"sqlite:///{tmp_path / 'business.db'}" if request.param == "two" else ""
    monkeypatch.setattr(settings_module, "current", lambda: load({}, database_url=sqlite_url, business_database_url=other))
    monkeypatch.setattr(business, "current", settings_module.current)
    yield sqlite_url, other or sqlite_url
    business.engine().dispose()


@pytest.mark.req("S2-02")
def test_what_belongs_to_agents_and_runs_is_in_one_database_and_your_own_records_are_where_you_say(urls):
    ours, theirs = urls
    Records.metadata.create_all(business.engine())
    with business.session() as session:
        session.add(Booking(order_id="17"))
    with business.session() as session:
        assert [row.order_id for row in session.exec(select(Booking))] == ["17"]
    engine_tables = {"agents", "runs", "turns", "inbox", "activities"}
    assert engine_tables <= tables(ours)
    assert "booking" in tables(theirs)
    if ours != theirs:
        assert tables(theirs) == {"booking"}
        assert "booking" not in tables(ours)
    Store.open(ours).dispose()


def test_a_block_that_raises_has_written_nothing(urls):
    Records.metadata.create_all(business.engine())

    def write() -> None:
        with business.session() as session:
            session.add(Booking(order_id="18"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()
    with business.session() as session:
        assert session.exec(select(Booking)).all() == []
