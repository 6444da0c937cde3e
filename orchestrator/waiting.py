"""Waiting for rows: one thread asks for all that a process awaits, in one query a pass; law: a wait costs latency or queries, never both.

A wait is asked for at once, then after a millisecond, then ever less often: the pause is at most a quarter of the time waited so far and at
most PAUSE_MAX_S. Waits whose turn is near are asked for together, so a thousand of them settle into one query a pass. Where the database can
tell of closings (`listen`), a second thread hears of them and asks at once, and the first asks less often.

What callers run are *steps*: a generator that yields the futures it waits for and returns its value. The same steps are driven by a
thread (`drive`) or by an event loop (`drive_async`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

from orchestrator.clock import Clock
from orchestrator.errors import DatabaseUnavailable, OrchestratorError

log = logging.getLogger("orchestrator.client")

T = TypeVar("T")


class Ear(Protocol):
    """Something that hears when a run has closed or a query was answered, at least mostly."""

    def hears(self, timeout_s: float) -> list[str]:
        """Wait for hints: texts of ids with spaces between."""
        ...

    def close(self) -> None:
        """Listen no more."""
        ...


Awaited = tuple[Literal["run", "question"], str]
Look = Callable[[Sequence[Awaited]], Mapping[Awaited, Any]]
Steps = Generator["Future[Any]", Any, T]

PAUSE_FIRST_S = 0.001
PAUSE_GROWTH = 1.3
PAUSE_SHARE = 0.25  # of the time waited so far
PAUSE_MAX_S = 0.1
PAUSE_HEARING_S = 0.02  # at least, where closings are told of
IDLE_S = 1.0  # the thread ends when nobody has waited for this long


class Waiter:
    """The thread that asks; it lives while somebody waits. `look` returns what has come of the awaited. Safe after fork."""

    _pid: int
    _changed: threading.Condition
    _waits: list[_Wait]
    _thread: threading.Thread | None
    _ear_thread: threading.Thread | None
    _hears: bool

    def __init__(self, look: Look, clock: Clock, *, listen: Callable[[], Ear | None] = lambda: None) -> None:
        self._look = look
        self._listen = listen
        self._clock = clock
        self._complained = False
        self._reset()

    def wait_for(self, awaited: Awaited) -> Future[Any]:
        """A future of what `look` will find; cancel it to stop waiting."""
        if self._pid != os.getpid():
            self._reset()  # a child of fork: the thread, the lock and those who wait are the parent's
        wait = _Wait(awaited, Future(), self._clock.monotonic())
        with self._changed:
            self._waits.append(wait)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="orchestrator-waiter", daemon=True)
                self._thread.start()
            if self._ear_thread is None:
                self._ear_thread = threading.Thread(target=self._hear, name="orchestrator-ear", daemon=True)
                self._ear_thread.start()
            self._changed.notify()
        return wait.future

    def close(self) -> None:
        """Cancel all waits; the thread ends."""
        if self._pid != os.getpid():
            self._reset()
            return
        with self._changed:
            waits, self._waits = self._waits, []
            thread, self._thread = self._thread, None
            self._ear_thread = None
            self._changed.notify()
        for wait in waits:
            wait.future.cancel()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._waits = []
        self._thread = None
        self._ear_thread = None
        self._hears = False

    def _hear(self) -> None:
        """Look at once when somebody says that something has closed; while nobody can, looking from time to time must do."""
        try:
            ear = self._listen()
        except DatabaseUnavailable:
            ear = None
        while ear is not None and self._ear_thread is threading.current_thread():
            self._hears = True
            try:
                heard = ear.hears(IDLE_S)
            except DatabaseUnavailable:
                break
            ids = {id_ for text in heard for id_ in text.split()}
            with self._changed:
                meant = [wait for wait in self._waits if wait.awaited[1] in ids]
            if meant:
                self._ask(meant)
        if ear is not None:
            ear.close()
        with self._changed:
            if ear is not None and self._ear_thread is threading.current_thread():
                self._ear_thread = None  # lost: the next wait tries again
                self._hears = False

    def _work(self) -> None:
        while due := self._next_due():
            self._ask(due)

    def _ask(self, due: Sequence[_Wait]) -> None:
        """Ask for all of these at once; both threads do."""
        found: Mapping[Awaited, Any] = {}
        failed: Exception | None = None
        try:
            found = self._look(list({wait.awaited for wait in due}))
            self._complained = False
        except DatabaseUnavailable as error:
            # Those who wait have a timeout of their own; an outage shorter than that is none of their business.
            if not self._complained:
                log.warning("still waiting for results: %s", error.message)
            self._complained = True
        except Exception as error:  # noqa: BLE001 - handed to those who wait
            failed = error
        now = self._clock.monotonic()
        with self._changed:
            for wait in due:
                if failed is not None:
                    wait.fail(failed)
                wait.looked(found, now, pause_min_s=PAUSE_HEARING_S if self._hears else PAUSE_FIRST_S)

    def _next_due(self) -> list[_Wait]:
        """Wait until something is to be asked for; nothing when the thread is to end."""
        idle_until = self._clock.monotonic() + IDLE_S
        with self._changed:
            while self._thread is threading.current_thread():
                self._waits = [wait for wait in self._waits if not wait.future.done()]
                now = self._clock.monotonic()
                next_at = min((wait.next_at for wait in self._waits), default=idle_until)
                if self._waits and next_at <= now:
                    return [wait for wait in self._waits if wait.next_at - wait.pause_s / 2 <= now]
                if not self._waits and idle_until <= now:
                    self._thread = None
                    break
                self._changed.wait(max(next_at - now, 0.0))
        return []


class _Wait:
    """One caller's wait for one thing."""

    __slots__ = ("awaited", "began_at", "future", "looked_at", "next_at", "pause_s")

    def __init__(self, awaited: Awaited, future: Future[Any], began_at: float) -> None:
        self.awaited = awaited
        self.future = future
        self.began_at = self.next_at = self.looked_at = began_at
        self.pause_s = PAUSE_FIRST_S / PAUSE_GROWTH

    def looked(self, found: Mapping[Awaited, Any], now: float, *, pause_min_s: float) -> None:
        """Settle, or say when to look again."""
        self.looked_at = now
        if self.awaited in found and not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_result(found[self.awaited])
        share_s = max((now - self.began_at) * PAUSE_SHARE, PAUSE_FIRST_S)
        self.pause_s = min(max(self.pause_s * PAUSE_GROWTH, pause_min_s), max(share_s, pause_min_s), PAUSE_MAX_S)
        self.next_at = now + self.pause_s

    def fail(self, error: Exception) -> None:
        """The look itself went wrong, in a way that trying again does not mend."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """The value that steps returned."""

    value: T


def drive(steps: Steps[T], *, timeout_s: float | None, late: Callable[[], OrchestratorError], clock: Clock) -> T:
    """Run steps in this thread; raises `late()` when they wait for longer than `timeout_s`."""
    end = None if timeout_s is None else clock.monotonic() + timeout_s
    reached = advance(steps, None)
    while not isinstance(reached, Done):
        try:
            answer = reached.result(None if end is None else max(end - clock.monotonic(), 0.0))
        except TimeoutError:
            raise late() from None
        finally:
            reached.cancel()  # also when Ctrl-C ends the wait: nobody must go on asking
        reached = advance(steps, answer)
    return reached.value


async def drive_async(
    steps: Steps[T],
    *,
    timeout_s: float | None,
    late: Callable[[], OrchestratorError],
    in_thread: Callable[[Callable[[], Future[Any] | Done[T]]], Awaitable[Future[Any] | Done[T]]],
) -> T:
    """Run steps in the running loop; only the first, which may speak to the database, borrows a thread."""
    scope = asyncio.timeout(timeout_s)
    try:
        async with scope:
            reached = await in_thread(lambda: advance(steps, None))
            while not isinstance(reached, Done):
                reached = advance(steps, await asyncio.wrap_future(reached))
            return reached.value
    except TimeoutError:
        if scope.expired():
            raise late() from None
        raise


def advance(steps: Steps[T], answer: Any) -> Future[Any] | Done[T]:  # noqa: ANN401 - what `look` found
    """Go on until the next wait or the end."""
    try:
        return steps.send(answer)
    except StopIteration as stop:
        return Done(stop.value)
