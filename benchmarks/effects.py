"""The mark that each executed step leaves behind; law: the proof of work does not come from the engine that is measured.

One byte in a file per process, a few microseconds, the same for every peer.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER_VARIABLE = "BENCHMARK_EFFECTS"

_files: dict[int, int] = {}  # by process id: a forked worker opens its own


def mark() -> None:
    """Note that a step was executed."""
    pid = os.getpid()
    file = _files.get(pid)
    if file is None:
        path = Path(os.environ[FOLDER_VARIABLE]) / str(pid)
        file = _files[pid] = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(file, b".")


def count(folder: Path) -> int:
    """How many steps were executed, by whomever."""
    return sum(path.stat().st_size for path in folder.iterdir())
