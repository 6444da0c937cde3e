"""What happens in the fleet, told as it happens (server-sent events); law: one look at the store a pause, however many listen, and none is skipped.

A listener that comes back says by `Last-Event-ID` what it has heard, and hears the rest. Rows can become visible out of the order of their
ids: a look goes back a little, and leaves out what it has seen.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Annotated

import anyio
from fastapi import Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from orchestrator.api.fleet_bodies import EventView
from orchestrator.api.guard import router as guarded
from orchestrator.api.services import Here
from orchestrator.api.watching import PAUSE_S
from orchestrator.errors import DatabaseUnavailable, FleetError
from schemas.codes import ErrorCode

LISTENERS_MAX = 200
KEEP_OPEN_S = 900.0  # then the listener comes back, with its key

router = guarded(tags=["agents"])


def _place(here: Here) -> Iterator[None]:
    """A place among the listeners; raises FleetError if all are taken."""
    with here.watch.listening() as listeners:
        if listeners > LISTENERS_MAX:
            raise FleetError(f"{LISTENERS_MAX} callers listen already; come back", code=ErrorCode.NO_CAPACITY)
        yield


@router.get("/api/v1/stream", response_class=EventSourceResponse, dependencies=[Depends(_place)])
async def stream(
    here: Here, *, last_event_id: Annotated[int | None, Header(ge=0, lt=2**63, description="the id of the last event heard")] = None
) -> AsyncIterator[ServerSentEvent]:
    """Everything that happens to agents, as server-sent events named `agent`; their data is that of /api/v1/agents/{agent_id}/events."""
    until = here.clock.monotonic() + KEEP_OPEN_S
    follower = here.watch.follower(last_event_id)
    yield ServerSentEvent(comment="listening", retry=1000)
    while here.clock.monotonic() < until and not here.watch.closed:
        try:
            for event in await follower.news():
                yield ServerSentEvent(event="agent", id=event.id, data=EventView.of(event))
        except DatabaseUnavailable:
            pass  # it listens on
        await anyio.sleep(PAUSE_S)
