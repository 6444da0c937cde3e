"""What leaves the code decides how the run ends, or that its turn is tried again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator import workflow
from orchestrator.errors import ApplicationError, CancelledError, FailureError, InvalidArgument, NonDeterministicCall, PayloadError
from tests.core.twin import Twin, brief, done, signal


class OutOfStock(ApplicationError):
    """There is none left."""


def raising(error: BaseException, **options: Any) -> Any:
    @workflow.defn(name="raising", **options)
    async def fails() -> None:
        raise error

    return fails


@pytest.mark.parametrize(
    "error, kind, name",
    [
        (ValueError("no"), "application", "ValueError"),
        (OutOfStock("none left"), "application", "OutOfStock"),
        (ApplicationError("no", type="Custom", non_retryable=True), "application", "Custom"),
        (CancelledError(), "canceled", ""),
        (asyncio.CancelledError(), "canceled", ""),
        (TimeoutError("slow"), "application", "TimeoutError"),
        (InvalidArgument("wrong"), "application", "InvalidArgument"),
        (PayloadError("wrong"), "application", "PayloadError"),
        (SystemExit(2), "application", "SystemExit"),
    ],
)
def test_an_exception_fails_the_run_by_default(error, kind, name):
    run = Twin(raising(error), replayed=False)
    assert brief(run.start()) == ["run_failed"]
    assert (run.failure.kind, run.failure.type) == (kind, name)


def test_the_failure_tells_the_message_the_place_and_the_causes():
    @workflow.defn
    async def fails() -> None:
        try:
            raise KeyError("a")  # noqa: TRY301 - to be caught here
        except KeyError as error:
            raise OutOfStock("none left", {"sku": 7}) from error

    run = Twin(fails)
    run.start()
    assert run.failure.message == "none left"
    assert run.failure.details == ({"sku": 7},)
    assert "test_instance_outcomes.py" in run.failure.stack
    assert run.failure.cause is not None
    assert run.failure.cause.type == "KeyError"


@pytest.mark.parametrize(
    "error", [ValueError("bug"), InvalidArgument("wrong"), ExceptionGroup("several", [OutOfStock("x"), ValueError("bug")])]
)
def test_with_retry_turn_a_plain_exception_fails_the_turn_and_the_run_lives_on(error):
    with pytest.raises(type(error)) as caught:
        Twin(raising(error, on_exception="retry_turn"), replayed=False).start()
    assert caught.value is error


@pytest.mark.parametrize(
    "error",
    [
        OutOfStock("x"),
        TimeoutError(),
        PayloadError("x"),
        asyncio.CancelledError(),
        ExceptionGroup("all", [OutOfStock("x"), TimeoutError()]),
    ],
)
def test_with_retry_turn_a_failure_still_fails_the_run(error):
    assert brief(Twin(raising(error, on_exception="retry_turn"), replayed=False).start()) == ["run_failed"]


def test_a_group_that_holds_a_non_deterministic_call_fails_the_turn():
    error = NonDeterministicCall("time.time()")
    with pytest.raises(NonDeterministicCall) as caught:
        Twin(raising(ExceptionGroup("several", [ValueError("x"), ExceptionGroup("inner", [error])])), replayed=False).start()
    assert caught.value is error


def test_an_exception_in_a_signal_handler_fails_the_run():
    @workflow.defn
    class Fragile:
        @workflow.run
        async def run(self) -> None:
            await workflow.wait_condition(lambda: False)

        @workflow.signal
        async def push(self) -> None:
            await workflow.execute_activity("push")
            raise OutOfStock("none left")

    run = Twin(Fragile)
    run.start(signal("push"))
    assert brief(run.turn(done(1))) == ["run_failed"]
    assert run.failure.type == "OutOfStock"


def test_arguments_that_do_not_fit_the_run_fail_it_and_name_the_parameter():
    @workflow.defn
    async def picky(number: int) -> None: ...

    for args in ((), ("five",), (1, 2)):
        run = Twin(picky, *args)
        assert brief(run.start()) == ["run_failed"]
        assert "workflow 'picky'" in run.failure.message
        assert run.failure.type == "PayloadMismatch"


def test_a_result_that_cannot_be_carried_fails_the_run():
    @workflow.defn
    async def odd() -> object:
        return object()

    run = Twin(odd)
    run.start()
    assert "the result of workflow 'odd'" in run.failure.message


def test_a_broken_init_fails_the_run():
    @workflow.defn
    class Broken:
        def __init__(self) -> None:
            raise ValueError("not today")

        @workflow.run
        async def run(self) -> None: ...

    run = Twin(Broken)
    run.start()
    assert run.failure.message == "not today"


def test_the_first_of_two_ends_counts():
    @workflow.defn
    class Two:
        @workflow.run
        async def run(self) -> str:
            await workflow.wait_condition(lambda: False)
            return ""

        @workflow.signal
        def fail(self, why: str) -> None:
            raise FailureError(why)

    run = Twin(Two)
    run.start()
    run.turn(signal("fail", "first"), signal("fail", "second"))
    assert run.failure.message == "first"
