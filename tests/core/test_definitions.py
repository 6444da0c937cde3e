"""Declaring workflows and activities: all that is wrong is told at once, when the file is imported."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import activity, workflow
from orchestrator.core.definitions import ACTIVITIES, WORKFLOWS
from orchestrator.errors import InvalidArgument, InvalidDefinition
from tests.core.twin import Twin


def test_a_class_and_a_function_are_known_by_their_names():
    @workflow.defn(name="order.v2")
    class Order:
        @workflow.run
        async def run(self) -> None: ...

        @workflow.signal(name="go", description="starts it")
        async def start(self, speed: int) -> None: ...

        @workflow.query
        def state(self) -> str:
            """The state."""
            return ""

    @workflow.defn
    async def greet(name: str) -> str:
        """Says hello."""
        return name

    definition = WORKFLOWS["order.v2"]
    assert workflow.definition_of(Order) is workflow.definition_of(Order.run) is definition
    assert (definition.signals["go"].description, definition.signals["go"].is_async) == ("starts it", True)
    assert definition.queries["state"].description == "The state."
    assert workflow.definition_of(greet) is WORKFLOWS["greet"]
    assert (greet.__name__, greet.__doc__) == ("greet", "Says hello.")
    with pytest.raises(InvalidArgument, match="is not a workflow"):
        workflow.definition_of(print)


def test_a_function_that_is_a_workflow_can_be_called_as_part_of_another():
    @workflow.defn
    async def inner(n: int) -> int:
        return n + 1

    @workflow.defn
    async def outer() -> int:
        return await inner(await inner(1))

    run = Twin(outer)
    run.start()
    assert run.result == 3


def test_all_that_is_wrong_with_a_class_is_told_at_once():
    import datetime as dt

    class Parent:
        @workflow.run
        async def run(self) -> None: ...

        @workflow.signal
        def stop(self) -> None: ...

    class Wrong(Parent):
        def __init__(self, needed: int) -> None: ...

        def stop(self) -> None: ...

        @workflow.query
        async def slow(self) -> None: ...

        @workflow.signal(name="")
        def nameless(self, *, key: int) -> None: ...

        @workflow.signal(name="twice")
        def one(self) -> None: ...

        @workflow.signal(name="twice")
        def two(self) -> None:
            dt.datetime.now()

    with pytest.raises(InvalidDefinition) as caught:
        workflow.defn(Wrong)
    for part in (
        "method run must be defined in the class itself",
        "stop is @workflow.signal in a parent; repeat the decorator here",
        "query 'slow' must not be async",
        "must not be empty",
        "wants 'key' by keyword",
        "two methods handle signal 'twice'",
        "__init__ wants arguments",
        "workflow.now()",
    ):
        assert part in caught.value.message


@pytest.mark.parametrize("target", [lambda: None, print, 5, "name"])
def test_only_classes_and_async_functions_are_workflows(target):
    with pytest.raises(InvalidDefinition, match="a class, or an async function"):
        workflow.defn(target)


def test_a_class_needs_exactly_one_async_run():
    class Nothing: ...

    class Sync:
        @workflow.run
        def run(self) -> None: ...

    with pytest.raises(InvalidDefinition, match="there are 0"):
        workflow.defn(Nothing)
    with pytest.raises(InvalidDefinition, match="must be async"):
        workflow.defn(Sync)


def test_an_init_with_arguments_must_look_like_the_run():
    class Differs:
        @workflow.init
        def __init__(self, a: int) -> None: ...

        @workflow.run
        async def run(self, a: str) -> None: ...

    with pytest.raises(InvalidDefinition, match="parameters of the run method"):
        workflow.defn(Differs)


def test_a_name_means_one_thing_in_a_process_but_a_file_may_be_imported_again():
    def declare(qualname: str) -> Any:
        async def run() -> None: ...

        run.__qualname__ = qualname
        return workflow.defn(name="contested")(run)

    declare("first")
    again = declare("first")
    assert WORKFLOWS["contested"] is again.definition
    with pytest.raises(InvalidDefinition, match="two workflows are called 'contested'"):
        declare("second")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 1001])
def test_names_are_text_that_people_can_read(name):
    async def run() -> None: ...

    with pytest.raises(InvalidArgument, match="workflow name"):
        workflow.defn(name=name)(run)


def test_activities_are_functions_with_positional_parameters():
    @activity.defn
    def sync(a: int) -> None: ...

    @activity.defn(name="other")
    async def coroutine() -> None: ...

    assert (ACTIVITIES["sync"].is_async, ACTIVITIES["other"].is_async) == (False, True)
    assert vars(sync)["__activity_definition__"] is ACTIVITIES["sync"]

    class Holder:
        def method(self) -> None: ...

    def keyword(*, a: int) -> None: ...

    declare: Any = activity.defn
    for wrong in (Holder, Holder.method, keyword, 5):
        with pytest.raises(InvalidDefinition):
            declare(wrong)


def test_workflow_calls_outside_of_a_workflow_say_so():
    assert not workflow.in_workflow()
    for call in (workflow.now, workflow.info, workflow.uuid4, lambda: workflow.start_activity("x")):
        with pytest.raises(InvalidArgument, match="can only be used inside a workflow"):
            call()
    with pytest.raises(InvalidArgument, match="can only be used inside an activity"):
        activity.heartbeat()
