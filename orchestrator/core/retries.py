"""Whether a failed attempt is tried again, and when; law: pure, decided once, by the order of temporal-semantics 4.4."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from schemas.history import Failure, RetryPolicy

LOSSES_MAX = 3  # an activity that was running in three workers as they died is poison

NO_RETRY = RetryPolicy(maximum_attempts=1)
DEFAULT = RetryPolicy()


class RetryState(StrEnum):
    """Why an activity is, or is not, tried again."""

    IN_PROGRESS = "in_progress"
    CANCEL_REQUESTED = "cancel_requested"
    NON_RETRYABLE_FAILURE = "non_retryable_failure"
    MAXIMUM_ATTEMPTS_REACHED = "maximum_attempts_reached"
    TIMEOUT = "timeout"


class Verdict(NamedTuple):
    """The answer: `delay_s` counts only when `state` is IN_PROGRESS."""

    state: RetryState
    delay_s: float = 0.0


def judge(
    policy: RetryPolicy,
    failure: Failure,
    *,
    attempt: int,
    now: float,
    give_up_at: float | None,
    cancel_requested: bool,
) -> Verdict:
    """Decide about the attempt after `attempt` (counted from 1), which failed at `now` with `failure`."""
    if cancel_requested:
        return Verdict(RetryState.CANCEL_REQUESTED)
    if failure.non_retryable or failure.kind in {"canceled", "terminated"} or failure.type in policy.non_retryable_error_types:
        return Verdict(RetryState.NON_RETRYABLE_FAILURE)
    if failure.kind == "timeout" and failure.type in {"schedule_to_start", "schedule_to_close"}:
        return Verdict(RetryState.TIMEOUT)
    if policy.maximum_attempts and attempt >= policy.maximum_attempts:
        return Verdict(RetryState.MAXIMUM_ATTEMPTS_REACHED)
    delay_s = backoff_s(policy, attempt) if failure.next_retry_delay_s is None else max(failure.next_retry_delay_s, 0.0)
    if give_up_at is not None and now + delay_s >= give_up_at:
        return Verdict(RetryState.TIMEOUT)
    return Verdict(RetryState.IN_PROGRESS, delay_s)


def backoff_s(policy: RetryPolicy, attempt: int) -> float:
    """Seconds to wait after the failure of attempt `attempt`."""
    try:
        growth = policy.backoff_coefficient ** (attempt - 1)
    except OverflowError:  # beyond 1e308; the maximum has been reached long before
        return policy.maximum_interval_s if policy.initial_interval_s else 0.0
    return min(policy.initial_interval_s * growth, policy.maximum_interval_s)
