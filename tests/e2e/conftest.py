"""A site of real worker and beat processes whose tables are held against the laws when it closes."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from orchestrator.clock import SYSTEM
from orchestrator.handle import WorkflowHandle
from orchestrator.store import Store
from tests.e2e import doomed
from tests.e2e.processes import Program, Site, Worker, broker_of, site, wait_until
from tests.laws import check_laws

CLOCKS_S = 0.02  # how far a worker's idea of the database's clock may be off
LOAD_RUNS = 200
LOAD_STEPS = 5  # activities of a run: steps, one Celery task, one that may run once
LOAD_MAX_S = 45.0
AFTER_MAX_S = 25.0  # for a further run, once the load is done
FAULT_AFTER = 150  # steps; the whole load has four times as many

Doom = Callable[..., Worker]


class DoomedSite:
    """Workers of `tests.e2e.doomed`, some of which die at a crash point."""

    def __init__(self, opened: Site) -> None:
        self.site = opened

    def worker(self, doom: str = "", **options: Any) -> Worker:
        """A worker process that exits at the crash point `doom`; without one it is well."""
        self.site.environment["DOOM"] = doom
        options.setdefault("wait", not doom)
        return self.site.worker(include="tests.e2e.doomed", **options)

    def start(self, count: int, steps: int = 3) -> list[Any]:
        return [self.site.client.start_workflow(doomed.everything, steps, id=f"w-{number}") for number in range(count)]

    def counted(self, kind: str) -> list[tuple[str, ...]]:
        """What activities wrote down, without their attempt."""
        return [tuple(line.split()[:3]) for line in self.site.notes(kind)]

    def judge(self) -> None:
        check_laws(self.site.store, early_s=CLOCKS_S)
        once = self.counted("once")
        assert len(set(once)) == len(once), f"an activity that may run once ran twice: {once}"


CANCELLED = re.compile(r"Task doomed\.task\[(\S+?)--\d+-\d+\] cannot be acknowledged after a connection loss")
Effect = tuple[str, str]  # what an activity did, and for which workflow; a workflow of the load has one activity at a time


class Load:
    """200 workflows of 5 activities on two workers and a beat, and what must be true of them after any fault."""

    def __init__(self, opened: Site) -> None:
        self.doomed = DoomedSite(opened)
        self.site = opened
        self.handles: list[WorkflowHandle[Any]] = []
        queue = opened.settings.default_queue
        self.own_queues = ["first", "second"]
        self.workers = [self.doomed.worker(queues=f"{queue},{own}", wait=False) for own in self.own_queues]
        self.beat: Program = opened.beat()
        for worker in self.workers:
            opened.await_ready(worker)

    def start(self) -> None:
        """Start all of it; returns in the middle of it."""
        self.handles = self.doomed.start(LOAD_RUNS, LOAD_STEPS - 2)
        self.site.await_note("step", count=FAULT_AFTER)
        assert len(self.site.notes("once")) < LOAD_RUNS, "the load was over before the fault"

    @contextmanager
    def stopped(self, *workers: Worker) -> Iterator[set[Effect]]:
        """Hold these workers for a moment; gives what is in flight on any worker by the store's account.

        A message that has arrived, or an activity that is about to be written down as started, has had no effect yet.
        """
        for worker in workers:
            worker.signal(signal.SIGSTOP)
        with self.site.store.transaction(readonly=True) as tx:
            started = tx.run("SELECT type, workflow_id FROM activities WHERE state = 'started'")
        yield {(type_.removeprefix("doomed."), workflow_id) for type_, workflow_id in started}
        for worker in workers:
            if worker.alive:
                worker.signal(signal.SIGCONT)

    def cancelled(self) -> set[Effect]:
        """The tasks that Celery ended in its workers because it had lost the broker, by their logs."""
        ended = {run_id for worker in self.workers for run_id in CANCELLED.findall(worker.text)}
        with self.site.store.transaction(readonly=True) as tx:
            return {("task", workflow_id) for run_id, workflow_id in tx.run("SELECT run_id, workflow_id FROM runs") if run_id in ended}

    def await_results(self) -> None:
        """Nothing is lost."""
        deadline = SYSTEM.monotonic() + LOAD_MAX_S
        results = [handle.result(timeout=max(deadline - SYSTEM.monotonic(), 0.1)) for handle in self.handles]
        assert results == [LOAD_STEPS] * LOAD_RUNS

    def finish(self, in_flight: set[Effect]) -> None:
        """Nothing is lost, the laws hold, and only what was in flight has run twice."""
        self.await_results()
        self.doomed.judge()
        done = Counter(effect for kind in ("step", "task", "once") for effect in self.doomed.counted(kind))
        print(f"{len(in_flight)} in flight, {sum(done.values()) - len(done)} ran twice")
        lost = self._all_effects() - set(done)
        assert {effect[:2] for effect in lost} <= {effect for effect in in_flight if effect[0] == "once"}, f"never ran: {sorted(lost)}"
        twice = {effect: times for effect, times in done.items() if times > 1}
        assert {effect[:2] for effect in twice} <= in_flight, f"ran again though they were not in flight: {sorted(twice)}"
        assert set(twice.values()) <= {2}, f"ran more than twice: {twice}"

    def everybody_serves(self, *, killed: Sequence[Worker] = ()) -> None:
        """Each worker process that the test did not kill has lived through it, answers, and takes the runs and the messages of its own queue."""
        assert self.beat.alive, self.beat.text
        survivors = {own: worker for own, worker in zip(self.own_queues, self.workers, strict=True) if worker not in killed}
        runs = {}
        for own, worker in survivors.items():
            assert worker.alive, worker.text
            runs[own] = self.site.client.start_workflow(doomed.everything, LOAD_STEPS - 2, id=f"after-{own}", queue=own)
        assert {own: run.result(timeout=AFTER_MAX_S) for own, run in runs.items()} == dict.fromkeys(survivors, LOAD_STEPS)
        with Celery("asker", broker=self.site.broker_url, set_as_current=False) as asker:
            nodes = {worker.node for worker in survivors.values()}
            wait_until(lambda: _answering(asker) == nodes, f"{nodes} answer", AFTER_MAX_S)

    def _all_effects(self) -> set[tuple[str, ...]]:
        kinds = [*["step"] * (LOAD_STEPS - 2), "task", "once"]
        return {(kind, f"w-{run}", str(number)) for run in range(LOAD_RUNS) for number, kind in enumerate(kinds)}


@pytest.fixture
def doomed_site(valkey: Any, tmp_path: Path) -> Iterator[DoomedSite]:
    """SQLite and the embedded broker; all laws hold at the end."""
    with site(tmp_path, f"sqlite:///{tmp_path / 'test.db'}", broker_of(valkey), lease_s=3.0, lease_beat_s=1.0, forgotten_s=0.3) as opened:
        yield DoomedSite(opened)


@pytest.fixture
def chaos_site(database_url: str, valkey: Any, tmp_path: Path) -> Iterator[DoomedSite]:
    """Each database and the embedded broker."""
    with site(tmp_path, database_url, broker_of(valkey), lease_s=3.0, lease_beat_s=1.0, forgotten_s=0.3) as opened:
        yield DoomedSite(opened)


def laws_of(url: str) -> None:
    """Hold the laws against any database."""
    store = Store.open(url)
    try:
        check_laws(store, early_s=CLOCKS_S)
    finally:
        store.dispose()


def _answering(asker: Celery) -> set[str]:
    """The nodes that answer a ping; none while the broker that has just come back refuses the question."""
    try:
        return {node for answer in asker.control.ping(timeout=1) or () for node in answer}
    except OSError:
        return set()
