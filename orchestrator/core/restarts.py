"""Whether and when an agent that crashed is started again; law: pure, growing pauses, and a crash loop ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BACKOFF_MIN_S = 1.0
BACKOFF_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How many restarts are forgiven within which time."""

    restarts_max: int = 5
    window_s: float = 300.0


def next_restart_s(crashes: Sequence[float], *, now: float, policy: RestartPolicy) -> float | None:
    """How long to wait before the next start, given when it crashed (the last crash included); None: too often, it stays down."""
    recent = sum(at > now - policy.window_s for at in crashes)
    if recent > policy.restarts_max:
        return None
    return min(BACKOFF_MIN_S * 2.0 ** max(recent - 1, 0), BACKOFF_MAX_S)
