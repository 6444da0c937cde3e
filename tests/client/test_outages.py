"""The world outside: what is down is said in one sentence, what comes back in time is not noticed."""

from contextlib import contextmanager

import pytest

from orchestrator import connection, dispatch, workflow
from orchestrator.client import Client
from orchestrator.errors import BrokerUnavailable, DatabaseNotMigrated, DatabaseUnavailable, WorkflowNotOpen
from orchestrator.store import Store
from schemas.history import SignalReceived
from schemas.runs import IdConflictPolicy, Status


@workflow.defn
async def outages_tick() -> None: ...


class Flaky:
    """A store whose next transactions are cut, before or after their commit."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.cuts: list[str] = []

    def __getattr__(self, name):
        return getattr(self.store, name)

    @contextmanager
    def transaction(self, **options):
        cut = self.cuts.pop(0) if self.cuts and not options.get("readonly") else ""
        if cut == "before":
            raise DatabaseUnavailable("the server went away")
        with self.store.transaction(**options) as tx:
            yield tx
        if cut == "after":
            raise DatabaseUnavailable("the server went away as it committed")


@pytest.fixture
def flaky(store):
    return Flaky(store)


@pytest.fixture
def cut_client(open_client, flaky):
    return open_client(store=flaky)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(connection, "RETRY_MAX_S", 0.05)


def test_a_start_whose_answer_was_lost_is_one_start(cut_client, flaky, hand, bell):
    flaky.cuts = ["before", "after"]
    handle = cut_client.start_workflow(outages_tick, id="x", start_signal="go")
    (run,) = hand.claim("outages_tick")
    assert run.run_id == handle.run_id
    assert [type(entry.arrival).__name__ for entry in run.inbox] == ["RunStarted", "SignalReceived"]
    assert bell.rung == ["default"]
    flaky.cuts = ["after"]
    again = cut_client.start_workflow(outages_tick, id="x", id_conflict_policy=IdConflictPolicy.TERMINATE_EXISTING)
    assert again.describe().status is Status.RUNNING
    assert cut_client.count_workflows() == 2


def test_a_signal_whose_answer_was_lost_is_one_signal(cut_client, flaky, hand):
    handle = cut_client.start_workflow(outages_tick, id="x")
    flaky.cuts = ["after"]
    handle.signal("go")
    (run,) = hand.claim("outages_tick")
    assert [entry.arrival.name for entry in run.inbox if isinstance(entry.arrival, SignalReceived)] == ["go"]


def test_a_termination_whose_answer_was_lost_is_no_error(cut_client, flaky):
    handle = cut_client.start_workflow(outages_tick, id="x")
    flaky.cuts = ["before", "after"]
    handle.terminate()
    with pytest.raises(WorkflowNotOpen):
        handle.terminate()


def test_an_outage_that_lasts_is_told(cut_client, flaky, impatient, bell):
    flaky.cuts = ["before"] * 10_000
    with pytest.raises(DatabaseUnavailable, match="went away"):
        cut_client.start_workflow(outages_tick)
    assert bell.rung == []


@pytest.mark.parametrize(
    "url,says",
    [
        ("postgresql://nobody:hush@127.0.0.1:1/none", "cannot be used"),
        ("sqlite:////no/such/folder/x.db", "folder"),
        ("mysql://localhost/x", "not supported"),
        ("nonsense", "cannot be read"),
    ],
)
def test_a_wrong_url_is_told_without_its_password(url, says, bell, impatient):
    with Client(url, "memory://", bell=bell) as client, pytest.raises(DatabaseUnavailable, match=says) as told:
        client.start_workflow(outages_tick)
    assert "hush" not in str(told.value)


def test_a_database_of_ones_own_is_not_migrated_unasked(empty_database_url, bell):
    with Client(empty_database_url, "memory://", bell=bell) as client, pytest.raises(DatabaseNotMigrated, match="orchestrator db upgrade"):
        client.start_workflow(outages_tick)


def test_a_dead_broker_fails_no_start(database_url, store, monkeypatch):
    monkeypatch.setattr(dispatch, "FLUSH_MAX_S", 0.05)
    with Client(database_url, "redis://127.0.0.1:1/0") as client:
        handle = client.start_workflow(outages_tick, id="x")
        handle.signal("go")
        assert handle.describe().status is Status.RUNNING


def test_a_url_that_names_no_broker_is_told_before_anything_is_written(database_url, store):
    with Client(database_url, "carrier-pigeon://guest:hush@loft") as client:
        with pytest.raises(BrokerUnavailable, match="carrier-pigeon") as told:
            client.start_workflow(outages_tick)
        assert "hush" not in str(told.value)
        assert client.count_workflows() == 0
