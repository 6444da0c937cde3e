"""A child agent in one file: copy it, change `observe` and `summarise`, and leave the rest.

It needs Python and nothing else: no broker, no database, no package. Try it in a shell, and type a command:

    $ python agent.py
    {"cmd":"flush"}
    {"cmd":"sequence","sequence":["stop","flush","shutdown"]}

It speaks JSON lines: commands come on stdin, frames go to stdout, one a line, and its log goes to stderr.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

OBSERVE_INTERVAL_S = 1.0
"""How often `observe` is called."""


def observe() -> dict[str, Any] | None:
    """One thing that happened or was measured; None if there is nothing to tell."""
    return {"at": stamp(now()), "load": round(os.getloadavg()[0], 2)}


def summarise(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What to tell about the things gathered since the last flush. May take its time: meanwhile the next ones are gathered."""
    return items


# --- below this line nothing needs to change -----------------------------------------------------------------------------------

HEARTBEAT_INTERVAL_S = float(os.environ.get("AGENT_HEARTBEAT_INTERVAL_S", "15"))
ITEMS_MAX = 10_000  # between two flushes; what comes beyond is counted as dropped
SNAPSHOTS_MAX = 100  # that wait for the summarizer
COMMAND_BYTES_MAX = 65_536
FRAME_BYTES_MAX = 2_000_000  # what a host takes as one line
STEP_MAX_S = 5.0  # how long a command waits for what is being observed
LEAVE_MAX_S = 10.0


class Accumulator:
    """What was gathered since the last flush."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._items: list[dict[str, Any]] = []
        self._start = now()
        self._dropped = 0
        self._step = threading.Lock()  # held while something is observed
        self.gathering = True

    def __len__(self) -> int:
        return len(self._items)

    def step(self) -> None:
        """Observe and gather one thing, unless told to stop."""
        with self._step:
            item = observe() if self.gathering else None
            if item is None:
                return
            with self._lock:
                if len(self._items) < ITEMS_MAX:
                    self._items.append(item)
                else:
                    self._dropped += 1

    def gather(self, gathering: bool) -> None:
        """Go on, or stop; what is being observed still counts, so it waits for that."""
        held = self._step.acquire(timeout=STEP_MAX_S)
        self.gathering = gathering
        if held:
            self._step.release()

    def snapshot(self) -> Snapshot:
        """Take what there is and begin anew, in one step: nothing is lost between, and nothing is there twice."""
        with self._lock:
            end = max(now(), self._start)  # clocks are set back now and then
            taken = Snapshot(self._start, end, self._items, self._dropped)
            self._items, self._start, self._dropped = [], end, 0
            return taken


class Snapshot:
    """What was gathered between two flushes."""

    def __init__(self, start: int, end: int, items: list[dict[str, Any]], dropped: int) -> None:
        self.start, self.end, self.items, self.dropped = start, end, items, dropped
        self.asked_at = time.monotonic()

    def data(self) -> dict[str, Any]:
        """The summary."""
        items = summarise(self.items)
        told = {
            "start_time": stamp(self.start),
            "end_time": stamp(self.end),
            "duration_s": (self.end - self.start) / 1000,
            "items": items,
            "count": len(items),
        }
        return told | {"dropped": self.dropped} if self.dropped else told


class Agent:
    """Three threads: one listens, one gathers, one summarises. The main thread sends heartbeats and waits for the end."""

    def __init__(self) -> None:
        self.accumulator = Accumulator()
        self.leaving = threading.Event()
        self.told_to_leave = False
        self.gone = threading.Event()  # all that was to be said is said
        self.latency_ms = 0.0
        self._todo: queue.Queue[Callable[[], None]] = queue.Queue(SNAPSHOTS_MAX)  # of the summarizer
        self._stdout = threading.Lock()
        self._measured = (time.monotonic(), time.process_time())

    def run(self) -> None:
        """Live until told to shut down, until SIGTERM, or until whoever started us has closed our stdin."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.leaving.set())
        parts = {"command-listener": self.listen, "worker-loop": self.work, "summarizer": self.tell}
        for name, part in parts.items():
            threading.Thread(target=part, name=name, daemon=True).start()
        log("INFO", "threads: " + ", ".join(thread.name for thread in threading.enumerate()))
        while not self.leaving.is_set():
            self.heartbeat()
            self.leaving.wait(HEARTBEAT_INTERVAL_S)
        if not self.told_to_leave:
            self.obey(["stop", "flush", "shutdown"], acknowledge=False)
        self.gone.wait(LEAVE_MAX_S)

    def listen(self) -> None:
        """The command listener: read stdin, do as told."""
        with open(0, "rb", closefd=False) as lines:
            while line := lines.readline(COMMAND_BYTES_MAX):
                try:
                    command = json.loads(line)
                    members = command["sequence"] if command["cmd"] == "sequence" else [command["cmd"]]
                    self.obey(members, acknowledge=True)
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    self.say({"type": "error", "message": f"no command that I know: {line[:100]!r} ({error})"})
        self.leaving.set()

    def obey(self, members: list[str], *, acknowledge: bool) -> None:
        """Do these in order. What follows a flush is acknowledged after its summary."""
        unknown = set(members) - {"stop", "pause", "resume", "flush", "shutdown"}
        if unknown:
            raise ValueError(f"unknown: {sorted(unknown)}")
        behind_flush = False
        for member in members:
            if member == "flush":
                snapshot = self.accumulator.snapshot()
                self._todo.put(lambda snapshot=snapshot: self.summary(snapshot))  # type: ignore[misc] # binds this one
                behind_flush = True
            elif member == "shutdown":
                self.told_to_leave = True
                self._todo.put(self.gone.set)
                self._todo.put(self.leaving.set)
                return
            else:
                self.accumulator.gather(member == "resume")
            if acknowledge:
                ack = {"type": "ack", "ack_command": member}
                if behind_flush:
                    self._todo.put(lambda ack=ack: self.say(ack))  # type: ignore[misc] # binds this one
                else:
                    self.say(ack)

    def work(self) -> None:
        """The worker loop: gather."""
        failure = ""
        due = time.monotonic()
        while True:
            due = max(due + OBSERVE_INTERVAL_S, time.monotonic())
            try:
                self.accumulator.step()
                failure = ""
            except Exception as error:  # noqa: BLE001 - whatever it is, it is told and the agent lives on
                if failure != repr(error):  # once, not every second
                    failure = repr(error)
                    self.say({"type": "error", "message": f"observing failed: {failure}"})
            time.sleep(max(0.0, due - time.monotonic()))

    def tell(self) -> None:
        """The summarizer: package what was gathered and send it, in the order of the flushes."""
        while True:
            self._todo.get()()

    def summary(self, snapshot: Snapshot) -> None:
        """Send the summary of a snapshot."""
        try:
            self.say({"type": "summary", "data": snapshot.data()})
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told and the agent lives on
            self.say({"type": "error", "message": f"summarising failed: {error!r}"})
        self.latency_ms = round((time.monotonic() - snapshot.asked_at) * 1000, 3)

    def heartbeat(self) -> None:
        """Send a sign of life."""
        (wall, cpu), self._measured = self._measured, (time.monotonic(), time.process_time())
        metrics = {
            "cpu": round(100 * (self._measured[1] - cpu) / max(self._measured[0] - wall, 0.001), 1),  # percent of a core
            "mem": memory_mb(),
            "queue": len(self.accumulator),
            "latency_ms": self.latency_ms,  # of the last flush
        }
        self.say({"type": "heartbeat", "timestamp": stamp(now()), "metrics": metrics})

    def say(self, frame: dict[str, Any]) -> None:
        """Write one line, whole, whoever else writes."""
        if frame["type"] in {"ack", "error"}:
            frame["timestamp"] = stamp(now())
        line = json.dumps(frame, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if len(line) > FRAME_BYTES_MAX:
            raise ValueError(f"the {frame['type']} has {len(line)} bytes, more than {FRAME_BYTES_MAX}")
        with self._stdout:
            try:
                while line:
                    line = line[os.write(1, line) :]
            except OSError:
                os._exit(0)  # nobody hears us


def now() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def stamp(millis: int) -> str:
    """A time as it travels: RFC 3339, UTC, milliseconds."""
    return f"{datetime.fromtimestamp(millis // 1000, tz=UTC):%Y-%m-%dT%H:%M:%S}.{millis % 1000:03d}Z"


def memory_mb() -> float:
    """What this process has in memory."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - plain for a small process
            return round(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)
    except OSError:
        return 0.0


def log(level: str, message: str) -> None:
    """A line for our log; its reader keeps these words."""
    line = {"ts": stamp(now()), "level": level, "agent_id": os.environ.get("AGENT_ID", ""), "trace_id": "", "message": message}
    sys.stderr.write(json.dumps(line) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    Agent().run()
    os._exit(0)  # not past a thread that still waits for stdin
