"""Code that can stop in its middle and go on later; law: exactly one thread of the simulation runs at any moment, chosen by the scheduler."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Killed(BaseException):
    """The process that a fiber belongs to is dead: unwind."""


class Fiber:
    """A call on a thread of its own that runs only while the scheduler waits for it."""

    def __init__(self, body: Callable[[], None]) -> None:
        self._body = body
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._killed = False
        self._error: BaseException | None = None
        self.done = False
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def resume(self) -> bool:
        """Run until the next `pause` or the end; whether it has ended. What the call raises is raised here."""
        self._go.release()
        self._back.acquire()
        if self.done:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self.done

    def pause(self) -> None:
        """Called by the body: let the scheduler go on."""
        self._back.release()
        self._go.acquire()
        if self._killed:
            raise Killed

    def kill(self) -> None:
        """Unwind the body where it stands."""
        if not self.done:
            self._killed = True
            self.resume()

    def _live(self) -> None:
        self._go.acquire()
        try:
            if not self._killed:
                self._body()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - it belongs to the scheduler
            self._error = error
        self.done = True
        self._back.release()
