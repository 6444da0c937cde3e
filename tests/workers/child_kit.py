"""Children for tests, and a sink that remembers; law: real processes, and every wait is for an event and has an end."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.settings import load
from schemas.agents import AgentKind, AgentSpec
from schemas.frames import AckFrame, ErrorFrame, HeartbeatFrame, SummaryFrame
from workers.child import Exit, Processes, Sink, Started

WAIT_MAX_S = 20.0

HEARTBEAT = '{"type":"heartbeat","timestamp":"2025-11-10T14:23:45.123Z","metrics":{"cpu":1.5,"mem":20,"queue":0,"latency_ms":2}}'
SUMMARY = '{"type":"summary","data":{"start":"2025-11-10T14:23:00Z","end":"2025-11-10T14:24:00Z","items":[1,2]}}'

OBEDIENT = f"""
import json, sys
def say(line): print(line, flush=True)
say('{HEARTBEAT}')
for line in sys.stdin:
    command = json.loads(line)
    for member in command.get("sequence", [command["cmd"]]):
        if member == "flush": say('{SUMMARY}')
        if member == "shutdown": sys.exit(0)
        say(json.dumps({{"type": "ack", "ack_command": member}}))
"""
"""A child that does as it is told."""


class Told(Sink):
    """Remembers what it was told, in order, and lets tests wait for it."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, str, Any]] = []  # agent id, what, and the rest
        self._changed = threading.Condition()
        self.gate = threading.Event()
        self.gate.set()

    def of(self, agent_id: str, what: str) -> list[Any]:
        return [rest for who, kind, rest in self.reports if (who, kind) == (agent_id, what)]

    def wait(self, agent_id: str, what: str, count: int = 1, max_s: float = WAIT_MAX_S) -> list[Any]:
        """The reports of a kind, when there are so many."""
        with self._changed:
            found = self._changed.wait_for(lambda: len(self.of(agent_id, what)) >= count, max_s)
        assert found, f"no {count} {what} of {agent_id}, but {[(who, kind) for who, kind, _ in self.reports][-20:]}"
        return self.of(agent_id, what)

    def _note(self, agent_id: str, what: str, rest: object = None) -> None:
        assert self.gate.wait(WAIT_MAX_S), "the gate was opened in time"
        with self._changed:
            self.reports.append((agent_id, what, rest))
            self._changed.notify_all()

    def started(self, started: Started) -> None:
        self._note(started.agent_id, "started", started)

    def start_failed(self, agent_id: str, message: str) -> None:
        self._note(agent_id, "start_failed", message)

    def heartbeat(self, agent_id: str, frame: HeartbeatFrame) -> None:
        self._note(agent_id, "heartbeat", frame)

    def summary(self, agent_id: str, text: str, frame: SummaryFrame) -> None:
        self._note(agent_id, "summary", text)

    def acknowledged(self, agent_id: str, frame: AckFrame) -> None:
        self._note(agent_id, "ack", frame.ack_command)

    def error(self, agent_id: str, frame: ErrorFrame) -> None:
        self._note(agent_id, "error", frame.message)

    def dead_letter(self, agent_id: str, line: str, reason: str) -> None:
        self._note(agent_id, "dead_letter", (line, reason))

    def flush_missed(self, agent_id: str, missed: int) -> None:
        self._note(agent_id, "flush_missed", missed)

    def exited(self, ended: Exit) -> None:
        self._note(ended.agent_id, "exited", ended)


@contextmanager
def hosting(home: Path, sink: Sink, **settings: Any) -> Iterator[Processes]:
    """A host of agents that leaves nothing behind."""
    host = Processes(load({}, home=home, **settings), sink)
    try:
        yield host
    finally:
        host.close(grace_s=0.0)


def child(code: str, agent_id: str = "c-1", **given: Any) -> AgentSpec:
    """A child that runs this Python."""
    return AgentSpec(id=agent_id, type="test", kind=AgentKind.CHILD, executable="python", args=("-c", code), **given)


def service(*argv: str, agent_id: str = "s-1") -> AgentSpec:
    """A service that is this program."""
    return AgentSpec(id=agent_id, type="test", kind=AgentKind.HTTP, executable=argv[0], args=argv[1:])


def gone(pid: int, max_s: float = WAIT_MAX_S) -> bool:
    """Does this process end in time? The kernel tells, and no number is taken for another process's."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return bool(poll.poll(max_s * 1000))
    finally:
        os.close(handle)


def lives(pid: int) -> bool:
    return not gone(pid, 0)


def lines_of(path: Path, count: int, still: Callable[[], bool]) -> list[str]:
    """The lines of a file that another process writes, when there are so many."""
    tick = threading.Event()
    for _ in range(int(WAIT_MAX_S / 0.01)):
        found = path.read_text().splitlines() if path.exists() else []
        if len(found) >= count:
            return found
        assert still(), f"whoever writes {path.name} has ended: {found}"
        tick.wait(0.01)
    raise AssertionError(f"{path.name} has only {found}")
