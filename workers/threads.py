"""Threads that can grow, shrink, be interrupted and be given up; law: a job that has ended is never struck, whatever the timing.

Python can raise an exception in another thread (`PyThreadState_SetAsyncExc`), at its next bytecode. `Threads` does it only under the lock
under which a thread takes and leaves its job, and a thread that leaves its job first lets strike what is pending; so `Job.conclude`, which
tells the outcome, cannot be interrupted. A thread inside a C call (a socket, a sleep) is struck when the call returns: until then it can
only be given up, that is, replaced by a fresh one and forgotten.
"""

from __future__ import annotations

import contextvars
import ctypes
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.log import get_logger

GIVEN_UP_MAX = 100
"""Stuck threads that are replaced; further ones are not, so that a leak ends as a full pool and not as a dead host."""

logger = get_logger(__name__)


class Interruption(BaseException):
    """The task was ended from outside; not an Exception, so that neither author code nor the tracer takes it for a failure."""


STRIKES = (Interruption, SoftTimeLimitExceeded)


class Job(Protocol):
    """What a thread does for us."""

    def run(self) -> None:
        """Do it; may be interrupted at any point."""
        ...

    def conclude(self) -> None:
        """Tell what came of it; never interrupted, called even if `run` was struck before its first line."""
        ...


class Call:
    """A job that answers through a future: for callers inside the process."""

    def __init__(self, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.future: Future[Any] = Future()
        self._function, self._args = function, args
        self._context = contextvars.copy_context()
        self._result: Any = None
        self._error: BaseException | None = Interruption("struck before it began")

    def run(self) -> None:
        """Call the function, in the caller's context variables."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self._result = self._context.run(self._function, *self._args)
            self._error = None
        except BaseException as error:  # noqa: BLE001 - it is the caller's, who gets it from the future
            self._error = error

    def conclude(self) -> None:
        """Resolve the future."""
        if self.future.cancelled():
            return
        if self._error is None:
            self.future.set_result(self._result)
        else:
            self.future.set_exception(self._error)


@dataclass(eq=False)
class Seat:
    """One thread's place: what it does now, and what was done to it."""

    ident: int = 0
    job: Job | None = None
    strikes: tuple[type[BaseException], ...] = ()
    given_up: bool = False
    shielded: bool = False
    held_back: type[BaseException] | None = None  # the last strike that met the shield


class _Here(threading.local):
    """The seat of the present thread, if it is one of ours."""

    threads: Threads | None = None
    seat: Seat | None = None


class Threads:
    """At most `limit` jobs at once, in the order they came; threads are started when needed and daemons, so none delays an exit."""

    def __init__(self, limit: int, *, name: str) -> None:
        self._limit, self._name = limit, name
        self._lock = threading.Lock()
        # The lock must be a plain one: a strike between taking and entering a lock written in Python would leave it locked for ever.
        self._changed = threading.Condition(self._lock)
        self._queue: deque[Job] = deque()
        self._seats: set[Seat] = set()
        self._idle = 0
        self._given_up = 0
        self._closed = False

    @property
    def limit(self) -> int:
        """Jobs at once."""
        return self._limit

    @property
    def running(self) -> int:
        """Jobs that run now, without those that were given up."""
        with self._lock:
            return sum(seat.job is not None for seat in self._seats)

    @property
    def queued(self) -> int:
        """Jobs that wait for a thread."""
        return len(self._queue)

    @property
    def given_up(self) -> int:
        """Threads that are stuck in jobs over their hard limit."""
        return self._given_up

    @property
    def alive(self) -> int:
        """Threads in service."""
        return len(self._seats)

    def submit(self, job: Job) -> None:
        """Run the job when a thread is free; never waits."""
        with self._lock:
            assert not self._closed, "no job is given to threads that were closed"
            self._queue.append(job)
            self._serve()

    def resize(self, limit: int) -> None:
        """Change the number of jobs at once; busy threads finish what they do."""
        with self._lock:
            self._limit = limit
            self._serve()
            self._changed.notify_all()

    def strike(self, job: Job, error: type[BaseException]) -> bool:
        """Raise `error` in the thread that runs `job`, once; False if none runs it, or it was struck so or interrupted before."""
        with self._lock:
            seat = next((seat for seat in self._seats if seat.job is job), None)
            if seat is None or error in seat.strikes or Interruption in seat.strikes:
                return False
            hit(seat, error)
            return True

    def give_up(self, job: Job) -> bool:
        """Interrupt the thread that runs `job` and let a fresh one take its place; False if none runs it."""
        with self._lock:
            seat = next((seat for seat in self._seats if seat.job is job), None)
            if seat is None:
                return False
            hit(seat, Interruption)
            if self._given_up >= GIVEN_UP_MAX:
                logger.error("%d threads are stuck in tasks over their hard time limit; this one is not replaced", self._given_up)
                return True
            seat.given_up = True
            self._given_up += 1
            self._seats.discard(seat)
            self._serve()
            return True

    def drop_queued(self, wanted: Callable[[Job], bool] = lambda _: True) -> list[Job]:
        """Take back the waiting jobs that are `wanted`; they will not run."""
        with self._lock:
            dropped = [job for job in self._queue if wanted(job)]
            self._queue = deque(job for job in self._queue if not wanted(job))
            return dropped

    def close(self) -> None:
        """Let every thread end after its present job; waits for none."""
        with self._lock:
            self._closed = True
            self._queue.clear()
            self._changed.notify_all()

    def interrupt_all(self) -> None:
        """Strike whatever runs."""
        with self._lock:
            for seat in self._seats:
                if seat.job is not None:
                    hit(seat, Interruption)

    def _serve(self) -> None:
        """With the lock: wake an idle thread, or start one while there is work for it and the limit allows."""
        if self._idle:
            self._changed.notify()
        wanted = min(len(self._queue) - self._idle, self._limit - len(self._seats))
        for _ in range(wanted):
            seat = Seat()
            self._seats.add(seat)
            threading.Thread(target=self._live, args=(seat,), name=f"{self._name}-{len(self._seats)}", daemon=True).start()

    def shield(self, seat: Seat, *, up: bool) -> None:
        """Hold strikes back, or let them through and strike with the one that was held back."""
        with self._lock:
            if up and not seat.shielded and seat.strikes:
                let_strike()  # what was thrown before must hit here: behind this line it would hit what the shield is for
            seat.shielded = up
            if not up and seat.held_back is not None:
                error, seat.held_back = seat.held_back, None
                throw(seat.ident, error)
        if not up:
            let_strike()

    def _live(self, seat: Seat) -> None:
        seat.ident = threading.get_ident()
        _HERE.threads, _HERE.seat = self, seat
        while True:
            try:
                done = self._leave(seat)
                if done is not None:
                    done.conclude()
                if not self._take(seat):
                    return
                assert seat.job is not None, "whoever took a job has one"
                seat.job.run()
            except STRIKES:
                continue  # it struck at the very end of a job: the next round leaves that job and concludes it
            except Exception:
                logger.exception("A job of the pool broke outside its task; the thread goes on")

    def _leave(self, seat: Seat) -> Job | None:
        with self._lock:
            # First of all: a strike that is still pending must hit here, where the job can be left once more, and never after this line.
            if seat.strikes and seat.held_back is None:
                let_strike()
            done, seat.job, seat.strikes, seat.shielded, seat.held_back = seat.job, None, (), False, None
            return done

    def _take(self, seat: Seat) -> bool:
        with self._lock:
            while not (seat.given_up or self._closed or len(self._seats) > self._limit):
                if self._queue:
                    seat.job = self._queue.popleft()
                    return True
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
            self._given_up -= seat.given_up
            self._seats.discard(seat)
            return False


def shield(*, up: bool) -> None:
    """In a job: strikes wait from `shield(up=True)` to `shield(up=False)`, which is where they hit then.

    For transactions and whatever else takes a lock that is not written in C: a strike between taking a lock and the `try` that gives it
    back, the very place where a thread stands that has waited for it, would leave it locked for ever. Nothing happens on other threads.
    """
    if _HERE.threads is not None and _HERE.seat is not None:
        _HERE.threads.shield(_HERE.seat, up=up)


def hit(seat: Seat, error: type[BaseException]) -> None:
    """Strike the job in this seat; only under the lock of its threads."""
    seat.strikes = (*seat.strikes, error)
    if seat.shielded:
        seat.held_back = error
    else:
        throw(seat.ident, error)


def throw(ident: int, error: type[BaseException]) -> None:
    """Raise `error` in the thread at its next bytecode.

    There is no taking it back: setting the pending exception to NULL leaves CPython 3.11 signalled for ever, and a process in that state
    hangs as soon as a profiler or debugger traces it. Who wants to be rid of it lets it strike (`let_strike`).
    """
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(error))


def let_strike() -> None:
    """Give what is pending for this thread the chance to be raised: CPython looks when a function is entered and when a loop turns."""
    for _ in range(2):
        pass


_HERE = _Here()
