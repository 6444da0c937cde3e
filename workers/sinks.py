"""Where the reports of children go; law: at once, in whole lines, and what a child gathered as it wrote it.

`EventFile` is the event file of the seeds: `{timestamp, label, event, data}`, one line an event. `Console` prints heartbeats. `Sinks` tells
several sinks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from orchestrator.clock import SYSTEM, Clock
from schemas.frames import AckFrame, ErrorFrame, HeartbeatFrame, SummaryFrame
from workers.child.logs import stamp
from workers.child.reports import Exit, Sink, Started
from workers.rotation import RollingFile

FILE_BYTES_MAX = 100_000_000
FILES_MAX = 10

log = logging.getLogger("orchestrator.agents")


class EventFile(Sink):
    """Heartbeats, summaries and errors of children as JSON lines; the times are those of their arrival."""

    def __init__(self, path: Path, *, clock: Clock = SYSTEM) -> None:
        self._file = RollingFile(path, file_bytes_max=FILE_BYTES_MAX, files_max=FILES_MAX)
        self._clock = clock

    @property
    def lost(self) -> int:
        """Events that the disk refused."""
        return self._file.lost

    def close(self) -> None:
        """Give the file back; its last line is complete."""
        self._file.close()

    def heartbeat(self, agent_id: str, frame: HeartbeatFrame) -> None:
        """One line."""
        self._write(agent_id, "heartbeat", orjson.dumps({"heartbeat": True, "metrics": frame.metrics}))

    def summary(self, agent_id: str, text: str, frame: SummaryFrame) -> None:
        """One line; nothing in it is read or rewritten."""
        self._write(agent_id, "summary", text.encode())

    def error(self, agent_id: str, frame: ErrorFrame) -> None:
        """One line."""
        self._write(agent_id, "error", orjson.dumps({"message": frame.message, "code": frame.code, "details": frame.details}))

    def _write(self, label: str, event: str, data: bytes) -> None:
        head = orjson.dumps({"timestamp": stamp(self._clock.now()), "label": label, "event": event})
        self._file.write(head[:-1] + b',"data":' + data + b"}\n")


class Console(Sink):
    """Prints heartbeats, for those who want to see them."""

    def heartbeat(self, agent_id: str, frame: HeartbeatFrame) -> None:
        """One line in the log of the host."""
        log.info("heartbeat of %s: %s", agent_id, " ".join(f"{name}={value}" for name, value in frame.metrics.items()))


class Sinks(Sink):
    """Several sinks, told one after the other; one that fails keeps nothing from the others."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def started(self, started: Started) -> None:
        """Pass it on."""
        self._tell(lambda sink: sink.started(started))

    def start_failed(self, agent_id: str, message: str) -> None:
        """Pass it on."""
        self._tell(lambda sink: sink.start_failed(agent_id, message))

    def heartbeat(self, agent_id: str, frame: HeartbeatFrame) -> None:
        """Pass it on."""
        self._tell(lambda sink: sink.heartbeat(agent_id, frame))

    def summary(self, agent_id: str, text: str, frame: SummaryFrame) -> None:
        """Pass it on."""
        self._tell(lambda sink: sink.summary(agent_id, text, frame))

    def acknowledged(self, agent_id: str, frame: AckFrame) -> None:
        """Pass it on."""
        self._tell(lambda sink: sink.acknowledged(agent_id, frame))

    def error(self, agent_id: str, frame: ErrorFrame) -> None:
        """Pass it on."""
        self._tell(lambda sink: sink.error(agent_id, frame))

    def dead_letter(self, agent_id: str, line: str, reason: str) -> None:
        """Pass it on."""
        self._tell(lambda sink: sink.dead_letter(agent_id, line, reason))

    def flush_missed(self, agent_id: str, missed: int) -> None:
        """Pass it on."""
        self._tell(lambda sink: sink.flush_missed(agent_id, missed))

    def exited(self, ended: Exit) -> None:
        """Pass it on."""
        self._tell(lambda sink: sink.exited(ended))

    def _tell(self, tell: Callable[[Sink], Any]) -> None:
        for sink in self._sinks:
            try:
                tell(sink)
            except Exception:
                log.exception("%s could not take a report about an agent", type(sink).__name__)
