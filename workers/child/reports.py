"""What is told about the processes of agents, and the thread that tells it; law: in order, one at a time, and never on the loop of the pipes.

A sink may take its time (a database, a disk): the child whose reports wait is read no further, the others are.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from schemas.agents import AgentKind
from schemas.frames import AckFrame, ErrorFrame, HeartbeatFrame, SummaryFrame

OUTSTANDING_BYTES_MAX = 4 * 1024 * 1024
OUTSTANDING_REPORTS_MAX = 1_000
JOIN_MAX_S = 10.0

log = logging.getLogger("orchestrator.agents")


@dataclass(frozen=True, slots=True)
class Started:
    """A process of an agent runs; that does not mean that the agent is ready."""

    agent_id: str
    pid: int
    pid_started_at: float  # by the kernel; with it the number names one process for ever


@dataclass(frozen=True, slots=True)
class Exit:
    """A process of an agent, and all that it had started, are gone."""

    agent_id: str
    pid: int
    code: int  # negative: the signal that ended it
    asked: bool  # somebody wanted it to end: then any code means stopped
    forced: bool  # it did not leave within its grace and was killed
    signalled: bool = False  # it was told by signal; else a code that is not 0 is a crash, even while it drained
    reason: str = ""  # why its host ended it unasked
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Flushed:
    """A child has answered a flush."""

    agent_id: str
    latency_s: float
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Sequenced:
    """A child has done a sequence: what it acknowledged, in order; `left` if it has left as it was told to."""

    agent_id: str
    acknowledged: tuple[str, ...]
    left: bool = False


@dataclass(frozen=True, slots=True)
class Running:
    """One process that runs here."""

    agent_id: str
    kind: AgentKind
    pid: int
    pid_started_at: float
    ending: bool = False
    flush_latency_s: float | None = None  # of the last flush
    flushes_missed: int = 0  # since the last summary
    dead_letters: int = 0


class Sink:
    """Who wants to know overrides what it cares for. Called on one thread, in order; what it raises is logged and forgotten."""

    def started(self, started: Started) -> None:
        """A process runs."""

    def start_failed(self, agent_id: str, message: str) -> None:
        """There is no process, and why."""

    def heartbeat(self, agent_id: str, frame: HeartbeatFrame) -> None:
        """A child gave a sign of life."""

    def summary(self, agent_id: str, text: str, frame: SummaryFrame) -> None:
        """A child gave what it gathered; `text` is its `data`, as it wrote it."""

    def acknowledged(self, agent_id: str, frame: AckFrame) -> None:
        """A child has done what it was told."""

    def error(self, agent_id: str, frame: ErrorFrame) -> None:
        """A child reports that something went wrong."""

    def dead_letter(self, agent_id: str, line: str, reason: str) -> None:
        """A child wrote what is no frame; `line` is its beginning."""

    def flush_missed(self, agent_id: str, missed: int) -> None:
        """No summary came in time; `missed` counts since the last one that did. After the first the child is asked once more."""

    def exited(self, ended: Exit) -> None:
        """It is gone. The last report about this process."""


class Source:
    """One whose reports are on their way; all of it on the loop's thread."""

    def __init__(self, wait: Callable[[bool], None]) -> None:
        self._wait = wait
        self._bytes = 0
        self._reports = 0
        self._waiting = False

    def sent(self, size: int) -> None:
        """One more is on its way."""
        self._bytes += size
        self._reports += 1
        if not self._waiting and (self._bytes > OUTSTANDING_BYTES_MAX or self._reports > OUTSTANDING_REPORTS_MAX):
            self._waiting = True
            self._wait(True)

    def delivered(self, size: int) -> None:
        """One has arrived."""
        self._bytes -= size
        self._reports -= 1
        if self._waiting and self._bytes <= OUTSTANDING_BYTES_MAX // 2 and self._reports <= OUTSTANDING_REPORTS_MAX // 2:
            self._waiting = False
            self._wait(False)


class Reports:
    """Carries reports to the sink."""

    def __init__(self, sink: Sink, tell_loop: Callable[..., object]) -> None:
        self.sink = sink
        self._tell_loop = tell_loop
        self._queue: queue.SimpleQueue[tuple[Source | None, int, Callable[..., object], tuple[object, ...]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._carry, name="agent-reports", daemon=True)

    def start(self) -> None:
        """Begin to carry."""
        self._thread.start()

    def put(self, source: Source | None, size: int, function: Callable[..., object], *args: object) -> None:
        """Have the sink told; `size` bytes of `source` are outstanding until then. On the loop's thread, if there is a source."""
        if source is not None:
            source.sent(size)
        self._queue.put((source, size, function, args))

    def stop(self) -> None:
        """Carry what is there, a bounded time, and end."""
        self._queue.put(None)
        self._thread.join(JOIN_MAX_S)

    def _carry(self) -> None:
        while (report := self._queue.get()) is not None:
            source, size, function, args = report
            try:
                function(*args)
            except Exception:
                log.exception("a report about an agent could not be taken: %s", getattr(function, "__name__", function))
            if source is not None:
                self._tell_loop(source.delivered, size)
