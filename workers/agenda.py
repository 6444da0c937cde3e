"""What this process knows will be due, and when; law: a convenience only, the rows in the store are the truth and beat reads those."""

from __future__ import annotations

import heapq
from typing import Literal

Topic = Literal["timers", "deadlines", "orphans", "claim"]

ENTRIES_MAX = 200_000  # beyond this, beat alone wakes the rest
LEAD_S = 0.001  # the database judges; looking a moment late is better than looking twice


class Agenda:
    """A heap of moments, each with what to look for then."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, Topic]] = []

    def add(self, at: float, topic: Topic) -> None:
        """Look for `topic` at `at`, seconds since the epoch."""
        if len(self._entries) < ENTRIES_MAX:
            heapq.heappush(self._entries, (at, topic))

    def wait_s(self, now: float, longest_s: float) -> float:
        """Seconds until the next moment, at most longest_s, at least 0."""
        if not self._entries:
            return longest_s
        return max(0.0, min(longest_s, self._entries[0][0] + LEAD_S - now))

    def take(self, now: float) -> frozenset[Topic]:
        """What is due; its entries are gone afterwards."""
        due: set[Topic] = set()
        while self._entries and self._entries[0][0] + LEAD_S <= now:
            due.add(heapq.heappop(self._entries)[1])
        return frozenset(due)
