"""Long histories: what a turn costs when much lies behind it, with the instance in memory and without."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks import effects
from benchmarks.arena import Arena
from benchmarks.ours_app import Ledger
from benchmarks.processes import PeerFailed
from benchmarks.scale.figures import Curve, Figure, Findings, Plot, Probe
from benchmarks.scale.site import LOOK_S, Site, opened
from orchestrator.client import Client, WorkflowHandle

PROBED = (0.02, 0.1, 0.25, 0.5, 1.0)  # of the longest history
STEPS = 200  # over which a turn in memory is measured
COLD_STEPS = 2  # each replays all
CHUNK = 500
TAKE_MAX_S = 300.0
EVENTS = "SELECT history_events FROM runs WHERE run_id = %s"


def run(arena: Arena, events: int, tell: Callable[[float], None]) -> Findings:
    """One run that grows; at each length a worker that has it in memory, one that must replay it first, one that always replays."""
    warm: list[tuple[float, float]] = []
    first: list[tuple[float, float]] = []
    without: list[tuple[float, float]] = []
    with opened(arena, "histories") as site, Client(site.env.database_url, site.env.broker_url) as client:
        handle = client.start_workflow(Ledger)
        ledger = Steps(site, handle)
        for share in PROBED:
            site.start("worker", "worker")
            ledger.grow(int(events * share), tell, events)
            length = ledger.length()
            warm.append((length, ledger.take(STEPS) / STEPS * 1000))
            site.stop("worker")
            site.start("worker", "worker")
            first.append((length, ledger.take(1) * 1000))
            site.stop("worker")
            site.start("worker", "worker", cache="false")
            without.append((length, ledger.take(COLD_STEPS) / COLD_STEPS * 1000))
            site.stop("worker")
        size = float(site.ask("SELECT sum(length(events)) FROM turns"))
        length = ledger.length()
    return Findings(
        [
            Figure("events of the longest history", length, ""),
            Figure("a step in memory, longest history against shortest", warm[-1][1] / warm[0][1], "times", 1.3),
            Figure("a step in memory, longest history", warm[-1][1], "ms"),
            Figure("first step of a worker that has to replay it", first[-1][1], "ms"),
            Figure("of that for each event", first[-1][1] / length * 1000, "us"),
            Figure("a step with the cache off", without[-1][1], "ms"),
            Figure("history on the disk for each event", size / length, "bytes"),
        ],
        plots=[
            Plot(
                "A step of a run with a long history",
                "events of its history",
                "ms",
                [Curve("in memory", warm), Curve("first after a restart", first), Curve("cache off", without)],
            )
        ],
    )


class Steps:
    """The one run, and what it has done."""

    def __init__(self, site: Site, handle: WorkflowHandle[int]) -> None:
        self._site = site
        self._handle = handle

    def length(self) -> int:
        """Events of its history."""
        return int(self._site.ask(EVENTS, self._handle.run_id) or 0)

    def take(self, steps: int) -> float:
        """Let it take so many steps; the seconds that took."""
        wanted = effects.count(self._site.env.effects) + steps
        began = time.perf_counter()
        self._handle.signal(Ledger.go_on, steps)
        while effects.count(self._site.env.effects) < wanted:
            if time.perf_counter() - began > TAKE_MAX_S:
                raise PeerFailed(f"{steps} steps are not done after {TAKE_MAX_S:.0f} s:\n{self._site.log_tail('worker')}")
            time.sleep(LOOK_S)
        return time.perf_counter() - began

    def grow(self, events: int, tell: Callable[[float], None], most: int) -> None:
        """Let it go on until its history has so many events."""
        while (length := self.length()) < events:
            tell(length / most)
            self.take(CHUNK)


PROBE = Probe("histories", "one run with a history of so many events", full=50_000, quick=2_000, run=run)
