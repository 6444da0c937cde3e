"""The engine of a worker process: claim ready runs, take their turns, commit them together, then act; law: a turn is one transaction.

One thread does all of it, `cycle` by `cycle`: decide everything at hand, write it in one transaction that also claims what comes next, and
only then ring, publish and run. The busier the process, the more turns share a commit. Everything else (doorbells, finished activities,
timers that are due) only puts a note into the engine's queue.

A failed transaction leaves nothing half done: what memory holds is thrown away, runs are read again from their histories, and results of
activities that are at hand go through the inbox.
"""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.clock import Clock
from orchestrator.core.definitions import ACTIVITIES, WORKFLOWS, WorkflowDefinition
from orchestrator.core.failures import to_failure
from orchestrator.core.instance import Instance
from orchestrator.core.payloads import PayloadConverter
from orchestrator.core.replay import revive, step
from orchestrator.crashpoints import crashpoint
from orchestrator.dispatch import Broker, settlement
from orchestrator.errors import DatabaseUnavailable, OrchestratorError, QueryFailed
from orchestrator.store import Store, activities, control, turns, workers
from schemas.history import FLAGS_NOW, ActivityCompleted, Arrival, Failure, Turn
from schemas.runs import (
    ActivityKey,
    ClaimedRun,
    PendingActivity,
    Question,
    Resolved,
    Settlement,
    TryAgain,
    TurnCommit,
    TurnFailure,
)
from schemas.settings import Settings
from workers.agenda import Agenda
from workers.attempts import Outcome, Runner
from workers.effects import Plan, plan
from workers.instances import Held, Instances
from workers.watchdog import Watchdog

log = logging.getLogger("orchestrator.turns")

TURN_RETRY_FIRST_S = 0.5  # a failed turn is tried again after this, doubled each time
TURN_RETRY_MAX_S = 30.0
DATABASE_RETRY_S = 0.25  # pause before the next try while the database is away

Note = Outcome | None  # a finished attempt; None: look for work


@dataclass(slots=True)
class Job:
    """A run whose turn is to be taken now."""

    run_id: str
    epoch: int
    turn: int
    queue: str
    type: str
    arrivals: list[Arrival] = field(default_factory=list)
    consumed: list[int] = field(default_factory=list)
    settled: list[ActivityKey] = field(default_factory=list)
    direct: list[Settlement] = field(default_factory=list)  # the same outcomes, in case the turn is lost
    more: bool = False
    turn_failures: int = 0


@dataclass(slots=True)
class Batch:
    """All that one transaction writes."""

    settlements: list[Settlement] = field(default_factory=list)
    commits: list[TurnCommit] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    failures: list[TurnFailure] = field(default_factory=list)
    released: list[tuple[str, int]] = field(default_factory=list)
    answers: list[Question] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.settlements or self.commits or self.failures or self.released or self.answers)


class Engine:
    """The turn loop of one worker process. `queues` is asked at every claim: a paused queue is simply not among them."""

    def __init__(
        self,
        store: Store,
        broker: Broker,
        settings: Settings,
        *,
        worker_id: str,
        queues: Callable[[], Sequence[str]],
        converter: PayloadConverter,
        clock: Clock,
    ) -> None:
        self.store = store
        self.broker = broker
        self.settings = settings
        self.worker_id = worker_id
        self.converter = converter
        self.clock = clock
        self.runner: Runner = Runner.none()
        self.agenda = Agenda(clock)
        self.claims = 0  # runs claimed so far: liveness is progress
        self._queues = queues
        self._notes: queue.SimpleQueue[Note] = queue.SimpleQueue()
        self._instances = Instances(settings.instances_max if settings.cache else 0)
        self._watchdog = Watchdog(settings.turn_seconds_max, clock)
        self._running: dict[ActivityKey, PendingActivity] = {}
        self._claimed: list[ClaimedRun] = []
        self._questions: list[Question] = []
        self._histories: dict[str, list[Turn]] = {}
        self._left: list[Settlement] = []  # to be settled through the inbox
        self._wanted = True
        self._doubtful = False  # a transaction failed: what the store says we own must be compared with what we have
        self._skew_s = 0.0
        self.draining = False

    # --- notes from other threads ----------------------------------------------------------------------------------------

    def ring(self) -> None:
        """There may be ready work."""
        self._notes.put(None)

    def report(self, outcome: Outcome) -> None:
        """An attempt has ended."""
        self._notes.put(outcome)

    # --- the loop --------------------------------------------------------------------------------------------------------

    def run_once(self, *, wait_s: float) -> None:
        """Wait for something to do, at most wait_s seconds, then do all there is."""
        outcomes = self._listen(wait_s)
        try:
            self._cycle(outcomes)
        except DatabaseUnavailable as error:
            log.warning("the database cannot be reached, trying again: %s", error)
            self.clock.sleep(DATABASE_RETRY_S)

    def idle(self) -> bool:
        """Whether nothing is at hand: no claimed run, no running attempt, no note."""
        return not (self._claimed or self._questions or self._running or self._left or self._wanted) and self._notes.empty()

    @property
    def running(self) -> int:
        """Attempts that run here now."""
        return len(self._running)

    def close(self) -> None:
        """Leave: every instance goes, on this thread."""
        self._instances.clear()
        self._watchdog.stop()

    def _listen(self, wait_s: float) -> list[Outcome]:
        outcomes: list[Outcome] = []
        if not (self._claimed or self._questions or self._left or self._wanted or self._doubtful):
            wait_s = self.agenda.wait_s(self.now(), wait_s)
            try:
                self._note(self._notes.get(timeout=wait_s) if wait_s > 0 else self._notes.get_nowait(), outcomes)
            except queue.Empty:
                self._wanted = wait_s > 0  # nobody rang: look all the same, a message may have been lost
        while True:
            try:
                self._note(self._notes.get_nowait(), outcomes)
            except queue.Empty:
                return outcomes

    def _note(self, note: Note, outcomes: list[Outcome]) -> None:
        if note is None:
            self._wanted = True
        else:
            outcomes.append(note)

    def _cycle(self, outcomes: Sequence[Outcome]) -> None:
        batch = Batch(settlements=self._left)
        self._left = []
        try:
            jobs = self._jobs(outcomes, batch)
            if self._doubtful:
                self._compare()
            self._load(jobs)
            for job in jobs.values():
                self._decide(job, batch)
            self._answer(batch)
            due = self.agenda.take(self.now())
            lost = self._write(batch, due)
        except DatabaseUnavailable:
            self._start_over(batch)
            raise
        self._act(batch, lost)

    # --- before the transaction ------------------------------------------------------------------------------------------

    def _jobs(self, outcomes: Iterable[Outcome], batch: Batch) -> dict[str, Job]:
        jobs: dict[str, Job] = {}
        for run in self._claimed:
            jobs[run.run_id] = Job(
                run.run_id,
                run.epoch,
                run.turn,
                run.queue,
                run.type,
                arrivals=[entry.arrival for entry in run.inbox],
                consumed=[entry.id for entry in run.inbox],
                more=run.more,
                turn_failures=run.turn_failures,
            )
        self._claimed = []
        for outcome in outcomes:
            activity = self._running.pop(outcome.activity.key, None)
            if activity is None:
                continue  # reported twice, or no longer ours
            settled = self._settlement(activity, outcome)
            job = self._job_of(activity, jobs) if isinstance(settled, Resolved) else None
            if job is None or not isinstance(settled, Resolved):
                batch.settlements.append(settled)
            else:
                job.arrivals.append(settled.arrival)
                job.settled.append(settled.key)
                job.direct.append(settled)
        return jobs

    def _settlement(self, activity: PendingActivity, outcome: Outcome) -> Settlement:
        if outcome.failure is None:
            key = activity.key
            return Resolved(key, ActivityCompleted(key.seq, outcome.result, key.attempt))
        return settlement(activity, outcome.failure, now=self.now())

    def _job_of(self, activity: PendingActivity, jobs: dict[str, Job]) -> Job | None:
        """The job that can take this outcome without the detour through the inbox: of a run that we claimed and that nobody has claimed since."""
        run_id = activity.key.run_id
        job = jobs.get(run_id)
        if job is None:
            held = self._instances.get(run_id)
            if held is None:
                return None
            job = jobs[run_id] = Job(run_id, held.epoch, held.turn, activity.run_queue, activity.workflow_type)
        return job

    def _load(self, jobs: Mapping[str, Job]) -> None:
        """Read the histories of runs whose instance is not in memory, or not where the store says the run is."""
        missing = {}
        for job in jobs.values():
            held = self._instances.get(job.run_id)
            if held is not None and held.turn != job.turn:
                self._instances.drop(job.run_id)
                held = None
            if job.turn and (held is None or held.instance is None) and (job.arrivals or job.consumed):
                missing[job.run_id] = 0
        for question in self._questions:
            held = self._instances.get(question.run_id)
            if held is None or held.instance is None:
                missing[question.run_id] = 0
        if missing:
            with self.store.transaction(readonly=True) as tx:
                self._histories = turns.load(tx, missing)

    def _decide(self, job: Job, batch: Batch) -> None:
        if not job.arrivals:
            batch.released.append((job.run_id, job.epoch))
            return
        definition = WORKFLOWS[job.type]
        try:
            instance = self._instance(job, definition)
            at = max(self.now(), instance.loop.now)
            with self._watchdog.turn(f"workflow {job.type!r}"):
                decision = step(instance, job.arrivals, at=at)
        except OrchestratorError as error:
            self._turn_failed(job, error, batch)
            return
        except Exception as error:  # noqa: BLE001 - author code with on_exception="retry_turn", or a fault of ours: the run must survive both
            self._turn_failed(job, error, batch)
            return
        for remark in instance.remarks:
            log.warning("run %s: %s", job.run_id, remark)
        instance.remarks.clear()
        self._instances.put(job.run_id, Held(job.epoch, job.turn + 1, instance))
        commit = TurnCommit(
            run_id=job.run_id,
            epoch=job.epoch,
            turn=job.turn + 1,
            at=at,
            flags=FLAGS_NOW,
            arrivals=tuple(job.arrivals),
            commands=decision.commands,
            consumed=tuple(job.consumed),
            settled=tuple(job.settled),
            more=job.more,
        )
        commit, planned = plan(commit, decision.terminal, instance.run_started, take_on=self._take_on, fresh_id=self.clock.fresh_id)
        batch.commits.append(commit)
        batch.plans[job.run_id] = planned
        batch.jobs[job.run_id] = job

    def _instance(self, job: Job, definition: WorkflowDefinition) -> Instance:
        held = self._instances.get(job.run_id)
        if held is not None and held.instance is not None:
            return held.instance
        with self._watchdog.turn(f"workflow {job.type!r} (replay)"):
            return revive(definition, self._histories.get(job.run_id, []), self.converter)

    def _turn_failed(self, job: Job, error: Exception, batch: Batch) -> None:
        self._instances.drop(job.run_id)
        retry_in_s = min(TURN_RETRY_FIRST_S * 2 ** min(job.turn_failures, 20), TURN_RETRY_MAX_S)
        log.error("run %s is stuck at turn %s (try %s): %s: %s", job.run_id, job.turn + 1, job.turn_failures + 1, type(error).__name__, error)
        batch.failures.append(TurnFailure(job.run_id, job.epoch, to_failure(error, self.converter), retry_in_s))
        self._left.extend(job.direct)
        self.agenda.add(self.now() + retry_in_s, "claim")

    def _answer(self, batch: Batch) -> None:
        for question in self._questions:
            held = self._instances.get(question.run_id)
            instance = None if held is None else held.instance
            passing = instance is None
            try:
                if instance is None:
                    instance = revive(WORKFLOWS[question.type], self._histories.get(question.run_id, []), self.converter)
                with self._watchdog.turn(f"query {question.name!r}"):
                    answer = instance.query(question.name, question.args)
                batch.answers.append(_answered(question, answer=answer))
            except OrchestratorError as error:
                refused = error if isinstance(error, QueryFailed) else QueryFailed(f"the run cannot be replayed: {error.message}")
                batch.answers.append(_answered(question, failure=to_failure(refused, self.converter)))
            except Exception as error:  # noqa: BLE001 - author code in a replay
                batch.answers.append(_answered(question, failure=to_failure(error, self.converter)))
            if passing and instance is not None:
                instance.close()
        self._questions = []
        self._histories = {}

    def _take_on(self, activity_type: str, activity_queue: str) -> bool:
        """Whether this process starts such an activity itself, in the turn's own commit."""
        definition = ACTIVITIES.get(activity_type)
        return (
            self.settings.eager
            and not self.draining
            and definition is not None
            and activity_queue in self._queues()
            and self.runner.reserve(definition)
        )

    # --- the transaction -------------------------------------------------------------------------------------------------

    def _write(self, batch: Batch, due: frozenset[str]) -> frozenset[str]:
        """Write the batch and claim what comes next; return the runs whose turn was lost to somebody else."""
        wanted = (self._wanted or "claim" in due) and not self.draining
        timed = due & {"timers", "deadlines"}
        if not (batch or wanted or timed):
            return frozenset()
        lost: frozenset[str] = frozenset()
        rings: set[str] = set()
        with self.store.transaction(purpose="turns.commit") as tx:
            if batch.commits:
                lost = turns.commit(tx, batch.commits, worker=self.worker_id, build=self.settings.build).lost
            if batch.settlements:
                rings |= activities.settle(tx, batch.settlements).queues
            if batch.failures:
                turns.fail_turns(tx, batch.failures)
            if batch.released:
                turns.release(tx, batch.released)
            if batch.answers:
                control.answer(tx, batch.answers)
            claimed, started, questions = self._claim(tx) if wanted else ([], [], [])
        crashpoint("turns.between_commit_and_effects")
        self._wanted = False
        self._claimed, self._questions = claimed, questions
        self.claims += len(claimed)
        self._begin(started)
        self._chain(rings, claimed, started)
        return lost
