"""Whether store and broker answer; law: asking is cheap however often it is done, and never waits for what hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from orchestrator.celery import Orchestrator
from orchestrator.clock import Clock
from orchestrator.errors import BrokerUnavailable, OrchestratorError
from orchestrator.store import Store
from schemas.settings import Settings

if TYPE_CHECKING:
    from celery import Celery

KEPT_S = 2.0  # how old an answer may be
WAIT_MAX_S = 1.0  # how long a caller waits for a new one


@dataclass(frozen=True, slots=True)
class Verdict:
    """How something answers; without a problem it does."""

    problem: str = ""
    at: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether it answers."""
        return not self.problem


class Probe:
    """One check, made by one thread at a time; everybody else gets the last answer."""

    def __init__(self, name: str, check: Callable[[], None], clock: Clock) -> None:
        self.name: Final = name
        self._check = check
        self._clock = clock
        self._changed = threading.Condition()
        self._verdict: Verdict | None = None
        self._thread: threading.Thread | None = None

    def verdict(self) -> Verdict:
        """The last answer if it is fresh, else the next one, else that there is none."""
        with self._changed:
            if self._verdict is None or self._clock.monotonic() - self._verdict.at > KEPT_S:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._ask, name=f"probe-{self.name}", daemon=True)
                    self._thread.start()
                asking = self._thread
                self._changed.wait_for(lambda: self._thread is not asking, WAIT_MAX_S)
                if self._thread is asking:
                    return Verdict(f"the {self.name} has not answered for {WAIT_MAX_S:g} s")
            assert self._verdict is not None, "a thread that has ended has left its verdict"
            return self._verdict

    def _ask(self) -> None:
        problem = ""
        try:
            self._check()
        except OrchestratorError as error:
            problem = error.message
        except Exception as error:  # noqa: BLE001 - whatever it is, it does not answer
            problem = f"the {self.name} cannot be asked: {type(error).__name__}"
        with self._changed:
            self._verdict = Verdict(problem, self._clock.monotonic())
            self._thread = None
            self._changed.notify_all()


class Readiness:
    """The probes of one application."""

    def __init__(self, app: Celery, settings: Settings, store: Store, clock: Clock) -> None:
        self._app = app
        self._settings = settings
        self._orchestrator: Orchestrator | None = None
        self.store = Probe("store", store.check_migrated, clock)
        self.broker = Probe("broker", self._ask_broker, clock)

    def _ask_broker(self) -> None:
        if self._orchestrator is None:
            self._orchestrator = Orchestrator(self._app, settings=self._settings)
        try:
            self._orchestrator.check_broker()
        except (KeyError, ImportError, AttributeError, ValueError) as error:
            raise BrokerUnavailable(f"the broker URL names no broker that can be used: {error}") from error
