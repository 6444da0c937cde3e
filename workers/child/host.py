"""The processes of the agents of one host, on one loop in a thread of its own; law: whoever calls gets a future at once, whatever an agent does.

Made for the main process of a Celery worker: nothing here waits for a child by its number, blocks the caller, or needs a signal handler.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import FleetError
from schemas.agents import AgentSpec
from schemas.frames import MEMBERS, SEQUENCE_MAX, Member, SequenceCommand
from schemas.messages import ErrorCode
from schemas.settings import Settings
from workers import vitals
from workers.child.hosted import Hosted
from workers.child.launch import launch_of
from workers.child.process import GUARD_MAX_S, PIPES_MAX_S, REAP_MAX_S, failure
from workers.child.reports import Exit, Flushed, Reports, Running, Sequenced, Sink, Started

JOIN_MAX_S = 10.0
MARGIN_S = 2.0

T = TypeVar("T")

log = logging.getLogger("orchestrator.agents")


class Processes:
    """Starts, hears, tells and ends the processes of agents; every method may be called from any thread and returns at once, but `close`.

    Futures fail with FleetError. What happens unasked is told to the sink.
    """

    def __init__(self, settings: Settings, sink: Sink, *, clock: Clock = SYSTEM) -> None:
        self._settings = settings
        self._clock = clock
        self.log_folder = log_folder(settings)
        self._hosted: dict[str, Hosted] = {}
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._reports = Reports(sink, self._soon)
        # Lives as long as its host: the kernel tells a guard that its parent is gone when the thread that made it ends.
        self._thread = threading.Thread(target=self._loop.run_forever, name="agent-processes", daemon=True)
        self._reports.start()
        self._thread.start()

    def start(
        self,
        spec: AgentSpec,
        *,
        argv: tuple[str, ...] | None = None,
        extra_env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> Future[Started]:
        """Start the process of an agent, in `cwd` or where the host runs; `argv` and `extra_env` win over what its spec says."""
        future: Future[Started] = _future()
        try:
            launch = launch_of(spec, self._settings, argv=argv, extra=extra_env, cwd=cwd)
        except FleetError as error:
            future.set_exception(error)
            return future

        def begin() -> None:
            if self._closing:
                raise FleetError("this host is closing and starts nothing more", code=ErrorCode.AGENT_UNAVAILABLE)
            if spec.id in self._hosted:
                raise FleetError(f"a process of agent {spec.id!r} runs here already", code=ErrorCode.INVALID_TRANSITION)
            hosted = Hosted(launch, self._reports, self.log_folder, self._settings, self._clock)
            self._hosted[spec.id] = hosted
            hosted.task = self._loop.create_task(self._host(hosted, future))

        self._call(future, begin)
        return future

    def stop(
        self, agent_id: str, *, drain_s: float = 0.0, grace_s: float | None = None, number: signal.Signals = signal.SIGTERM
    ) -> Future[Exit]:
        """End it: a child is told to stop, flush and leave, and has `drain_s` for that; then comes the signal, then after `grace_s` SIGKILL.

        May be said again, with other times. Without `grace_s` it is that of the settings.
        """
        future: Future[Exit] = _future()
        grace = self._settings.terminate_grace_s if grace_s is None else grace_s
        self._call(future, lambda: self._found(agent_id).stop(future, drain_s, grace, number))
        return future

    def kill(self, agent_id: str) -> Future[Exit]:
        """End it and all that it started at once."""
        return self.stop(agent_id, grace_s=0.0)

    def flush(self, agent_id: str) -> Future[Flushed]:
        """Ask a child for its summary; asked while it is being asked, that is one flush."""
        future: Future[Flushed] = _future()
        self._call(future, lambda: self._found(agent_id).flush(future))
        return future

    def sequence(self, agent_id: str, members: tuple[Member, ...], *, timeout_s: float) -> Future[Sequenced]:
        """Have a child do these in order; who is told to leave and has not left in time is ended."""
        future: Future[Sequenced] = _future()
        try:
            SequenceCommand(sequence=members)
        except ValidationError:
            message = f"a sequence has 1 to {SEQUENCE_MAX} of {', '.join(MEMBERS)}"
            future.set_exception(FleetError(message, code=ErrorCode.INVALID_REQUEST))
            return future
        self._call(future, lambda: self._found(agent_id).sequence(future, members, timeout_s))
        return future

    def running(self) -> tuple[Running, ...]:
        """What runs here now."""
        return tuple(hosted.running() for hosted in tuple(self._hosted.values()) if hosted.started)

    def close(self, *, drain_s: float = 0.0, grace_s: float | None = None) -> None:
        """End all at once as `stop` does, wait until they are gone and their reports delivered, and give everything back. Start nothing more."""
        if not self._thread.is_alive():
            return
        grace = self._settings.terminate_grace_s if grace_s is None else grace_s
        ends: Future[list[Future[Exit]]] = _future()

        def end_all() -> None:
            self._closing = True
            futures: list[Future[Exit]] = []
            for hosted in self._hosted.values():
                futures.append(_future())
                hosted.stop(futures[-1], drain_s, grace, signal.SIGTERM)
            ends.set_result(futures)

        self._call(ends, end_all)
        most_s = drain_s + grace + GUARD_MAX_S + PIPES_MAX_S + REAP_MAX_S + MARGIN_S
        left = wait(ends.result(MARGIN_S + most_s), most_s).not_done
        if left:
            log.error("%s agents did not end within %s s; the kernel ends them when this process does", len(left), most_s)
        self._reports.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(JOIN_MAX_S)
        self._loop.close()

    async def _host(self, hosted: Hosted, future: Future[Started]) -> None:
        try:
            await hosted.process.start()
        except Exception as error:  # noqa: BLE001 - whoever asked gets it
            self._gone(hosted)
            failed = error if isinstance(error, FleetError) else failure(hosted.launch, f"could not be started: {error!r}")
            hosted.failed(failed)
            future.set_exception(failed)
            return
        pid = hosted.process.pid
        started = Started(hosted.launch.agent_id, pid, vitals.process_started_at(pid) or self._clock.now())
        hosted.began(started)
        future.set_result(started)
        try:
            ended = await hosted.live()
        except Exception:
            log.exception("the process of agent %s is lost to its host, which ends it", hosted.launch.agent_id)
            hosted.process.kill_guard()
            with suppress(Exception):
                await hosted.process.discard()
            ended = Exit(
                hosted.launch.agent_id, pid, -int(signal.SIGKILL), hosted.asked, forced=True, reason="its host failed", at=self._clock.now()
            )
        self._gone(hosted)
        hosted.over(ended)

    def _gone(self, hosted: Hosted) -> None:
        self._hosted.pop(hosted.launch.agent_id, None)

    def _found(self, agent_id: str) -> Hosted:
        hosted = self._hosted.get(agent_id)
        if hosted is None:
            raise FleetError(f"no process of agent {agent_id!r} runs here", code=ErrorCode.AGENT_UNAVAILABLE)
        return hosted

    def _call(self, future: Future[T], function: Callable[[], None]) -> None:
        """Call on the loop; what it raises is the future's."""

        def call() -> None:
            try:
                function()
            except Exception as error:  # noqa: BLE001 - whoever asked gets it
                future.set_exception(error)

        if not self._soon(call):
            future.set_exception(FleetError("this host is closed", code=ErrorCode.AGENT_UNAVAILABLE))

    def _soon(self, function: Callable[..., object], *args: object) -> bool:
        try:
            self._loop.call_soon_threadsafe(partial(function, *args))
        except RuntimeError:  # closed
            return False
        return True


def log_folder(settings: Settings) -> Path:
    """Where the logs of agents are."""
    return settings.log_directory or settings.home.absolute() / "logs"


def _future() -> Future[T]:
    """One that nobody can cancel: what was asked happens."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    return future
