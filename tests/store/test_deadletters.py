"""Dead letters that go back: once, into a run that still waits for them, and past a worker that has their failure in hand."""

from __future__ import annotations

import pytest

from orchestrator import dispatch
from orchestrator.store import activities, control, runs
from schemas.history import ActivityCompleted, ActivityFailed, ActivityScheduled, Failure, RunTerminated
from schemas.runs import ActivityKey, DeadLetter, Resolved

KILLED = Failure("worker_lost", "it killed three workers", non_retryable=True)


class Bells:
    def __init__(self) -> None:
        self.rung: list[str] = []
        self.forwarded: list[tuple[str, str]] = []

    def ring(self, queue):
        self.rung.append(queue)

    def forward(self, queue, body, *, content_type, headers):
        self.forwarded.append((queue, body))


@pytest.fixture
def bells():
    return Bells()


@pytest.fixture
def replay(store, bells):
    return lambda letter_id: dispatch.replay_letter(store, bells, letter_id)


def set_aside(desk, step=None):
    """A run whose activity is a dead letter, and the letter."""
    step = step or ActivityScheduled(1, "1", "charge", args=("5 EUR",), priority=3, schedule_to_close_s=60.0)
    run = desk.running(step)
    with desk.store.transaction() as tx:
        tx.run("UPDATE activities SET losses = 2")
    desk.settle(Resolved(ActivityKey(run.run_id, 1, 1), ActivityFailed(1, KILLED, "non_retryable_failure", 1), dead_letter=True))
    (letter,) = desk.ask(control.dead_letters)
    return run, letter


def test_an_activity_whose_run_still_waits_gets_a_fresh_attempt(desk, bells, replay):
    run, letter = set_aside(desk)
    replayed = replay(letter.id)
    assert replayed.done
    assert "attempt 2" in replayed.told
    assert bells.rung == ["orders"]
    (pending,) = desk.ask(activities.claim, worker="me", queues=["orders"], types=["charge"], batch_max=9)
    assert pending.key == ActivityKey(run.run_id, 1, 2)
    assert pending.scheduled == ActivityScheduled(1, "1", "charge", args=("5 EUR",), priority=3, schedule_to_close_s=60.0)
    assert (pending.losses, pending.workflow_id, pending.workflow_type) == (0, f"w-{run.run_id}", "Order")
    assert desk.ask(control.dead_letters) == []
    desk.settle(Resolved(pending.key, ActivityCompleted(1, "paid", 2)))
    (claimed,) = desk.claim()
    assert [entry.arrival for entry in claimed.inbox] == [ActivityCompleted(1, "paid", 2)], "the failure never came"


def test_replaying_twice_is_replaying_once(desk, replay):
    _, letter = set_aside(desk)
    assert replay(letter.id).done
    again = replay(letter.id)
    assert again.done
    assert "already" in again.told
    assert desk.count("activities") == 1


def test_a_worker_that_has_the_failure_in_hand_loses_its_turn(desk, rival, replay):
    run, letter = set_aside(desk)
    (claimed,) = rival.claim()
    assert replay(letter.id).done
    assert rival.commit(rival.closing(claimed)) == {run.run_id}
    assert desk.count("activities") == 1


def test_a_run_that_has_gone_on_is_left_alone(desk, replay):
    run, letter = set_aside(desk)
    (claimed,) = desk.claim()
    desk.commit(desk.turn(claimed))
    refused = replay(letter.id)
    assert not refused.done
    assert f"workflow w-{run.run_id} has gone on without it" in refused.told
    desk.ask(runs.close_from_outside, run.run_id, RunTerminated())
    refused = replay(letter.id)
    assert not refused.done
    assert "is terminated. Start it anew: orchestrator workflow start Order" in refused.told
    assert [kept.id for kept in desk.ask(control.dead_letters)] == [letter.id]


def test_a_celery_task_goes_to_its_own_queue_and_is_published_by_beat(desk, bells, replay):
    run = desk.start()
    (claimed,) = desk.claim()
    desk.commit(desk.turn(claimed, ActivityScheduled(1, "1", "mail", task=True), queue="mail"))
    desk.settle(Resolved(ActivityKey(run, 1, 1), ActivityFailed(1, KILLED, "non_retryable_failure", 1), dead_letter=True))
    (letter,) = desk.ask(control.dead_letters)
    assert replay(letter.id).done
    assert bells.rung == ["orders"]
    (pending,) = desk.ask(activities.to_publish, batch_max=9)
    assert (pending.queue, pending.key.attempt) == ("mail", 2)


def test_a_message_goes_back_to_its_queue(desk, bells, replay):
    whole = {"queue": "work", "content_type": "application/json", "headers": {}, "body": "[1]"}
    for name, document in (("whole", whole), ("cut", {**whole, "cut_off": True}), ("line", {"agent_id": "a", "line": "x"}), ("odd", None)):
        desk.ask(control.add_dead_letter, DeadLetter(name, "message", "why", 0.0, None, None, document))
    assert replay("whole").done
    assert bells.forwarded == [("work", "[1]")]
    for name in ("cut", "line", "odd"):
        assert not replay(name).done
    assert {letter.id for letter in desk.ask(control.dead_letters)} == {"cut", "line", "odd"}
    assert "no such letter" in replay("whole").told
