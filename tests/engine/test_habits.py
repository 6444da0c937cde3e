"""Workflows that are functions start by Celery's habit: `delay`, `apply_async`, `AsyncResult`; on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, assert_type
from weakref import WeakKeyDictionary

import pytest
from celery import Celery, current_app

from orchestrator import AsyncResult, workflow
from orchestrator.celery import _KNOWN as KNOWN
from orchestrator.celery import Orchestrator
from orchestrator.core import definitions
from orchestrator.core.definitions import Promised
from orchestrator.errors import InvalidArgument, NonDeterministicCall, PayloadError, SettingsError, WorkflowFailure, WorkflowNotFound
from orchestrator.results import RunResult
from schemas.runs import Status
from tests.engine.conftest import WAIT_MAX_S, House


@workflow.defn
async def greet_by_habit(name: str, greeting: str = "Hello") -> str:
    return f"{greeting} {name}"


@workflow.defn(name="habits.again")
async def again(left: int) -> str:
    if left:
        workflow.continue_as_new(left - 1)
    return "done"


@pytest.fixture
def shop(house: House, monkeypatch: pytest.MonkeyPatch) -> Iterator[Orchestrator]:
    """Celery's current application, whose runs the workers of the house take."""
    before = current_app._get_current_object()  # type: ignore[attr-defined] # the way behind Celery's proxy
    alone: WeakKeyDictionary[Celery, Orchestrator] = WeakKeyDictionary()
    monkeypatch.setattr("orchestrator.celery._KNOWN", alone)
    orchestrator = Orchestrator(Celery("shop", broker="memory://"), settings=house.settings)
    orchestrator.__dict__ |= {"broker": house, "store": house.store}
    yield orchestrator
    before.set_current()
    KNOWN.update(alone)  # they have connections, which are closed when the process ends


def test_delay_starts_a_run_and_get_waits_for_its_result(shop: Orchestrator, house: House) -> None:
    house.worker(shop.settings.default_queue)
    started = assert_type(greet_by_habit.delay("Ada"), Promised[str])
    assert started.get(timeout=WAIT_MAX_S) == "Hello Ada"
    assert started.ready()
    assert greet_by_habit.delay("Ada", greeting="Good night").get(timeout=WAIT_MAX_S) == "Good night Ada"
    found = AsyncResult(started.id)
    assert (found.state, found.successful(), found.failed(), found.get()) == ("SUCCESS", True, False, "Hello Ada")
    assert str(found) == started.id


def test_apply_async_has_celerys_options(shop: Orchestrator, house: House) -> None:
    started = greet_by_habit.apply_async(["Ada"], {"greeting": "Hi"}, id="greeting-1", queue="later", countdown=3600, priority=3)
    assert isinstance(started, RunResult)
    description = started.handle.describe()
    assert (description.workflow_id, description.queue, description.priority) == ("greeting-1", "later", 3)
    assert (started.state, started.ready()) == ("PENDING", False)
    started.revoke(terminate=True)
    assert (started.state, started.failed()) == ("REVOKED", True)
    with pytest.raises(WorkflowFailure):
        started.get(timeout=1)


def test_a_chain_of_runs_is_one_result(shop: Orchestrator, house: House) -> None:
    house.worker(shop.settings.default_queue)
    started = again.delay(2)
    assert started.get(timeout=WAIT_MAX_S) == "done"
    found = AsyncResult(started.id)
    assert found.handle.describe().status is Status.COMPLETED
    assert found.state == "SUCCESS"


def test_wrong_arguments_are_told_at_the_call_and_start_nothing(shop: Orchestrator) -> None:
    wrong: Any = greet_by_habit
    for args, kwargs in (((), {}), (("Ada", "Hi", 3), {}), (("Ada",), {"loudly": True})):
        with pytest.raises(InvalidArgument, match="greet_by_habit"):
            wrong.delay(*args, **kwargs)
    with pytest.raises(PayloadError):
        wrong.delay(object())
    assert shop.client.count_workflows() == 0
    with pytest.raises(WorkflowNotFound, match="result backend"):
        AsyncResult("nothing")


def test_without_an_application_one_sentence_says_so(shop: Orchestrator, monkeypatch: pytest.MonkeyPatch) -> None:
    Celery("stranger").set_current()
    assert greet_by_habit.delay("Ada").id, "there is only one of ours"
    Orchestrator(Celery("another", broker="memory://", set_as_current=False), settings=shop.settings)
    with pytest.raises(SettingsError, match="several applications"):
        greet_by_habit.delay("Ada")
    monkeypatch.setattr("orchestrator.celery._KNOWN", WeakKeyDictionary())
    with pytest.raises(SettingsError, match=r"no application of ours.*Orchestrator\(app\).*Client\(\)"):
        greet_by_habit.delay("Ada")
    monkeypatch.setattr(definitions, "HABITS", [])
    with pytest.raises(SettingsError, match=r"Orchestrator\(app\).*Client\(\)"):
        greet_by_habit.delay("Ada")


def test_in_a_workflow_the_right_call_is_named(shop: Orchestrator, house: House) -> None:
    @workflow.defn(name="habits.sly")
    async def sly() -> str:
        try:
            greet_by_habit.delay("Ada")
        except NonDeterministicCall as error:
            return str(error)
        return "started"

    house.worker()
    assert "workflow.execute_child_workflow(greet_by_habit" in house.run(sly)
