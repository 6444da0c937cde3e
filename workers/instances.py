"""Instances kept between turns; law: used only if they stand at the run's current turn, and closed here, never by the collector.

Bounded by number, least recently used goes first. Belongs to the engine's thread.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from orchestrator.core.instance import Instance

CLAIMS_MAX = 10_000  # claims that are remembered where no instances are kept


@dataclass(slots=True)
class Held:
    """A run that this process claimed last, as far as it knows: `epoch` is the claim's, `instance` is None where caching is off."""

    epoch: int
    turn: int
    instance: Instance | None
    queue: str
    type: str


class Instances:
    """The cache; with `instances_max` 0 it keeps the claims and no instance."""

    def __init__(self, instances_max: int) -> None:
        self._instances_max = instances_max
        self._held: OrderedDict[str, Held] = OrderedDict()

    def __len__(self) -> int:
        """How many runs are held."""
        return len(self._held)

    def get(self, run_id: str) -> Held | None:
        """What is held of a run."""
        held = self._held.get(run_id)
        if held is not None:
            self._held.move_to_end(run_id)
        return held

    def put(self, run_id: str, held: Held) -> None:
        """Hold a run."""
        known = self._held.get(run_id)
        if known is not None and known.instance is not held.instance:
            _close(known)
        if not self._instances_max:
            _close(held)
        self._held[run_id] = held
        self._held.move_to_end(run_id)

    def trim(self) -> None:
        """Let go of what is over the limit. Not part of `put`: a batch must not lose a run it has just decided."""
        while len(self._held) > (self._instances_max or CLAIMS_MAX):
            _, held = self._held.popitem(last=False)
            _close(held)

    def drop(self, run_id: str) -> None:
        """Forget a run."""
        held = self._held.pop(run_id, None)
        if held is not None:
            _close(held)

    def clear(self) -> None:
        """Forget all."""
        for held in self._held.values():
            _close(held)
        self._held.clear()


def _close(held: Held) -> None:
    if held.instance is not None:
        held.instance.close()
        held.instance = None
