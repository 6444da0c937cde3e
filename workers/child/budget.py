"""Budgets that fill again with time; law: the caller brings the clock."""

from __future__ import annotations


class Budget:
    """At most `burst` at once, and `per_s` in the long run; what was not allowed is counted."""

    def __init__(self, burst: int, per_s: float, now: float) -> None:
        self.skipped = 0  # since the caller last told of it
        self._burst = burst
        self._per_s = per_s
        self._left = float(burst)
        self._at = now

    def spend(self, now: float) -> bool:
        """One more, if there is something left."""
        self._left = min(float(self._burst), self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            self.skipped += 1
            return False
        self._left -= 1
        return True


class Pace:
    """Any amount is taken, but who took more than `burst` at once waits until `per_s` has made up for it."""

    def __init__(self, burst: int, per_s: float, now: float) -> None:
        self._burst = burst
        self._per_s = per_s
        self._left = float(burst)
        self._at = now

    def take(self, amount: int, now: float) -> float:
        """Take so much; returns for how many seconds nothing more is to be taken."""
        self._left = min(float(self._burst), self._left + (now - self._at) * self._per_s) - amount
        self._at = now
        return max(0.0, -self._left / self._per_s)
