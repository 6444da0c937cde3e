"""A load of workflows on real workers, with what must be true of it after any fault."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from celery import Celery

from orchestrator.clock import SYSTEM
from orchestrator.handle import WorkflowHandle
from tests.e2e import doomed
from tests.e2e.processes import DoomedSite, Program, Worker, answering, wait_until

LOAD_RUNS = 200
LOAD_STEPS = 5  # activities of a run: steps, one Celery task, one that may run once
LOAD_MAX_S = 45.0
AFTER_MAX_S = 25.0  # for a further run, once the load is done
FAULT_AFTER = 150  # steps; the whole load has four times as many

CANCELLED = re.compile(r"Task doomed\.task\[(\S+?)--\d+-\d+\] cannot be acknowledged after a connection loss")
Effect = tuple[str, str]  # what an activity did, and for which workflow; a workflow of the load has one activity at a time


class Load:
    """200 workflows of 5 activities on two workers and a beat, and what must be true of them after any fault."""

    def __init__(self, opened: DoomedSite) -> None:
        self.site = opened
        self.handles: list[WorkflowHandle[Any]] = []
        queue = opened.settings.default_queue
        self.own_queues = ["first", "second"]
        self.workers = [self.site.worker(queues=f"{queue},{own}", wait=False) for own in self.own_queues]
        self.beat: Program = opened.beat()
        for worker in self.workers:
            opened.await_ready(worker)

    def start(self) -> None:
        """Start all of it; returns in the middle of it."""
        self.handles = self.site.start(LOAD_RUNS, LOAD_STEPS - 2)
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
        self.site.judge()
        done = Counter(effect for kind in ("step", "task", "once") for effect in self.site.counted(kind))
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
            wait_until(lambda: answering(asker) == nodes, f"{nodes} answer", AFTER_MAX_S)

    def _all_effects(self) -> set[tuple[str, ...]]:
        kinds = [*["step"] * (LOAD_STEPS - 2), "task", "once"]
        return {(kind, f"w-{run}", str(number)) for run in range(LOAD_RUNS) for number, kind in enumerate(kinds)}
