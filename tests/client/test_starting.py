"""Starting: a start that returns is committed and rung for; one that is refused has written nothing."""

from dataclasses import dataclass
from datetime import timedelta

import pytest

from orchestrator import workflow
from orchestrator.client import Client, StartRequest
from orchestrator.errors import (
    InvalidArgument,
    PayloadError,
    PayloadMismatch,
    PayloadNotSerializable,
    PayloadTooLarge,
    WorkflowAlreadyStarted,
)
from orchestrator.store import control
from schemas.history import RunStarted, SignalReceived
from schemas.runs import IdConflictPolicy, IdReusePolicy, Status
from schemas.settings import Settings


@dataclass
class Order:
    name: str
    price: int


@workflow.defn(name="starting.Orders")
class Orders:
    @workflow.run
    async def run(self, order: Order, note: str = "") -> int:
        return order.price

    @workflow.signal
    def approve(self, who: str) -> None: ...

    @workflow.query
    def status(self) -> str:
        return "waiting"


@workflow.defn
async def starting_greet(name: str) -> str:
    return f"hello {name}"


@workflow.defn
async def starting_tick() -> None: ...


def first(hand, workflow_type, queue="default"):
    (run,) = hand.claim(workflow_type, queue=queue)
    return [entry.arrival for entry in run.inbox]


def test_a_start_is_a_row_with_its_arguments_and_a_ring(client, hand, bell):
    handle = client.start_workflow(Orders.run, Order("tea", 3), id="order-1", queue="orders", memo={"by": "ada"}, priority=5)
    (started,) = first(hand, "starting.Orders", "orders")
    assert isinstance(started, RunStarted)
    assert (started.workflow_id, started.run_id, started.args) == ("order-1", handle.run_id, ({"name": "tea", "price": 3},))
    seen = handle.describe()
    assert (seen.memo, seen.priority, seen.queue, seen.status) == ({"by": "ada"}, 5, "orders", Status.RUNNING)
    assert bell.rung == ["orders"]


@pytest.mark.parametrize("target", [starting_greet, "starting_greet", "known_elsewhere"])
def test_functions_and_names_start_too_and_ids_are_fresh(client, target):
    one, two = client.start_workflow(target, "Ada"), client.start_workflow(target, "Ada")
    assert one.id != two.id
    assert one.describe().type == getattr(target, "__name__", target)


def test_no_argument_is_not_none(client, hand):
    client.start_workflow(starting_tick)
    assert first(hand, "starting_tick")[0].args == ()
    client.start_workflow("starting_any", None)
    assert first(hand, "starting_any")[0].args == (None,)


@pytest.mark.req("DC-28")
def test_an_id_that_runs_is_refused_used_or_replaced_as_asked(client):
    one = client.start_workflow(starting_tick, id="x")
    with pytest.raises(WorkflowAlreadyStarted, match="running already") as refused:
        client.start_workflow(starting_tick, id="x")
    assert refused.value.run_id == one.run_id
    assert client.start_workflow(starting_tick, id="x", id_conflict_policy=IdConflictPolicy.USE_EXISTING).run_id == one.run_id
    two = client.start_workflow(starting_tick, id="x", id_conflict_policy=IdConflictPolicy.TERMINATE_EXISTING)
    assert one.describe().status is Status.TERMINATED
    assert two.describe().status is Status.RUNNING


def test_a_closed_id_may_be_used_again_as_the_policy_says(client, hand):
    client.start_workflow(starting_tick, id="x")
    hand.complete(hand.claim("starting_tick")[0])
    for policy in (IdReusePolicy.REJECT_DUPLICATE, IdReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY):
        with pytest.raises(WorkflowAlreadyStarted, match=f"is completed.*{policy}"):
            client.start_workflow(starting_tick, id="x", id_reuse_policy=policy)
    client.start_workflow(starting_tick, id="x").terminate()
    client.start_workflow(starting_tick, id="x", id_reuse_policy=IdReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY)


def test_start_with_signal_begins_a_run_with_it_or_gives_it_to_the_open_one(client, hand, bell):
    one = client.start_workflow(Orders.run, Order("tea", 3), id="x", start_signal=Orders.approve, start_signal_args=["ada"])
    two = client.start_workflow(Orders.run, Order("tea", 3), id="x", queue="other", start_signal="approve", start_signal_args=["bob"])
    assert two.run_id == one.run_id
    arrivals = first(hand, "starting.Orders")
    assert [(a.name, a.args) for a in arrivals if isinstance(a, SignalReceived)] == [("approve", ("ada",)), ("approve", ("bob",))]
    assert bell.rung == ["default", "default"]


def test_a_delayed_start_exists_at_once_and_is_not_rung_for(client, hand, bell):
    handle = client.start_workflow(starting_tick, start_delay=timedelta(hours=1), run_timeout=5, execution_timeout=timedelta(days=1))
    assert handle.describe().deadline_at is not None
    assert hand.claim("starting_tick") == []
    assert bell.rung == []


def test_many_start_in_one_transaction_with_one_ring_a_queue(client, bell):
    requests = [StartRequest(starting_greet, args=["Ada"], id=f"bulk-{n}", queue="a" if n % 2 else "b") for n in range(50)]
    handles = client.start_workflows(requests)
    assert [handle.id for handle in handles] == [request.id for request in requests]
    assert client.count_workflows("id^=bulk-") == 50
    assert sorted(bell.rung) == ["a", "b"]


def test_of_many_all_start_or_none(client, bell):
    client.start_workflow(starting_tick, id="taken")
    bell.rung.clear()
    with pytest.raises(WorkflowAlreadyStarted, match="taken"):
        client.start_workflows([StartRequest(starting_tick, id="new"), StartRequest(starting_tick, id="taken")])
    assert client.count_workflows() == 1
    assert bell.rung == []


@pytest.mark.parametrize(
    "call,error,says",
    [
        (lambda c: c.start_workflow(starting_greet), PayloadMismatch, "'name'|1 argument"),
        (lambda c: c.start_workflow(starting_greet, args=["a", "b"]), PayloadMismatch, "starting_greet"),
        (lambda c: c.start_workflow(starting_greet, 5), PayloadMismatch, "str"),
        (lambda c: c.start_workflow(Orders.run, {"name": "tea"}), PayloadMismatch, "price"),
        (lambda c: c.start_workflow("starting_greet", 5), PayloadMismatch, "str"),
        (lambda c: c.start_workflow("unknown", object()), PayloadNotSerializable, "object"),
        (lambda c: c.start_workflow("unknown", args=["x" * 3_000_000]), PayloadTooLarge, "2,097,152"),
        (lambda c: c.start_workflow("unknown", memo={"k": {1, object()}}), PayloadError, "memo"),
        (lambda c: c.start_workflow(starting_greet, "a", args=["b"]), InvalidArgument, "not both"),
        (lambda c: c.start_workflow("unknown", args="abc"), InvalidArgument, "list"),
        (lambda c: c.start_workflow(""), InvalidArgument, "empty"),
        (lambda c: c.start_workflow(print), InvalidArgument, "not a workflow"),
        (lambda c: c.start_workflow(starting_tick, id=""), InvalidArgument, "empty"),
        (lambda c: c.start_workflow(starting_tick, id="x" * 2_000), InvalidArgument, "2,000 characters"),
        (lambda c: c.start_workflow(starting_tick, id="a\nb"), InvalidArgument, "control character"),
        (lambda c: c.start_workflow(starting_tick, queue=" "), InvalidArgument, "queue"),
        (lambda c: c.start_workflow(starting_tick, run_timeout=0), InvalidArgument, "run_timeout"),
        (lambda c: c.start_workflow(starting_tick, start_delay=-1), InvalidArgument, "start_delay"),
        (lambda c: c.start_workflow(starting_tick, priority="high"), InvalidArgument, "priority"),
        (lambda c: c.start_workflow(starting_tick, id_reuse_policy="sometimes"), InvalidArgument, "reject_duplicate"),
        (lambda c: c.start_workflow(starting_tick, start_signal_args=[1]), InvalidArgument, "without start_signal"),
        (lambda c: c.start_workflow(Orders.run, Order("t", 1), start_signal=Orders.approve), PayloadMismatch, "approve"),
        (lambda c: c.start_workflow(Orders.run, Order("t", 1), start_signal=Orders.status), InvalidArgument, "no signal"),
        (lambda c: c.start_workflow(starting_tick, colour="red"), TypeError, "colour"),
    ],
)
def test_what_cannot_start_says_why_and_writes_nothing(client, bell, call, error, says):
    with pytest.raises(error, match=says):
        call(client)
    assert client.count_workflows() == 0
    assert bell.rung == []


def test_the_payload_limit_is_a_setting(open_client):
    client = open_client(settings=Settings(payload_bytes_max=100))
    with pytest.raises(PayloadTooLarge):
        client.start_workflow(starting_greet, "more than a hundred characters " * 5)


def test_a_newcomer_has_nothing_to_do(tmp_path, bell):
    settings = Settings(home=tmp_path / "new" / "home", broker_url="memory://")
    with Client(settings=settings, bell=bell) as client:
        client.start_workflow(starting_tick, id="x")
        assert (tmp_path / "new" / "home" / "orchestrator.db").is_file()
        assert client.count_workflows() == 1
    assert client.count_workflows() == 1, "a closed client opens again"
    client.close()


def test_questions_of_a_codec_stay_out_of_search_attributes(open_client, store):
    class Reverse:
        name = "reverse"

        def encode(self, text):
            return text[::-1]

        def decode(self, stored):
            return stored[::-1]

    client = open_client(codec=Reverse())
    seen = client.start_workflow(starting_greet, "Ada", memo={"m": 1}, search_attributes={"who": "Ada"}).describe()
    assert seen.search_attributes == {"who": "Ada"}
    assert "$codec" in seen.memo["m"]
    with store.transaction() as tx:
        assert control.dead_letters(tx) == []
