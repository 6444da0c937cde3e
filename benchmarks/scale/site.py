"""A place with our own processes on it; law: what a part has used is told by part, children and servers included."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psutil
import psycopg

from benchmarks.arena import Arena, Place, tree_cpu_s
from benchmarks.processes import PeerFailed, Pool
from orchestrator.store import Store

SETTLE_S = 5.0  # before an idle system is looked at
AWAIT_MAX_S = 900.0
LOOK_S = 0.002

MIB = 2**20


class Site:
    """A migrated database, a broker, and processes by part: `worker`, `beat`."""

    def __init__(self, place: Place) -> None:
        self.env = place.env
        self._servers = place.servers
        self._pools: dict[str, Pool] = {}
        self.store = Store.open(place.env.database_url)
        self.store.upgrade()
        self._eyes = psycopg.connect(place.env.database_url.replace("+psycopg", ""), autocommit=True)

    def start(self, part: str, *words: str, count: int = 1, **settings: str) -> None:
        """Start processes of `celery -A benchmarks.ours_app`, and return when they answer if they are workers."""
        pool = self._pools[part] = Pool(self.env, part)
        variables = {
            "ORCHESTRATOR_HOME": str(self.env.folder / "home"),
            "ORCHESTRATOR_DATABASE_URL": self.env.database_url,
            "ORCHESTRATOR_BROKER_URL": self.env.broker_url,
            **{f"ORCHESTRATOR_{name.upper()}": value for name, value in settings.items()},
        }
        for number in range(count):
            name = ("-n", f"{part}-{number}@%h") if words[0] == "worker" else ()
            pool.spawn((sys.executable, "-m", "celery", "-A", "benchmarks.ours_app", *words, *name, "-l", "warning"), variables)
        if words[0] == "worker":
            pool.await_pong(self.env.broker_url, count)

    def stop(self, part: str) -> None:
        """End the processes of a part."""
        self._pools.pop(part).stop()

    def log_tail(self, part: str) -> str:
        """The end of what its processes said."""
        return self._pools[part].log_tail()

    def close(self) -> None:
        """End everything."""
        for pool in self._pools.values():
            pool.stop()
        self._eyes.close()
        self.store.dispose()

    def ask(self, question: str, *params: object) -> Any:  # noqa: ANN401 - what the question asks for
        """The one value that a query gives."""
        row = self._eyes.execute(question, params).fetchone()  # type: ignore[call-overload]  # our own words
        return None if row is None else row[0]

    def wait(self, question: str, *params: object, wanted: int, tell: Callable[[float], None] | None = None) -> float:
        """Return when a query gives `wanted` or more; the seconds that took."""
        began = time.perf_counter()
        while (found := self.ask(question, *params) or 0) < wanted:
            if time.perf_counter() - began > AWAIT_MAX_S:
                raise PeerFailed(f"{found} of {wanted} after {AWAIT_MAX_S:.0f} s: {question}")
            for pool in self._pools.values():
                pool.check()
            if tell is not None:
                tell(found / wanted)
            time.sleep(LOOK_S)
        return time.perf_counter() - began

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds by part so far."""
        return {name: sum(tree_cpu_s(pid) for pid in pids) for name, pids in self._parts().items()}

    def memory_mib(self) -> dict[str, float]:
        """Memory by part: what is shared is counted once over all (proportional set size)."""
        return {name: sum(tree_pss(pid) for pid in pids) / MIB for name, pids in self._parts().items()}

    def load(self, seconds: float, *, settle_s: float = SETTLE_S) -> dict[str, float]:
        """Share of one core that each part uses when nobody asks for anything, over some seconds."""
        time.sleep(settle_s)
        before, began = self.cpu_s(), time.perf_counter()
        time.sleep(seconds)
        after, wall_s = self.cpu_s(), time.perf_counter() - began
        return {name: (after[name] - before[name]) / wall_s for name in after}

    def database_mib(self) -> float:
        """Size of the database on the disk."""
        return float(self.ask("SELECT pg_database_size(current_database())")) / MIB

    def _parts(self) -> Mapping[str, list[int]]:
        own = {name: [process.pid for process in pool.processes] for name, pool in self._pools.items()}
        return {**own, **{name: [pid] for name, pid in self._servers.items()}}


@contextmanager
def opened(arena: Arena, name: str) -> Iterator[Site]:
    """A site for the length of a block."""
    with arena.place(name) as place:
        site = Site(place)
        try:
            yield site
        finally:
            site.close()


def tree_pss(pid: int) -> int:
    """Bytes of memory of a process and all below it; what they share is counted once."""
    total = 0
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        try:
            total += pss(process)
        except psutil.NoSuchProcess:
            continue
    return total


def pss(process: psutil.Process) -> int:
    """Bytes of memory of one process; its resident set where the system does not tell what is shared."""
    return int(getattr(process.memory_full_info(), "pss", 0) or process.memory_info().rss)
