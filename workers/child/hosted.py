"""One agent and its process as its host sees them: output into the log, frames into the conversation, one end; law: it ends once, and tells so."""

from __future__ import annotations

import asyncio
import logging
import signal
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.clock import Clock
from orchestrator.errors import FleetError
from schemas.agents import AgentKind
from schemas.frames import Member
from schemas.messages import ErrorCode
from schemas.settings import Settings
from workers.child.budget import Budget, Pace
from workers.child.conversation import Conversation
from workers.child.launch import Launch
from workers.child.lines import Line, Lines
from workers.child.logs import AgentLog, record, told
from workers.child.process import GUARD_MAX_S, STDERR, STDOUT, GuardedProcess
from workers.child.reports import Exit, Flushed, Reports, Running, Sequenced, Source, Started

LOG_LINE_BYTES_MAX = 65_536
RELAY_BURST = 200
RELAY_PER_S = 50.0
"""Lines of its log that its host repeats in its own."""
BYTES_BURST, BYTES_PER_S = 32_000_000, 5_000_000.0
LINES_BURST, LINES_PER_S = 200_000, 5_000.0
"""What one agent may write; who writes more is slowed down."""
MUTE_MAX_S = 5.0
"""How long a child may live with a closed stdout: it can tell nothing any more, so it is ended as failed."""

log = logging.getLogger("orchestrator.agents")


class Hosted:
    """All of it is called on the loop of `Processes`, but `running`."""

    def __init__(self, launch: Launch, reports: Reports, logs: Path, settings: Settings, clock: Clock) -> None:
        self.launch = launch
        self.process = GuardedProcess(launch)
        self.started: Started | None = None
        self.asked = False
        self.task: asyncio.Task[None] | None = None
        self._flush_timeout_s = settings.flush_timeout_s
        self._grace_s = settings.terminate_grace_s
        self._reports = reports
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._log = AgentLog(logs, launch.agent_id)
        self._relay = Budget(RELAY_BURST, RELAY_PER_S, self._loop.time())
        self._source = Source(lambda waiting: self.process.wait(STDOUT, "reports", waiting=waiting))
        self._bytes = Pace(BYTES_BURST, BYTES_PER_S, self._loop.time())
        self._count = Pace(LINES_BURST, LINES_PER_S, self._loop.time())
        self._lines = {stream: Lines(LOG_LINE_BYTES_MAX) for stream in (STDOUT, STDERR)}
        self._conversation: Conversation | None = None
        if launch.kind is AgentKind.CHILD:
            self._conversation = Conversation(launch.agent_id, self.process.say, self._note, reports, self._source)
            self._lines[STDOUT] = Lines(settings.payload_bytes_max)
        self._waiting: list[Future[Exit]] = []
        self._timers: list[asyncio.TimerHandle] = []
        self._reason = ""

    # --- its life

    def began(self, started: Started) -> None:
        """There is a process."""
        self.started = started
        self._reports.put(self._source, 0, self._reports.sink.started, started)

    async def live(self) -> Exit:
        """Hear it until it is gone."""
        await self.process.open(self._heard)
        code, forced = await self.process.ended()
        await self.process.discard()
        assert self.started is not None, "it lives"
        reason = "" if self.asked else self._reason
        signalled = self.process.signalled
        return Exit(
            self.launch.agent_id,
            self.process.pid,
            code,
            asked=self.asked,
            forced=forced,
            signalled=signalled,
            reason=reason,
            at=self._clock.now(),
        )

    def over(self, ended: Exit) -> None:
        """It is gone: tell all who wait, and the sink last."""
        for timer in self._timers:
            timer.cancel()
        if self._conversation is not None:
            self._conversation.over()
        self._log.close()
        self._reports.put(self._source, 0, self._reports.sink.exited, ended)
        for future in self._waiting:
            future.set_result(ended)

    def failed(self, error: FleetError) -> None:
        """There never was a process."""
        for timer in self._timers:
            timer.cancel()
        self._log.close()
        self._reports.put(None, 0, self._reports.sink.start_failed, self.launch.agent_id, error.message)
        for future in self._waiting:
            future.set_exception(error)

    def running(self) -> Running:
        """How it does; from any thread."""
        assert self.started is not None, "only what has started is asked"
        talk = self._conversation
        return Running(
            agent_id=self.launch.agent_id,
            kind=self.launch.kind,
            pid=self.started.pid,
            pid_started_at=self.started.pid_started_at,
            ending=self.asked,
            flush_latency_s=talk.flush_latency_s if talk else None,
            flushes_missed=talk.flushes_missed if talk else 0,
            dead_letters=talk.dead_letters if talk else 0,
        )

    # --- what it is told

    def stop(self, future: Future[Exit], drain_s: float, grace_s: float, number: signal.Signals) -> None:
        """End it; see `Processes.stop`."""
        self.asked = True
        self._waiting.append(future)
        self._end(drain_s, grace_s, number)

    def flush(self, future: Future[Flushed]) -> None:
        """Ask for a summary."""
        self._talk().flush(future, self._flush_timeout_s)

    def sequence(self, future: Future[Sequenced], members: tuple[Member, ...], timeout_s: float) -> None:
        """Have it do these; who is told to leave and has not left in time is ended."""
        if self._talk().sequence(future, members, timeout_s) and "shutdown" in members:
            self.asked = True
            self._timers.append(self._loop.call_later(timeout_s, self._end, 0.0, self._grace_s, signal.SIGTERM))

    def _talk(self) -> Conversation:
        if self._conversation is None:
            message = f"agent {self.launch.agent_id!r} is {self.launch.kind} and not a child, so it has no pipes to be told through"
            raise FleetError(message, code=ErrorCode.INVALID_REQUEST)
        if self.started is None or self.asked:
            raise FleetError(f"agent {self.launch.agent_id!r} is starting or leaving", code=ErrorCode.AGENT_UNAVAILABLE)
        return self._conversation

    def _end(self, drain_s: float, grace_s: float, number: signal.Signals) -> None:
        for timer in self._timers:
            timer.cancel()
        drains = drain_s > 0 and self._conversation is not None and self._conversation.leave(drain_s)
        if drains:
            self._timers = [self._loop.call_later(drain_s, self.process.end, grace_s, number)]
        else:
            self._timers = []
            self.process.end(grace_s, number)
        most_s = (drain_s if drains else 0) + grace_s + GUARD_MAX_S
        self._timers.append(self._loop.call_later(most_s, self.process.kill_guard))

    # --- what it says

    def _heard(self, stream: int, data: bytes | None) -> None:
        lines = self._lines[stream]
        found = list(lines.end() if data is None else lines.feed(data))
        if self._conversation is not None and stream == STDOUT:
            for said in found:
                self._conversation.heard(said)
            if data is None:
                self._timers.append(self._loop.call_later(MUTE_MAX_S, self._mute))
        elif found:
            self._noted(found)
        if data is not None:
            self._slow_down(stream, len(data), len(found))

    def _slow_down(self, stream: int, size: int, lines: int) -> None:
        now = self._loop.time()
        pause_s = max(self._bytes.take(size, now), self._count.take(lines, now))
        if pause_s > 0:
            self.process.wait(stream, "pace", waiting=True)
            self._loop.call_later(pause_s, partial(self.process.wait, stream, "pace", waiting=False))

    def _noted(self, lines: list[Line]) -> None:
        now = self._clock.now()
        self._keep([record(self.launch.agent_id, said, now) for said in lines if said.text])

    def _note(self, level: str, message: str) -> None:
        self._keep([told(self.launch.agent_id, message, self._clock.now(), level=level)])

    def _keep(self, records: list[dict[str, Any]]) -> None:
        self._log.write(records)
        for kept in records:
            if self._relay.spend(self._loop.time()):
                level = logging.getLevelNamesMapping().get(kept["level"], logging.INFO)
                self._reports.put(None, 0, log.log, level, "agent %s: %s", self.launch.agent_id, kept["message"])

    def _mute(self) -> None:
        if not self.asked:
            self._reason = "it closed its stdout, so it could not be heard any more"
            self._end(0, MUTE_MAX_S, signal.SIGTERM)
