"""Timers of runs that this process has in memory: fired by it, within the turn that they wake; law: the row decides, this only knows when to try.

A timer's row is removed by the commit of the turn that consumes its firing, and that commit fails if the row is not there or not due. So
whoever else fires it meanwhile, it fires once. Beat leaves a timer to the process that has it for `HEAD_START_S`, and then fires it itself.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from orchestrator.dispatch import HEAD_START_S
from workers.agenda import Agenda
from workers.instances import Held, Instances

ENTRIES_MAX = 200_000  # beyond this, beat alone wakes the rest
LEAD_S = 0.002  # the database judges; a try that comes too early costs the turn


class Timers:
    """A heap of (moment, run, number)."""

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._entries: list[tuple[float, str, int]] = []

    def add(self, run_id: str, timers: Iterable[tuple[float, int]]) -> None:
        """Try these (moment, number) when their time has come."""
        for fire_at, seq in timers:
            if len(self._entries) < ENTRIES_MAX:
                heapq.heappush(self._entries, (fire_at, run_id, seq))

    def wait_s(self, now: float, longest_s: float) -> float:
        """Seconds until the next one, at most longest_s, at least 0."""
        return max(0.0, min(longest_s, self._entries[0][0] + LEAD_S - now)) if self._entries else longest_s

    def take(self, now: float, instances: Instances) -> list[tuple[str, Held, int]]:
        """Those that are due and whose run is in memory and waits for them; the others are left to whoever fires what is due."""
        found = []
        while self._entries and self._entries[0][0] + LEAD_S <= now:
            _, run_id, seq = heapq.heappop(self._entries)
            held = instances.get(run_id)
            if held is None or held.instance is None:
                self.leave(now)
            elif held.instance.waits_for_timer(seq):
                found.append((run_id, held, seq))
        return found

    def leave(self, now: float) -> None:
        """Somebody must look for timers that this process could not fire by itself."""
        self._agenda.add(now + HEAD_START_S, "timers")
