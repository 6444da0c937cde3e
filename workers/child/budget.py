"""A budget that fills again with time; law: the caller brings the clock, and what was not allowed is counted."""

from __future__ import annotations


class Budget:
    """At most `burst` at once, and `per_s` in the long run."""

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
