"""What the worker of an agent logs: JSON lines, on stdout and into the agent's file; law: every line has ts, level, agent_id, trace_id and message."""

from __future__ import annotations

import logging
import sys
from typing import Any

from orchestrator.telemetry import JsonLines
from schemas.settings import Settings
from workers.child.host import log_folder
from workers.child.logs import FILE_BYTES_MAX, FILES_MAX, log_path
from workers.rotation import RollingFile

SETTINGS: list[Settings] = []
"""Of this worker, once it is known to have an agent."""


class FileHandler(logging.Handler):
    """Appends formatted records to a file that rolls over."""

    def __init__(self, file: RollingFile) -> None:
        super().__init__()
        self._file = file

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            self._file.write(self.format(record).encode("utf-8", "replace") + b"\n")
        except Exception:  # noqa: BLE001 - logging's own way
            self.handleError(record)


def set_up(loglevel: int | str | None = None, **_: Any) -> None:  # noqa: ANN401 - signals add what they like
    """In place of Celery's own set-up."""
    settings = SETTINGS[0]
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if not settings.agent_logged:
        folder = log_folder(settings)
        handlers.append(FileHandler(RollingFile(log_path(folder, settings.agent_id), file_bytes_max=FILE_BYTES_MAX, files_max=FILES_MAX)))
    sys.__stdout__ = sys.__stderr__  # type: ignore[misc] # Celery says there what is no log line
    lines = JsonLines(agent_id=settings.agent_id)
    for handler in handlers:
        handler.setFormatter(lines)
    root = logging.getLogger()
    root.handlers[:] = handlers
    root.setLevel(loglevel or settings.log_level)
