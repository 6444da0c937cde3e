"""A caller's own session: the run exists if and only if the caller's rows do, and the bell rings after the commit."""

import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from orchestrator import workflow
from orchestrator.errors import InvalidArgument, WorkflowAlreadyStarted, WorkflowNotFound


@workflow.defn
async def sessions_tick() -> None: ...


@pytest.fixture
def engine(database_url, store):
    made = sqlalchemy.create_engine(database_url)
    with made.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE shop_orders (name TEXT)"))
    yield made
    with made.begin() as connection:
        connection.execute(sqlalchemy.text("DROP TABLE shop_orders"))
    made.dispose()


def orders(engine):
    with engine.connect() as connection:
        return [name for (name,) in connection.execute(sqlalchemy.text("SELECT name FROM shop_orders"))]


def add(session, name):
    session.execute(sqlalchemy.text("INSERT INTO shop_orders VALUES (:name)"), {"name": name})


def test_a_committed_session_has_both_and_rings_then(client, engine, bell, hand):
    with Session(engine) as session:
        add(session, "tea")
        handle = client.start_workflow(sessions_tick, id="order-tea", session=session)
        assert bell.rung == []
        session.commit()
        assert bell.rung == ["default"]
        session.commit()
    assert bell.rung == ["default"]
    assert orders(engine) == ["tea"]
    hand.complete(hand.claim("sessions_tick")[0])
    assert handle.result(timeout=10) is None


def test_a_rolled_back_session_has_neither_and_does_not_ring(client, engine, bell):
    with Session(engine) as session:
        add(session, "tea")
        handle = client.start_workflow(sessions_tick, id="order-tea", session=session)
        session.rollback()
        add(session, "coffee")
        session.commit()
    with Session(engine) as session:
        client.start_workflow(sessions_tick, id="order-milk", session=session)
    assert bell.rung == []
    assert orders(engine) == ["coffee"]
    assert client.count_workflows() == 0
    with pytest.raises(WorkflowNotFound):
        handle.result()


def test_a_savepoint_rings_when_all_is_committed(client, engine, bell):
    with Session(engine) as session:
        add(session, "tea")
        with session.begin_nested():
            client.start_workflow(sessions_tick, id="a", session=session, queue="q")
        assert bell.rung == []
        savepoint = session.begin_nested()
        client.start_workflow(sessions_tick, id="b", session=session, queue="q")
        savepoint.rollback()
        session.commit()
    assert bell.rung == ["q"]
    assert [run.workflow_id for run in client.list_workflows()] == ["a"]


def test_a_refused_start_leaves_the_session_usable(client, engine):
    client.start_workflow(sessions_tick, id="a")
    with Session(engine) as session:
        add(session, "tea")
        with pytest.raises(WorkflowAlreadyStarted):
            client.start_workflow(sessions_tick, id="a", session=session)
        session.commit()
    assert orders(engine) == ["tea"]


def test_what_is_no_session_of_this_database_is_refused(client, store, tmp_path):
    with pytest.raises(InvalidArgument, match="Session"):
        client.start_workflow(sessions_tick, session="session")
    if store.dialect != "sqlite":
        other = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
        with Session(other) as session, pytest.raises(InvalidArgument, match="cannot span"):
            client.start_workflow(sessions_tick, session=session)
        other.dispose()
