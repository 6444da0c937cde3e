"""A peer in a process of its own, called over a pipe; law: what one peer leaves in memory must not slow the next, and none outlives the run."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, cast

import psutil

from benchmarks import effects
from benchmarks.effects import FOLDER_VARIABLE
from benchmarks.peers import PEERS, Bulk, Env, Killed, Peer, Record
from benchmarks.processes import PeerFailed

CALL_MAX_S = 900.0
GOODBYE_MAX_S = 30.0


class Driver:
    """The peer by its name: every method is the one of `Peer`, run over there."""

    def __init__(self, name: str, env: Env) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self._busy = False
        self._line, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(name, env, theirs), name=f"benchmark-{name}")
        self._process.start()
        theirs.close()
        self.in_process: frozenset[str] = self._call("in_process")
        self.cannot: frozenset[str] = self._call("cannot")

    @property
    def pid(self) -> int:
        """The root of all processes of this peer."""
        assert self._process.pid is not None, "it was started"
        return self._process.pid

    def start_workers(self, count: int) -> None:
        """See `Peer`."""
        self._call("start_workers", count)

    def run_sequential(self, count: int, steps: int) -> list[float]:
        """See `Peer`."""
        return cast("list[float]", self._call("run_sequential", count, steps))

    def run_bulk(self, count: int, steps: int) -> Bulk:
        """See `Peer`."""
        return cast("Bulk", self._call("run_bulk", count, steps))

    def run_parallel(self, steps: int) -> float:
        """See `Peer`."""
        return cast("float", self._call("run_parallel", steps))

    def run_signals(self, count: int) -> float:
        """See `Peer`."""
        return cast("float", self._call("run_signals", count))

    def run_timers(self, count: int, seconds: float) -> list[float]:
        """See `Peer`."""
        return cast("list[float]", self._call("run_timers", count, seconds))

    def run_killed(self, count: int, steps: int, marks: int) -> Killed:
        """`run_bulk`, during which a worker is killed and replaced as soon as there are so many marks."""
        return cast("Killed", self._call("run_killed", count, steps, marks))

    def record(self) -> Record | None:
        """See `Peer`."""
        return cast("Record | None", self._call("record"))

    def versions(self) -> dict[str, str]:
        """See `Peer`."""
        return cast("dict[str, str]", self._call("versions"))

    def close(self) -> None:
        """Let it tear down, unless it is in the middle of a call that nobody waits for any more; whatever stays of it is killed."""
        family = _family(self._process.pid)
        self._line.close()
        self._process.join(0 if self._busy else GOODBYE_MAX_S)
        for process in family:
            if process.is_running():
                process.kill()
        self._process.join()

    def _call(self, verb: str, *args: Any) -> Any:  # noqa: ANN401 - what `Peer` says
        try:
            self._line.send((verb, args))
            self._busy = True
            if not self._line.poll(CALL_MAX_S):
                raise PeerFailed(f"{self.name} did not answer to {verb}{args} within {CALL_MAX_S:.0f} s.")
            error, value = self._line.recv()
            self._busy = False
        except (EOFError, BrokenPipeError):
            self._process.join(GOODBYE_MAX_S)
            raise PeerFailed(f"the process of {self.name} ended with status {self._process.exitcode}; what it said is above.") from None
        if error:
            raise PeerFailed(f"{self.name} failed in {verb}{args}:\n{error}")
        return value


def _run_killed(peer: Peer, env: Env, count: int, steps: int, marks: int) -> Killed:
    marks += effects.count(env.effects)
    flying: list[int | None] = []
    ask = getattr(peer, "in_flight", lambda _pid: None)
    with peer.pool.killing(lambda: effects.count(env.effects) >= marks, lambda pid: flying.append(ask(pid))) as killed:
        peer.run_bulk(count, steps)
    if not killed:
        raise PeerFailed("the work was over before the worker could be killed")
    return Killed(time.perf_counter() - killed[0], flying[0])


def _family(pid: int | None) -> list[psutil.Process]:
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _follow_parent() -> None:
    """Kill all of this peer when the run itself was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "this is a child"
    parent.join()
    for process in reversed(_family(os.getpid())):
        process.kill()


def _serve(name: str, env: Env, line: Connection) -> None:
    """Answer calls until the other end closes."""
    threading.Thread(target=_follow_parent, daemon=True).start()
    for which in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C is for the one who called us: it closes the line
        signal.signal(which, signal.SIG_IGN)
    os.environ[FOLDER_VARIABLE] = str(env.effects)
    for variable in [key for key in os.environ if key.startswith("ORCHESTRATOR_")]:
        del os.environ[variable]  # a benchmark has default settings, whoever runs it
    module, _, attribute = PEERS[name].partition(":")
    peer: Peer | None = None
    try:
        while True:
            verb, args = line.recv()
            try:
                if peer is None:
                    peer = cast("Peer", getattr(importlib.import_module(module), attribute)())
                    peer.setup(env)
                found = partial(_run_killed, peer, env) if verb == "run_killed" else getattr(peer, verb)
                line.send(("", found(*args) if callable(found) else found))
            except Exception:  # noqa: BLE001 - told in full to the other end, which decides
                line.send((traceback.format_exc(), None))
    except (EOFError, BrokenPipeError):
        pass  # the run is over
    finally:
        if peer is not None:
            peer.teardown()
