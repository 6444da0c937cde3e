"""The events of the fleet as they come, shared by all who listen; law: bounded, one look at the store a pause, and none is skipped."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import anyio
from anyio import to_thread

from orchestrator.clock import Clock
from orchestrator.fleet import Fleet
from schemas.agents import AgentEvent

PAUSE_S = 0.5
BACK = 200  # ids that a look goes back: so much out of order they may become visible
PAGE = 1000  # events read at once
SEEN_MAX = 2 * (BACK + PAGE)  # ids remembered, so that none is told twice
KEPT_MAX = 5_000  # events in memory; whoever is further behind reads from the store


class Watch:
    """What has happened lately."""

    def __init__(self, fleet: Fleet, clock: Clock) -> None:
        self._fleet = fleet
        self._clock = clock
        self._lock = anyio.Lock()
        self._counting = threading.Lock()
        self._listeners = 0
        self._looked_at: float | None = None
        self._reached = 0
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._kept: deque[AgentEvent] = deque(maxlen=KEPT_MAX)
        self.count = 0  # events since the watch began
        self.closed = False

    def close(self) -> None:
        """Let everybody who listens go."""
        self.closed = True

    @contextmanager
    def listening(self) -> Iterator[int]:
        """Somebody listens; gives how many there are now."""
        with self._counting:
            self._listeners += 1
            now = self._listeners
        try:
            yield now
        finally:
            with self._counting:
                self._listeners -= 1

    def follower(self, heard: int | None) -> Follower:
        """One listener, who has heard everything up to an event, or wants what comes from now on."""
        return Follower(self, heard)

    async def look(self) -> None:
        """Look at the store, unless somebody has done so a moment ago. Raises DatabaseUnavailable."""
        async with self._lock:
            now = self._clock.monotonic()
            if self._looked_at is None:
                self._reached = await to_thread.run_sync(self._fleet.last_event_id)
                self._note(await self.page(max(self._reached - BACK, 0)), keep=False)
                self._looked_at = now
            while now - self._looked_at >= PAUSE_S:
                events = await self.page(max(self._reached - BACK, 0))
                if not self._note(events, keep=True) or len(events) < PAGE:
                    self._looked_at = now

    async def page(self, after: int) -> list[AgentEvent]:
        """A page of the store's events behind an id."""
        return await to_thread.run_sync(partial(self._fleet.events_after, after, limit=PAGE))

    def since(self, place: int) -> list[AgentEvent] | None:
        """What came after the first `place` events; None if that is not in memory any more."""
        missing = self.count - place
        if missing > len(self._kept):
            return None
        return list(self._kept)[len(self._kept) - missing :] if missing else []

    def _note(self, events: list[AgentEvent], *, keep: bool) -> bool:
        """Whether any of them is new."""
        before = self.count
        for event in events:
            if event.id in self._seen:
                continue
            self._seen[event.id] = None
            self._reached = max(self._reached, int(event.id))
            if keep:
                self._kept.append(event)
                self.count += 1
        _shorten(self._seen)
        return self.count > before


class Follower:
    """How far one listener is."""

    def __init__(self, watch: Watch, heard: int | None) -> None:
        self._watch = watch
        self._reading_from = heard  # in the store; None: it hears what the watch hears
        self._place: int | None = None  # among the events of the watch
        self._told: OrderedDict[str, None] = OrderedDict()  # from the store, which the watch may bring again
        self._last = heard or 0

    async def news(self) -> list[AgentEvent]:
        """What it has not heard, oldest first, at most what fits into memory; nothing if there is nothing. Raises DatabaseUnavailable."""
        await self._watch.look()
        if self._place is None:
            self._place = self._watch.count
        if self._reading_from is None:
            events = self._watch.since(self._place)
            if events is not None:
                self._place = self._watch.count
                return self._fresh(events)
            self._reading_from, self._place = self._last, self._watch.count  # it was too slow: memory has lost what the store has
        events = await self._watch.page(self._reading_from)
        self._reading_from = int(events[-1].id) if len(events) == PAGE else None
        self._told.update(dict.fromkeys(event.id for event in events))
        _shorten(self._told)
        self._last = max([self._last, *(int(event.id) for event in events)])
        return events

    def _fresh(self, events: list[AgentEvent]) -> list[AgentEvent]:
        fresh = [event for event in events if event.id not in self._told]
        self._last = max([self._last, *(int(event.id) for event in events)])
        return fresh


def _shorten(ids: OrderedDict[str, None]) -> None:
    while len(ids) > SEEN_MAX:
        ids.popitem(last=False)
