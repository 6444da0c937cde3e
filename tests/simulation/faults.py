"""What goes wrong in a world, drawn from its seed; law: every kind of fault is there in some seeds and absent from others."""

from __future__ import annotations

import random
from dataclasses import dataclass


class SimulatedCrash(BaseException):
    """A process ends here, as SIGKILL would end it."""


@dataclass(frozen=True)
class Faults:
    """How often the world misbehaves, per occasion; `until_s` is when it stops."""

    until_s: float = 20.0
    crash: float = 0.0  # at a crash point
    stall: float = 0.0  # a thread is not scheduled, between transactions
    freezes: int = 0  # of whole processes, for longer than their lease
    away: float = 0.0  # the database, before a transaction
    refused: float = 0.0  # … at the commit
    unknown: float = 0.0  # … after the commit
    outages: int = 0  # the database is away for seconds
    drop: float = 0.0
    double: float = 0.0
    late: float = 0.0
    wipes: int = 0
    restarts: int = 0  # of processes, anywhere between two steps
    stops: int = 0  # of workers, in good order
    clocks: int = 0  # wall clocks that are set, a worker's or the database's

    @classmethod
    def drawn(cls, chance: random.Random) -> Faults:
        """The faults of a seed: none, some, or many of some kinds."""
        if chance.random() < 0.1:
            return cls()

        def rate(most: float) -> float:
            return chance.random() ** 2 * most if chance.random() < 0.6 else 0.0

        def times(most: int) -> int:
            return chance.randint(1, most) if chance.random() < 0.4 else 0

        return cls(
            until_s=chance.uniform(4.0, 20.0),
            crash=rate(0.03),
            stall=rate(0.1),
            freezes=times(2),
            away=rate(0.05),
            refused=rate(0.05),
            unknown=rate(0.05),
            outages=times(2),
            drop=rate(1.0),
            double=rate(0.5),
            late=rate(0.5),
            wipes=times(2),
            restarts=times(3),
            stops=times(3),
            clocks=times(2),
        )
