"""What beat does for agents: heartbeats and flushes when they are due, a look for the silent, the abandoned and the new; law: late is once, never a storm.

Each agent has intervals of its own. All that are due at a tick are named in one broadcast, which every agent host hears and picks its own
from: the cost of a thousand agents is a message a tick. After an outage nothing is caught up: what was missed is asked for once, spread
over a few seconds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from beat.scout import Scout
from orchestrator.clock import Clock
from orchestrator.fleet import Fleet
from orchestrator.store.vitals import Rhythm
from schemas.agents import AgentKind, AgentSpec
from schemas.settings import Settings

Broadcast = Callable[[str, Mapping[str, Any]], None]
"""Send a remote control command to all workers, without waiting for an answer; raises when the broker is away."""

HEARTBEAT, FLUSH = "agent_heartbeat", "agent_flush"

LOOK_S = 5.0  # how soon a new, changed or removed agent is noticed
RECOVER_S = 1.0  # how soon an agent is missed whose worker is gone
QUIET_S = 5.0  # how soon one is that has become silent, at the latest
SPREAD_S = 5.0  # over which those are spread that are overdue when they are first seen
IDS_MAX = 500  # named in one message
GATHER_S = 0.5  # those that are due within this time are asked together: many agents are few rounds, however their rhythms lie
GATHER_SHARE = 0.05  # of its interval is the most that an agent is asked later for that


@dataclass(frozen=True, slots=True)
class Due:
    """When an agent is to be asked next, on the monotonic clock: `asked_at`, together with others that are due `at` about this time."""

    asked_at: float
    at: float
    command: str
    agent_id: str
    interval_s: float

    def __lt__(self, other: Due) -> bool:
        return self.asked_at < other.asked_at


@dataclass(slots=True)
class Agenda:
    """Who is to be asked what, and when; pure."""

    heap: list[Due] = field(default_factory=list)
    current: dict[tuple[str, str], Due] = field(default_factory=dict)  # an entry of the heap that is not here is out of date

    def update(self, wanted: Mapping[tuple[str, str], tuple[float, float]], now: float) -> None:
        """Follow the fleet: `wanted` has, for each (command, agent), its interval and how long ago it was asked last."""
        for key in self.current.keys() - wanted.keys():
            del self.current[key]
        overdue = 0
        for (command, agent_id), (interval_s, ago_s) in sorted(wanted.items()):
            known = self.current.get((command, agent_id))
            if known is not None and known.interval_s == interval_s:
                continue
            left_s = interval_s - ago_s
            if left_s <= 0:
                overdue += 1
                left_s = min(SPREAD_S, interval_s) * (overdue * 0.618 % 1.0)  # evenly, however many there are
            self._put(now + left_s, command, agent_id, interval_s)

    def take(self, now: float) -> dict[str, list[str]]:
        """The agents that are due, by command; each is due again one interval later, however late this is."""
        taken: dict[str, list[str]] = {}
        while self.heap and self.heap[0].asked_at <= now:
            due = heapq.heappop(self.heap)
            if self.current.get((due.command, due.agent_id)) is not due:
                continue
            taken.setdefault(due.command, []).append(due.agent_id)
            following = due.at + due.interval_s
            self._put(following if following > now else now + due.interval_s, due.command, due.agent_id, due.interval_s)
        return taken

    def wait_s(self, now: float, longest_s: float) -> float:
        """How long until somebody is due."""
        return max(0.0, min(longest_s, self.heap[0].asked_at - now)) if self.heap else longest_s

    def _put(self, at: float, command: str, agent_id: str, interval_s: float) -> None:
        step_s = min(GATHER_S, interval_s * GATHER_SHARE)
        due = self.current[command, agent_id] = Due(math.ceil(at / step_s) * step_s, at, command, agent_id, interval_s)
        heapq.heappush(self.heap, due)


class Pulse:
    """The fleet's rounds of one beat."""

    def __init__(self, fleet: Fleet, settings: Settings, *, broadcast: Broadcast, clock: Clock) -> None:
        self._fleet = fleet
        self._settings = settings
        self._broadcast = broadcast
        self._clock = clock
        self._agenda = Agenda()
        self._scout = Scout(fleet, settings)
        self._specs: dict[str, tuple[str, AgentSpec]] = {}  # parsed once for each text
        self._up_at = clock.monotonic()
        self._next_at: dict[Callable[[], object], float] = {}

    def go(self) -> float:
        """Do what is to be done now; return the seconds until the next round. Raises DatabaseUnavailable, or what the broker raises."""
        now = self._clock.monotonic()
        settings = self._settings
        wait_s = min(
            self._every(LOOK_S, self._look, now),
            self._every(RECOVER_S, self._fleet.recover, now),
            self._every(LOOK_S, self._fleet.revive, now),
            self._every(min(settings.monitoring_interval_s, QUIET_S), self._watch, now),
            self._every(settings.cleanup_interval_s, self._fleet.prune, now),
            self._every(settings.discovery_interval_s, self._scout.look, now),
        )
        due = self._agenda.take(now)
        for agent_ids in _pages(due.get(FLUSH, ())):
            # Before they are asked: a summary that nobody owes would be no news when it does not come.
            self._fleet.flush_asked(agent_ids)
            self._broadcast(FLUSH, {"ids": agent_ids})
        for agent_ids in _pages(due.get(HEARTBEAT, ())):
            self._broadcast(HEARTBEAT, {"ids": agent_ids})
        return self._agenda.wait_s(now, wait_s)

    def stand_by(self) -> None:
        """Another beat is active: begin anew when this one is."""
        self._up_at = self._clock.monotonic()
        self._agenda = Agenda()
        self._next_at.clear()

    def _every(self, interval_s: float, chore: Callable[[], object], now: float) -> float:
        at = self._next_at.get(chore, now)
        if at <= now:
            self._next_at[chore] = at = now + interval_s
            chore()
        return at - now

    def _watch(self) -> int:
        return self._fleet.monitor(beat_up_s=self._clock.monotonic() - self._up_at)

    def _look(self) -> None:
        rhythms, now = self._fleet.rhythms()
        wanted: dict[tuple[str, str], tuple[float, float]] = {}
        for rhythm in rhythms:
            spec = self._spec(rhythm)
            wanted[FLUSH, spec.id] = (spec.flush_interval_s, now - (rhythm.last_flush_at or rhythm.since))
            if spec.kind is not AgentKind.CHILD:  # a child has a timer of its own: never two sources for one agent
                wanted[HEARTBEAT, spec.id] = (spec.heartbeat_interval_s, now - (rhythm.last_heartbeat_at or 0.0))
        self._agenda.update(wanted, self._clock.monotonic())
        self._specs = {rhythm.agent_id: self._specs[rhythm.agent_id] for rhythm in rhythms}

    def _spec(self, rhythm: Rhythm) -> AgentSpec:
        known = self._specs.get(rhythm.agent_id)
        if known is None or known[0] != rhythm.spec:
            known = self._specs[rhythm.agent_id] = (rhythm.spec, AgentSpec.model_validate_json(rhythm.spec))
        return known[1]


def _pages(agent_ids: Iterable[str]) -> list[list[str]]:
    listed = sorted(agent_ids)
    return [listed[at : at + IDS_MAX] for at in range(0, len(listed), IDS_MAX)]
