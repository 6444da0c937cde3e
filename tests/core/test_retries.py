"""Whether and when a failed attempt is tried again."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from orchestrator.core.retries import RetryState, Verdict, backoff_s, judge
from schemas.history import Failure, RetryPolicy

BROKEN = Failure("application", "x", "ValueError")


def verdict(failure: Failure = BROKEN, policy: RetryPolicy | None = None, **facts: Any) -> Verdict:
    given: dict[str, Any] = {"attempt": 1, "now": 100.0, "give_up_at": None, "cancel_requested": False, **facts}
    return judge(policy or RetryPolicy(), failure, **given)


def test_by_default_a_failure_is_tried_again_for_ever_with_growing_pauses():
    assert [verdict(attempt=n).delay_s for n in (1, 2, 3, 7, 8, 100_000)] == [1, 2, 4, 64, 100, 100]


@pytest.mark.parametrize(
    "state, failure, policy, facts",
    [
        (RetryState.CANCEL_REQUESTED, Failure("application", "x", non_retryable=True), None, {"cancel_requested": True}),
        (RetryState.NON_RETRYABLE_FAILURE, Failure("application", "x", non_retryable=True), RetryPolicy(maximum_attempts=1), {}),
        (RetryState.NON_RETRYABLE_FAILURE, BROKEN, RetryPolicy(non_retryable_error_types=("ValueError",)), {}),
        (RetryState.NON_RETRYABLE_FAILURE, Failure("canceled", "x"), None, {}),
        (RetryState.TIMEOUT, Failure("timeout", "x", "schedule_to_start"), None, {}),
        (RetryState.TIMEOUT, Failure("timeout", "x", "schedule_to_close"), None, {}),
        (RetryState.IN_PROGRESS, Failure("timeout", "x", "heartbeat"), None, {}),
        (RetryState.MAXIMUM_ATTEMPTS_REACHED, BROKEN, RetryPolicy(maximum_attempts=3), {"attempt": 3, "give_up_at": 100.0}),
        (RetryState.IN_PROGRESS, BROKEN, RetryPolicy(maximum_attempts=3), {"attempt": 2}),
        (RetryState.TIMEOUT, BROKEN, None, {"give_up_at": 101.0}),
        (RetryState.IN_PROGRESS, BROKEN, None, {"give_up_at": 101.1}),
    ],
)
def test_the_first_reason_that_fits_decides(state, failure, policy, facts):
    assert verdict(failure, policy, **facts).state is state


def test_a_failure_may_name_its_own_delay_once():
    assert verdict(Failure("application", "x", next_retry_delay_s=42.0)).delay_s == 42
    assert verdict(Failure("application", "x", next_retry_delay_s=-1.0)).delay_s == 0


def test_the_backoff_never_overflows_and_never_exceeds_its_maximum():
    policy = RetryPolicy(timedelta(milliseconds=10), 1e10, timedelta(minutes=1))
    assert [backoff_s(policy, n) for n in (1, 2, 10, 10**9)] == [0.01, 60, 60, 60]
    assert backoff_s(RetryPolicy(0.0, 10.0, 60.0), 10**6) == 0
    assert backoff_s(RetryPolicy(2.0, 1.0), 10**6) == 2
