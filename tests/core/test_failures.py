"""Exceptions and their records: what was raised there is caught here."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator import errors
from orchestrator.core.failures import CAUSES_MAX, MESSAGE_CHARACTERS_MAX, STACK_CHARACTERS_MAX, is_cancellation, to_exception, to_failure
from orchestrator.core.payloads import PayloadConverter
from schemas.history import Failure

CONVERTER = PayloadConverter()


@pytest.mark.parametrize(
    "error",
    [
        errors.ApplicationError("a", 1, {"b": [2]}, type="T", non_retryable=True, next_retry_delay_s=3.0),
        errors.CancelledError("c", "detail"),
        errors.TerminatedError("t"),
        errors.TimeoutError("slow", type="heartbeat", last_heartbeat_details=(1, "x")),
        errors.WorkerLost("gone"),
        errors.ActivityError("failed", activity_type="charge", activity_id="7", retry_state="timeout"),
    ],
)
def test_every_failure_comes_back_as_what_it_was(error):
    back = to_exception(to_failure(error, CONVERTER), CONVERTER)
    assert type(back) is type(error)
    assert {k: v for k, v in vars(back).items() if k[0] != "_"} == {k: v for k, v in vars(error).items() if k[0] != "_"}
    assert back.message == error.message


def test_any_other_exception_comes_back_as_an_application_error_with_its_name():
    back = to_exception(to_failure(KeyError("sku"), CONVERTER), CONVERTER)
    assert isinstance(back, errors.ApplicationError)
    assert (back.type, back.message, back.non_retryable) == ("KeyError", "'sku'", False)


def test_a_chain_of_causes_survives_and_is_bounded():
    error: Exception = ValueError("root")
    for n in range(50):
        outer = errors.ApplicationError(f"level {n}")
        outer.__cause__ = error
        error = outer
    failure: Failure | None = to_failure(error, CONVERTER)
    depth = 0
    while failure is not None:
        depth, failure = depth + 1, failure.cause
    assert depth == CAUSES_MAX + 1


def test_a_context_counts_as_cause_unless_it_was_suppressed():
    def fail(*, suppress: bool) -> None:
        try:
            raise KeyError("a")  # noqa: TRY301 - to be caught here
        except KeyError:
            if suppress:
                raise ValueError("b") from None
            raise ValueError("b")  # noqa: B904 - without `from` on purpose

    failures = []
    for suppress in (False, True):
        with pytest.raises(ValueError) as caught:
            fail(suppress=suppress)
        failures.append(to_failure(caught.value, CONVERTER))
    open_failure, closed_failure = failures
    assert open_failure.cause is not None
    assert open_failure.cause.type == "KeyError"
    assert closed_failure.cause is None


def test_a_group_tells_all_its_parts_and_keeps_the_first_as_cause():
    failure = to_failure(ExceptionGroup("two", [ValueError("a"), KeyError("b")]), CONVERTER)
    assert failure.message == "two (2 sub-exceptions): ValueError: a; KeyError: 'b'"
    assert failure.cause is not None
    assert failure.cause.type == "ValueError"


def test_long_messages_and_stacks_are_cut():
    def deep(n: int) -> None:
        if n % 2:
            deep(n - 1)
        if n:  # from two lines in turn, because Python folds repeated ones
            deep(n - 1)
        raise ValueError("x" * 10_000)

    with pytest.raises(ValueError) as caught:
        deep(200)
    failure = to_failure(caught.value, CONVERTER)
    assert len(failure.message) == MESSAGE_CHARACTERS_MAX
    assert len(failure.stack) == STACK_CHARACTERS_MAX


def test_details_that_cannot_be_carried_do_not_lose_the_failure():
    failure = to_failure(errors.ApplicationError("x", object(), 5), CONVERTER)
    assert failure.details[1] == 5
    assert failure.details[0].startswith("<object: ")


def test_an_exception_that_cannot_describe_itself_is_recorded_all_the_same():
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert to_failure(Mute(), CONVERTER).message == "Mute (its text cannot be shown: RuntimeError)"
    assert to_failure(ValueError(), CONVERTER).message == "ValueError"


def activity_error(cause: BaseException) -> errors.ActivityError:
    return errors.ActivityError("x", activity_type="a", activity_id="1", retry_state="", cause=cause)


@pytest.mark.parametrize(
    "error, expected",
    [
        (asyncio.CancelledError(), True),
        (errors.CancelledError(), True),
        (activity_error(errors.CancelledError()), True),
        (activity_error(ValueError()), False),
        (BaseExceptionGroup("g", [asyncio.CancelledError(), activity_error(errors.CancelledError())]), True),
        (BaseExceptionGroup("g", [asyncio.CancelledError(), ValueError()]), False),
        (ValueError(), False),
        (None, False),
    ],
)
def test_a_cancellation_is_recognised_in_every_dress(error, expected):
    assert is_cancellation(error) is expected
