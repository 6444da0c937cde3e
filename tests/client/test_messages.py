"""Speaking to a run: what is sent is stored once, and to a run that can still receive it."""

from dataclasses import replace

import pytest

from orchestrator import workflow
from orchestrator.errors import InvalidArgument, PayloadMismatch, PayloadNotSerializable, QueryFailed, WorkflowNotFound, WorkflowNotOpen
from orchestrator.store import control
from schemas.history import CancelRequested, Failure, RunTerminated, SignalReceived
from schemas.runs import Status


@workflow.defn(name="messages.Box")
class Box:
    @workflow.run
    async def run(self) -> int:
        return 1

    @workflow.signal
    def put(self, thing: int) -> None: ...

    @workflow.signal(name="shut")
    def close_it(self) -> None: ...

    @workflow.query
    def count(self, factor: int = 1) -> int:
        return factor


def received(hand):
    (run,) = hand.claim("messages.Box")
    return [entry.arrival for entry in run.inbox][1:]


def answer(store, name, **given):
    """As a worker would, from inside the ring."""
    with store.transaction() as tx:
        (question,) = control.questions(tx, ["default"], ["messages.Box"], 10)
        assert question.name == name
        control.answer(tx, [replace(question, answered=True, **given)])
    return question


def test_signals_by_method_and_by_name_arrive_in_order_and_ring(client, hand, bell):
    handle = client.start_workflow(Box.run)
    handle.signal(Box.put, 1)
    handle.signal("put", args=[2])
    handle.signal(Box.close_it)
    client.get_handle(handle.id).signal("anything", {"at": "all"})
    assert [(a.name, a.args) for a in received(hand)] == [("put", (1,)), ("put", (2,)), ("shut", ()), ("anything", ({"at": "all"},))]
    assert bell.rung == ["default"] * 5


def test_a_signal_sent_twice_with_one_request_id_arrives_once(client, hand):
    handle = client.start_workflow(Box.run)
    for _ in range(2):
        handle.signal(Box.put, 1, request_id="r1")
    assert received(hand) == [SignalReceived("put", (1,), id="r1")]


@pytest.mark.parametrize(
    "send,error,says",
    [
        (lambda h: h.signal(Box.put), PayloadMismatch, "thing|1 argument"),
        (lambda h: h.signal("put", "three"), PayloadMismatch, "int"),
        (lambda h: h.signal(Box.put, object()), PayloadNotSerializable, "object"),
        (lambda h: h.signal(Box.count), InvalidArgument, "no signal"),
        (lambda h: h.signal(""), InvalidArgument, "empty"),
        (lambda h: h.signal(Box.put, 1, args=[2]), InvalidArgument, "not both"),
        (lambda h: h.signal(Box.put, 1, request_id=""), InvalidArgument, "request id"),
        (lambda h: h.query(Box.put), InvalidArgument, "no query"),
        (lambda h: h.query(Box.count, "two"), PayloadMismatch, "int"),
    ],
)
def test_what_cannot_be_sent_says_why_and_sends_nothing(client, hand, bell, send, error, says):
    handle = client.start_workflow(Box.run)
    with pytest.raises(error, match=says):
        send(handle)
    assert received(hand) == []
    assert bell.rung == ["default"]


def test_nothing_is_sent_to_a_closed_run(client, hand):
    handle = client.start_workflow(Box.run, id="x")
    hand.complete(hand.claim("messages.Box")[0])
    for send in (lambda: handle.signal(Box.put, 1), handle.cancel, handle.terminate):
        with pytest.raises(WorkflowNotOpen, match="'x' is completed"):
            send()


def test_nobody_knows_an_unknown_id(client):
    handle = client.get_handle("nowhere")
    for call in (lambda: handle.signal("s"), handle.cancel, handle.terminate, handle.describe, handle.history, handle.pending_activities):
        with pytest.raises(WorkflowNotFound, match="nowhere"):
            call()
    for call in (handle.result, lambda: handle.query("q")):
        with pytest.raises(WorkflowNotFound, match="nowhere"):
            call()
    started = client.start_workflow(Box.run, id="x")
    with pytest.raises(WorkflowNotFound, match="other-run"):
        client.get_handle("x", "other-run").describe()
    assert client.get_handle("x", started.run_id).describe().run_id == started.run_id
    with pytest.raises(InvalidArgument):
        client.get_handle("")


def test_cancel_is_a_request_and_terminate_an_end(client, hand):
    handle = client.start_workflow(Box.run)
    handle.cancel("no longer wanted")
    assert received(hand) == [CancelRequested("no longer wanted")]
    handle.terminate("enough")
    assert handle.describe().status is Status.TERMINATED
    assert handle.history()[-1].commands == (RunTerminated("enough"),)
    assert handle.pending_activities() == []


def test_a_message_follows_the_run_that_continued_as_new_but_not_from_a_pinned_handle(client, hand):
    handle = client.start_workflow(Box.run, id="x")
    hand.continue_as_new(hand.claim("messages.Box")[0], "second")
    handle.signal(Box.put, 7)
    assert received(hand) == [SignalReceived("put", (7,), id=received_id(handle))]
    assert handle.describe().run_id == "second"
    with pytest.raises(WorkflowNotOpen, match="continued as new"):
        client.get_handle("x", handle.run_id).signal(Box.put, 7)


def received_id(handle):
    """The request id that the client made up."""
    with handle._connection.store().transaction(readonly=True) as tx:
        return tx.run("SELECT dedup FROM inbox WHERE dedup IS NOT NULL")[0][0]


def test_a_query_is_answered_by_whoever_answers_the_bell(client, store, bell):
    handle = client.start_workflow(Box.run)
    bell.ring = lambda queue: answer(store, "count", answer=42)
    assert handle.query(Box.count) == 42
    assert handle.query("count", 2) == 42


def test_a_query_that_fails_says_why(client, store, bell):
    handle = client.start_workflow(Box.run)
    bell.ring = lambda queue: answer(store, "count", failure=Failure(kind="application", message="no such thing", type="KeyError"))
    with pytest.raises(QueryFailed, match="no such thing") as failed:
        handle.query(Box.count)
    assert getattr(failed.value.__cause__, "type", "") == "KeyError"


def test_a_query_that_nobody_answers_does_not_wait_for_ever(client):
    with pytest.raises(QueryFailed, match="no worker answered query 'count'"):
        client.start_workflow(Box.run).query(Box.count, timeout=0.02)
