"""What a type checker knows of calls in workflows. mypy reads this file with the rest (`./dev lint`); an ignore that is not needed is an error.

Running it shows that the annotations do not lie.
"""

from __future__ import annotations

from typing import Any, assert_type

import pytest

from orchestrator import activity, workflow
from tests.core.twin import Twin, begun, done, grown


@activity.defn
def length(text: str) -> int:
    return len(text)


@activity.defn
async def shout(text: str = "hey") -> str:
    return text.upper()


@activity.defn
async def join(words: list[str], by: str) -> str:
    return by.join(words)


@workflow.defn
async def typed() -> list[str]:
    a = assert_type(await workflow.execute_activity(length, "four", start_to_close_timeout=5), int)
    b = assert_type(await workflow.execute_activity(shout), str)
    c = assert_type(await workflow.execute_activity(join, args=[["a", "b"], "-"]), str)
    handle = assert_type(workflow.start_activity(shout, "ho"), workflow.ActivityHandle[str])
    d = assert_type(await handle, str)
    e = assert_type(await workflow.execute_activity("by name", 1), Any)
    f = assert_type(await workflow.execute_activity("by name", result_type=list[int]), list[int])
    return [type(value).__name__ for value in (a, b, c, d, e, f)]


@workflow.defn
async def welcome(name: str) -> str:
    return f"Hello {name}"


@workflow.defn
class Purchase:
    @workflow.run
    async def run(self, number: int) -> dict[str, int]:
        return {"number": number}


@workflow.defn
async def typed_children() -> list[str]:
    a = assert_type(await workflow.execute_child_workflow(welcome, "Ada", id="a"), str)
    b = assert_type(await workflow.execute_child_workflow(Purchase.run, 1), dict[str, int])
    handle = assert_type(await workflow.start_child_workflow(welcome, "Bob"), workflow.ChildWorkflowHandle[str])
    c = assert_type(await handle, str)
    d = assert_type(await workflow.execute_child_workflow("by name", 1), Any)
    e = assert_type(await workflow.execute_child_workflow("by name", result_type=list[int]), list[int])
    f = assert_type(await workflow.execute_child_workflow(Purchase, 1), Any)
    assert_type(workflow.get_external_workflow_handle("x"), workflow.ExternalWorkflowHandle)
    return [type(value).__name__ for value in (a, b, c, d, e, f)]


async def mistakes() -> None:
    await workflow.execute_child_workflow(welcome, 4)  # type: ignore[arg-type]
    await workflow.execute_child_workflow(Purchase.run, "1")  # type: ignore[arg-type]
    await workflow.start_child_workflow(welcome, "Ada", parent_close_policy="forget")  # type: ignore[call-overload]
    await workflow.execute_activity(length, 4)  # type: ignore[arg-type]
    await workflow.execute_activity(length, "four", start_to_close_timeout="5")  # type: ignore[call-overload]
    await workflow.execute_activity(length, "four", retries=5)  # type: ignore[call-overload]
    await workflow.execute_activity(length)  # type: ignore[arg-type]


def test_results_have_the_types_that_the_checker_was_told():
    run = Twin(typed)
    run.start()
    for seq, result in enumerate([4, "HEY", "a-b", "HO", {"plain": 1}, [1, 2]], start=1):
        run.turn(done(seq, result))
    assert run.result == ["int", "str", "str", "str", "dict", "list"]


def test_results_of_children_have_the_types_that_the_checker_was_told():
    run = Twin(typed_children)
    run.start()
    for seq, result in enumerate(["A", {"number": 1}, "B", {"plain": 1}, [1, 2], {"number": 2}], start=1):
        if seq == 3:
            run.turn(begun(seq))
        run.turn(grown(seq, result))
    assert run.result == ["str", "dict", "str", "dict", "list", "dict"]


def test_what_the_checker_refuses_is_refused_outside_of_a_workflow_too():
    with pytest.raises(Exception, match="only be used inside a workflow"):
        mistakes().send(None)
