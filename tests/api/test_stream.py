"""What happens in the fleet is told as it happens, in order, to all who listen, and to those who come back what they missed."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Queue
from typing import Any

import anyio
import httpx2 as httpx
import pytest

from orchestrator.api import watching
from orchestrator.api.watching import Watch
from orchestrator.clock import SYSTEM
from orchestrator.fleet import Fleet
from orchestrator.settings import load
from orchestrator.store import Store
from schemas.agents import AgentEvent, AgentSpec
from tests.api.conftest import DEAD_BROKER
from tests.api.serving import Server, served
from tests.beat.conftest import MovableClock

STREAM = "/api/v1/stream"


@pytest.fixture
def server(tmp_path, database_url) -> Iterator[Server]:
    with served(tmp_path, database_url=database_url, broker_url=DEAD_BROKER) as server:
        yield server


@contextmanager
def listening(server: Server, **headers: str) -> Iterator[Queue[Any]]:
    """Events as they come."""
    heard: Queue[Any] = Queue()

    def listen() -> None:
        with suppress(httpx.TransportError), httpx.stream("GET", server.url + STREAM, headers=headers, timeout=30) as reply:
            heard.put(reply)
            event: dict[str, str] = {}
            for line in reply.iter_lines():
                name, _, value = line.partition(": ")
                if not line and "data" in event:
                    heard.put(event | {"data": json.loads(event["data"])})
                    event = {}
                elif line:
                    event[name] = value

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    reply = heard.get(timeout=20)
    assert reply.headers["content-type"].startswith("text/event-stream")
    yield heard
    with suppress(OSError):  # the server may have closed it
        # A shutdown of the socket wakes whoever reads from it, in any thread.
        reply.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    thread.join(20)


def post(server: Server, path: str, **body: object) -> None:
    assert server.http.post(f"/api/v1/agents{path}", json=body).is_success


def test_events_are_told_in_order_and_those_missed_when_somebody_comes_back(server):
    post(server, "", id="a", type="echo")
    with listening(server) as first, listening(server) as second:
        SYSTEM.sleep(2 * watching.PAUSE_S)
        post(server, "", id="b", type="echo")
        post(server, "/b/start")
        for heard in (first, second):
            events = [heard.get(timeout=20) for _ in range(2)]
            assert [(event["event"], event["data"]["agent_id"], event["data"]["trigger"]) for event in events] == [
                ("agent", "b", "added"),
                ("agent", "b", "start"),
            ]
            assert (events[1]["data"]["before"], events[1]["data"]["after"]) == ("stopped", "starting")
    post(server, "", id="c", type="echo")
    with listening(server, **{"Last-Event-ID": events[0]["id"]}) as again:
        assert [again.get(timeout=20)["data"]["agent_id"] for _ in range(2)] == ["b", "c"]


def test_whoever_listens_does_not_hold_up_the_end_of_the_server(server):
    with listening(server):
        began = SYSTEM.monotonic()
        server.process.terminate()
        server.process.wait(20)
        assert SYSTEM.monotonic() - began < 8, "of the ten seconds that it waits for requests"


class Records(Fleet):
    """A fleet whose events are what the test says."""

    def __init__(self) -> None:
        self.events_there: list[int] = []

    def last_event_id(self) -> int:
        return max(self.events_there, default=0)

    def events_after(self, after_id: int, *, limit: int = 100) -> list[AgentEvent]:
        found = sorted(id_ for id_ in self.events_there if id_ > after_id)[:limit]
        return [AgentEvent(str(id_), "a", 0.0, "noted") for id_ in found]


class Moving:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 0.0

    def monotonic(self) -> float:
        self.time += watching.PAUSE_S
        return self.time


def told(steps) -> list[int]:
    """What one listener hears when the events of each step appear, one step a look."""
    fleet = Records()
    watch = Watch(fleet, Moving())  # type: ignore[arg-type] # all it needs of a clock

    async def run() -> list[int]:
        fleet.events_there += steps[0]
        follower, heard = watch.follower(None), []
        await follower.news()
        for step in steps[1:]:
            fleet.events_there += step
            heard += [int(event.id) for event in await follower.news()]
        return heard

    return anyio.run(run)


def test_an_event_that_becomes_visible_late_is_told_and_none_twice():
    assert told([[1, 2, 3], [5], [4], [], [7, 8], [6]]) == [5, 4, 7, 8, 6]


def test_whoever_is_slower_than_memory_hears_the_rest_from_the_store(monkeypatch):
    monkeypatch.setattr(watching, "KEPT_MAX", 3)
    monkeypatch.setattr(watching, "PAGE", 4)
    monkeypatch.setattr(watching, "BACK", 2)
    fleet = Records()
    watch = Watch(fleet, Moving())  # type: ignore[arg-type] # all it needs of a clock

    async def run() -> list[int]:
        slow, other, heard = watch.follower(0), watch.follower(None), []
        await slow.news()
        for number in range(1, 21):
            fleet.events_there.append(number)
            await other.news()
        for _ in range(12):
            heard += [int(event.id) for event in await slow.news()]
        return heard

    assert anyio.run(run) == list(range(1, 21))


def test_too_many_listeners_are_told_to_come_back(open_api, monkeypatch):
    monkeypatch.setattr("orchestrator.api.stream.LISTENERS_MAX", 0)
    answer = open_api().http.get(STREAM)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_capacity")


def test_the_store_is_looked_at_once_a_pause_however_many_listen(database_url):
    store = Store.open(database_url)
    store.upgrade()
    fleet = Fleet(load({}, database_url=database_url, broker_url="memory://"), store=store)
    looks = 0
    real = fleet.events_after

    def counted(after_id: int, *, limit: int = 100) -> list[AgentEvent]:
        nonlocal looks
        looks += 1
        return real(after_id, limit=limit)

    fleet.events_after = counted  # type: ignore[method-assign] # to count
    clock = MovableClock()
    watch = Watch(fleet, clock)

    async def run() -> list[list[AgentEvent]]:
        followers = [watch.follower(None) for _ in range(50)]
        for follower in followers:
            await follower.news()
        fleet.add(AgentSpec(id="a", type="echo"))
        clock.advance(watching.PAUSE_S)
        return [await follower.news() for follower in followers]

    heard = anyio.run(run)
    assert [len(events) for events in heard] == [1] * 50
    assert looks == 2
    fleet.close()
    store.dispose()
