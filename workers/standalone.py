"""`python -m workers.packages.<name>`: an agent package as a program; law: the same worker that `orchestrator agent run` makes."""

from __future__ import annotations

import os
import sys


def main(agent_type: str) -> None:
    """Become the worker of an agent of this type; options are those of `orchestrator agent run`."""
    argv = [sys.executable, "-m", "orchestrator", "agent", "run", agent_type, *sys.argv[1:]]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(argv[0], argv)  # noqa: S606 - no shell, and the interpreter is our own
