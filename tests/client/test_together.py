"""Signals that are sent at once share a commit: each is there once when its call returns, and each caller hears of its own alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.delivering import Deliveries, Delivery
from orchestrator.errors import WorkflowNotFound, WorkflowNotOpen
from orchestrator.handle import Spoken, deliver_together
from orchestrator.store import documents
from schemas.history import SignalReceived

SENDERS = 16
EACH = 20


def signal(number: int) -> SignalReceived:
    return SignalReceived("item", (number,), id=str(number))


def test_whoever_comes_while_somebody_writes_is_written_with_all_who_came():
    begun, go_on = threading.Event(), threading.Event()
    batches: list[int] = []

    def write(batch):
        batches.append(len(batch))
        begun.set()
        assert go_on.wait(10)
        return [None] * len(batch)

    deliveries: Deliveries[Delivery] = Deliveries(write)
    with ThreadPoolExecutor(SENDERS) as pool:
        first = pool.submit(deliveries.deliver, Delivery("r", signal(0), "0"))
        assert begun.wait(10)
        others = [pool.submit(deliveries.deliver, Delivery("r", signal(n), str(n))) for n in range(1, SENDERS)]
        while len(deliveries._waiting) < SENDERS - 1:
            pass
        go_on.set()
        for one in (first, *others):
            one.result(10)
    assert batches == [1, SENDERS - 1]
    deliveries.deliver(Delivery("r", signal(99), "99"))
    assert batches == [1, SENDERS - 1, 1], "and then a lone one writes for itself again"


def test_what_fails_fails_for_all_who_were_written_together_and_nobody_waits_for_ever():
    def write(_batch):
        raise KeyboardInterrupt

    deliveries: Deliveries[Delivery] = Deliveries(write)
    for number in range(2):
        with pytest.raises(KeyboardInterrupt):
            deliveries.deliver(Delivery("r", signal(number), str(number)))


@pytest.mark.parametrize("group_commits", [True, False])
def test_every_signal_of_many_threads_arrives_once(client, store, group_commits):
    client._connection.settings = client._connection.settings.model_copy(update={"group_commits": group_commits})
    handles = [client.start_workflow("Order", id=f"order-{n}") for n in range(3)]
    gone = client.start_workflow("Order", id="gone")
    gone.terminate()

    def send(sender: int) -> list[str]:
        heard = []
        for number in range(EACH):
            handles[sender % 3].signal("item", sender * EACH + number)
            for wrong in (gone, client.get_handle("nobody")):
                try:
                    wrong.signal("item", 0)
                except (WorkflowNotOpen, WorkflowNotFound) as error:
                    heard.append(type(error).__name__)
        return heard

    with ThreadPoolExecutor(SENDERS) as pool:
        heard = list(pool.map(send, range(SENDERS)))
    assert heard == [["WorkflowNotOpen", "WorkflowNotFound"] * EACH] * SENDERS
    with store.transaction(readonly=True) as tx:
        arrived = tx.run("SELECT event FROM inbox ORDER BY id")
    signals = [event for (text,) in arrived if isinstance(event := documents.arrival(text), SignalReceived)]
    numbers = [event.args[0] for event in signals]
    assert sorted(numbers) == list(range(SENDERS * EACH))
    for sender in range(SENDERS):
        own = [number for number in numbers if number // EACH == sender]
        assert own == sorted(own), "those of one caller keep their order"


def test_signals_to_one_run_that_are_written_together_keep_their_order_and_a_request_id_counts_once(client, store):
    handle = client.start_workflow("Order", id="order")
    sent = [Spoken("order", signal(number), str(number), handle=handle) for number in (3, 1, 2, 1)]
    assert deliver_together(client._connection, sent) == [None] * 4
    with store.transaction(readonly=True) as tx:
        arrived = [documents.arrival(text) for (text,) in tx.run("SELECT event FROM inbox ORDER BY id")]
    assert [event.args[0] for event in arrived if isinstance(event, SignalReceived)] == [3, 1, 2]

    handle.terminate()
    told = deliver_together(client._connection, sent)
    assert [type(error) for error in told] == [WorkflowNotOpen] * 4, "each hears that it came too late"
