"""Arrivals that several threads deliver at once share a commit; law: each caller hears of its own arrival, when it is committed, and of nobody else's.

Whoever comes first writes at once. Who comes while somebody writes waits for that commit, and then all who wait are written together: so a
lone signal is as quick as ever, and a thousand at once are a few commits (group commit, as databases do it with their logs).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from schemas.history import Arrival

D = TypeVar("D", bound="Delivery")

TOGETHER_MAX = 500  # arrivals of one commit


@dataclass(frozen=True, slots=True)
class Delivery:
    """One arrival; deliveries with the same `target` are for the same run."""

    target: Hashable
    arrival: Arrival
    request_id: str
    done: Future[None] = field(default_factory=Future)


class Deliveries(Generic[D]):
    """Writes what threads deliver, `write` at a time, which returns what to raise in each caller, if anything."""

    def __init__(self, write: Callable[[Sequence[D]], Sequence[Exception | None]]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._waiting: list[D] = []
        self._writing = False

    def deliver(self, delivery: D) -> None:
        """Return when it is committed; raises what hinders it."""
        with self._lock:
            self._waiting.append(delivery)
            first, self._writing = not self._writing, True
        if first:
            self._round()
            with self._lock:
                self._writing = more = bool(self._waiting)
            if more:  # this caller has waited long enough: somebody else writes for those who came meanwhile
                threading.Thread(target=self._go_on, name="orchestrator-deliveries", daemon=True).start()
        delivery.done.result()

    def _go_on(self) -> None:
        while True:
            self._round()
            with self._lock:
                if not self._waiting:
                    self._writing = False
                    return

    def _round(self) -> None:
        with self._lock:
            batch, self._waiting = self._waiting[:TOGETHER_MAX], self._waiting[TOGETHER_MAX:]
        told: Sequence[BaseException | None]
        try:
            told = self._write(batch)
        except BaseException as error:  # noqa: BLE001 - raised in each of the callers; none of them must wait for ever
            told = [error] * len(batch)
        for delivery, hindrance in zip(batch, told, strict=True):
            if hindrance is None:
                delivery.done.set_result(None)
            else:
                delivery.done.set_exception(hindrance)
