"""Named places where a process may die; law: each commit and each publish of the engine stands between two of them.

Off, a crash point costs one comparison. A test arms one by name; then the process ends there as SIGKILL would end it, or, in a simulation,
`SimulatedCrash` unwinds to the scheduler of the simulation.
"""

from __future__ import annotations

import os
from collections.abc import Callable

_armed: Callable[[str], None] | None = None


def crashpoint(name: str) -> None:
    """Die here if this point is armed."""
    if _armed is not None:
        _armed(name)


def arm(action: Callable[[str], None] | None) -> None:
    """Call `action(name)` at every crash point from now on; None disarms."""
    global _armed  # noqa: PLW0603 - one switch per process is the point
    _armed = action


def die_at(target: str, *, hit: int = 1) -> None:
    """Arm `target`: the process exits without any clean-up at its `hit`-th passage."""
    left = hit

    def action(name: str) -> None:
        nonlocal left
        if name == target:
            left -= 1
            if left == 0:
                os._exit(137)

    arm(action)
