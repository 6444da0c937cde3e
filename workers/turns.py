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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from orchestrator.clock import Clock
from orchestrator.core.definitions import ACTIVITIES, WORKFLOWS
from orchestrator.crashpoints import crashpoint
from orchestrator.dispatch import Broker, expire_activities, fire_timers, part_children, ring_all, settlement
from orchestrator.errors import DatabaseUnavailable
from orchestrator.store import Store, Transaction, Unmet, activities, claims, control, runs, turns, workers
from orchestrator.store.claims import Claimed, Wanted
from schemas.history import ActivityCompleted, ActivityScheduled, Turn
from schemas.runs import ActivityKey, Beat, ClaimedRun, PendingActivity, Question, Resolved, Settlement, Status, TryAgain, TurnCommit
from schemas.settings import Settings
from workers.agenda import Agenda, Topic
from workers.attempts import Budget, Outcome, Runner
from workers.batch import Batch, Job, Written
from workers.decider import Decider
from workers.effects import Plan
from workers.timers import Timers

log = logging.getLogger("orchestrator.turns")

COMPARED_MAX = 100_000  # running attempts that are compared after an outage; more than any worker takes on
INBOX_WHOLE_MAX = 100_000  # arrivals that a run is given at once as it closes
DATABASE_RETRY_S = 0.25  # pause before the next try while the database is away

Note = Outcome | Resolved | TryAgain | None  # an attempt of ours has ended, one of a Celery task has; None: look for work


class Engine:
    """The turn loop of one worker process. `queues` is asked at every claim: a paused queue is simply not among them.

    `skew_s` is how far the database's clock is ahead of this process's; the lease keeps it up to date.
    """

    def __init__(
        self,
        store: Store,
        broker: Broker,
        settings: Settings,
        *,
        decider: Decider,
        runner: Runner,
        queues: Callable[[], Sequence[str]],
        notes: queue.SimpleQueue[Note],
        clock: Clock,
    ) -> None:
        self.store = store
        self.broker = broker
        self.settings = settings
        self.queues = queues
        self.worker_id = ""
        self.skew_s = 0.0
        self.draining = False
        self.claims = 0  # runs claimed so far: liveness is progress
        self._decider = decider
        self._runner = runner
        self._notes = notes
        self._clock = clock
        self._agenda = Agenda()
        self._timers = Timers(self._agenda)
        self._running: dict[ActivityKey, PendingActivity] = {}
        self._claimed: list[ClaimedRun] = []
        self._questions: list[Question] = []
        self._ended: list[Outcome] = []  # attempts of ours whose end no transaction has seen; kept until one is begun
        self._left: list[Settlement] = []  # outcomes that go through the inbox, with the next transaction
        self._budget: Budget = runner.budget()
        self._wanted = True
        self._hungry = False  # activities were left in the store because there was no room for them here
        self._doubtful = False  # a transaction failed: what the store says we own must be compared with what we have
        self._beaten_at = 0.0

    # --- for other threads -----------------------------------------------------------------------------------------------

    def ring(self) -> None:
        """There may be ready work."""
        self._notes.put(None)

    def settle(self, settlement: Settlement) -> None:
        """An attempt that somebody else ran has ended."""
        self._notes.put(settlement)

    @property
    def running(self) -> int:
        """Attempts that run here now."""
        return len(self._running)

    # --- the loop --------------------------------------------------------------------------------------------------------

    def cycle(self, *, wait_s: float) -> bool:
        """Wait for something to do, at most wait_s seconds, then do all that is at hand; whether there was anything."""
        self._listen(wait_s)
        batch = Batch()
        try:
            if self._doubtful:
                self._compare()
            due = self._agenda.take(self.now())
            self._pass_time(due)
            self._gather(batch)
            self._decide(batch)
            written = self._write(batch, claim=self._wanted or "claim" in due)
        except DatabaseUnavailable as error:
            log.warning("the database cannot be reached, trying again: %s", error.message)
            self.start_over(batch)
            self._clock.sleep(DATABASE_RETRY_S)
            return False
        except Exception as error:
            explained = self._set_aside(batch, error)
            self.start_over(batch)
            if explained:
                return False
            raise
        self._act(batch, written)
        return bool(batch or written.claimed or written.started)

    def now(self) -> float:
        """The time by the database's clock, as well as this process knows it."""
        return self._clock.now() + self.skew_s

    def patience_s(self, longest_s: float) -> float:
        """How long this engine can wait for a note before it has something to do, at most longest_s."""
        if self._claimed or self._questions or self._ended or self._left or self._wanted or self._doubtful:
            return 0.0
        interval_s = self._runner.beat_interval_s()
        if interval_s is not None:
            longest_s = min(longest_s, interval_s, self.settings.heartbeat_flush_s)
        return self._timers.wait_s(self.now(), self._agenda.wait_s(self.now(), longest_s))

    def want(self) -> None:
        """Claim in the next transaction."""
        self._wanted = True

    @property
    def idle(self) -> bool:
        """Whether nothing is at hand here."""
        return not (self._claimed or self._questions or self._ended or self._running or self._left) and self._notes.empty()

    def close(self) -> None:
        """Let every instance go, on this thread."""
        self._decider.instances.clear()

    def start_anew(self, worker_id: str) -> None:
        """Act under a new identity; what ran under the old one is somebody else's by now."""
        self.worker_id = worker_id
        self._running.clear()
        self._claimed, self._questions, self._ended, self._left = [], [], [], []
        self._decider.instances.clear()
        self._wanted = True

    def _listen(self, wait_s: float) -> None:
        wait_s = self.patience_s(wait_s)
        try:
            self._note(self._notes.get(timeout=wait_s) if wait_s > 0 else self._notes.get_nowait())
            while True:
                self._note(self._notes.get_nowait())
        except queue.Empty:
            return

    def _note(self, note: Note) -> None:
        if note is None:
            self._wanted = True
        elif isinstance(note, Outcome):
            self._ended.append(note)
        else:
            self._left.append(note)

    # --- before the transaction ------------------------------------------------------------------------------------------

    def _gather(self, batch: Batch) -> None:
        batch.settlements, self._left = self._left, []
        batch.jobs = {run.run_id: Job.of(run) for run in self._claimed}
        self._claimed = []
        ended, self._ended = self._ended, []
        for outcome in ended:
            pending = self._running.pop(outcome.activity.key, None)
            if pending is None:
                continue  # no longer ours
            settled = self._settlement(pending, outcome)
            job = self._job_of(pending.key.run_id, batch) if isinstance(settled, Resolved) else None
            if job is not None and isinstance(settled, Resolved):
                job.add(settled)
            else:
                batch.settlements.append(settled)
            self._wanted = self._wanted or self._hungry
        for run_id, _, seq in self._timers.take(self.now(), self._decider.instances):
            if (job := self._job_of(run_id, batch)) is not None:
                job.fire(seq)

    def _settlement(self, pending: PendingActivity, outcome: Outcome) -> Settlement:
        if outcome.failure is None:
            key = pending.key
            return Resolved(key, ActivityCompleted(key.seq, outcome.result, key.attempt))
        return settlement(pending, outcome.failure, now=self.now())

    def _job_of(self, run_id: str, batch: Batch) -> Job | None:
        """The job that can take something at once: of a run that this process claimed, and nobody else since, as far as it knows."""
        job = batch.jobs.get(run_id)
        if job is None and (held := self._decider.instances.get(run_id)) is not None:
            job = batch.jobs[run_id] = Job(run_id, held.epoch, held.turn, held.queue, held.type)
        return job

    def _decide(self, batch: Batch) -> None:
        histories: dict[str, list[Turn]] = {}
        missing = self._decider.missing(batch.jobs.values(), self._questions)
        if missing:
            with self.store.transaction(readonly=True) as tx:
                histories = turns.load(tx, missing)
        self._budget = self._runner.budget()
        now = self.now()
        for job in batch.jobs.values():
            self._decider.decide(job, histories, batch, now=now, take_on=self._take_on)
        self._hear_out(batch, now)
        batch.answers = [self._decider.answer(question, histories) for question in self._questions]
        self._questions = []

    def _hear_out(self, batch: Batch, now: float) -> None:
        """A run must not end deaf to what was acknowledged: those that would close with more in their inbox decide anew, with all of it."""
        deaf = [commit.run_id for commit in batch.commits if commit.more and commit.status is not Status.RUNNING]
        if not deaf:
            return
        with self.store.transaction(readonly=True) as tx:
            inboxes = turns.arrived(tx, deaf, INBOX_WHOLE_MAX)
            histories = turns.load(tx, dict.fromkeys(deaf, 0))
        batch.commits = [commit for commit in batch.commits if commit.run_id not in inboxes]
        for run_id in deaf:
            self._decider.instances.drop(run_id)
            del batch.plans[run_id]
            job = batch.jobs[run_id]
            job.hear(inboxes[run_id])
            self._decider.decide(job, histories, batch, now=now, take_on=self._take_on)

    def _take_on(self, scheduled: ActivityScheduled, activity_queue: str) -> bool:
        """Whether this process starts the activity itself, in the turn's own commit."""
        definition = ACTIVITIES.get(scheduled.type)
        if definition is None or not self.settings.eager or self.draining or activity_queue not in self.queues():
            return False
        return self._budget.take(definition)

    # --- the transaction -------------------------------------------------------------------------------------------------

    def _write(self, batch: Batch, *, claim: bool) -> Written:
        """Write the batch and claim what comes next, in one transaction."""
        wanted = self._wanted_now() if claim and not self.draining else None
        self._wanted = False
        beats = self._beats()
        written = Written()
        if not (batch or wanted or beats):
            return written
        if wanted and self.settings.quick_claims and not (batch or beats):
            self._claim_quickly(wanted, written)
            return written
        alone = not (batch.settlements or batch.failures or batch.released or batch.answers or wanted or beats)
        if alone and turns.is_single(batch.commits):
            with suppress(Unmet), self.store.transaction(purpose="turns.commit", single=True) as tx:
                written.lost = turns.commit(
                    tx, batch.commits, worker=self.worker_id, build=self.settings.build, republish_s=self.settings.republish_s
                ).lost
                return written
        with self.store.transaction(purpose="turns.commit") as tx:
            self._write_all(tx, batch, written)
            if beats:
                written.beaten = activities.beat(tx, beats)
            if wanted:
                self._note_claimed(written, claims.claim(tx, wanted), wanted)
        return written

    def _write_all(self, tx: Transaction, batch: Batch, written: Written) -> None:
        if batch and not any(commit.related for commit in batch.commits):  # else the commit locks still more, and all at once
            runs.lock(tx, batch.run_ids)  # all at once and in order: two workers that lock piece by piece can wait for each other
        if batch.commits:
            committed = turns.commit(
                tx,
                batch.commits,
                worker=self.worker_id,
                build=self.settings.build,
                beside=batch.run_ids,
                republish_s=self.settings.republish_s,
            )
            written.lost, written.orphans = committed.lost, committed.orphans
            written.rings |= committed.rings
        if batch.settlements:
            queues, _ = activities.settle(tx, batch.settlements)
            written.rings |= queues
        if batch.failures:
            turns.fail_turns(tx, batch.failures)
        if batch.released:
            turns.release(tx, batch.released)
        if batch.answers:
            control.answer(tx, batch.answers)

    def _claim_quickly(self, wanted: Wanted, written: Written) -> None:
        """Claim and nothing else, as an idle engine does when it is rung for: from the first queue that has something."""
        for place, queue_name in enumerate(wanted.queues, 1):
            with self.store.transaction(purpose="turns.claim", single=True) as tx:
                claimed = claims.claim_quickly(tx, wanted, queue_name)
            if claims.must_be_kept(claimed):
                with self.store.transaction(purpose="turns.claim", single=True) as tx:
                    workers.extend(tx, self.worker_id, self.settings.lease_s)
            if claimed.runs:
                with self.store.transaction(readonly=True, single=True) as tx:
                    claimed.runs = turns.with_inboxes(tx, claimed.runs, wanted.inbox_max)
            self._note_claimed(written, claimed, wanted)
            if claimed.runs or claimed.activities or claimed.questions:
                self._wanted = place < len(wanted.queues)
                return

    def _wanted_now(self) -> Wanted | None:
        queues = list(self.queues())
        if not queues:
            return None
        batch_max = self.settings.claim_batch_max
        return Wanted(
            worker=self.worker_id,
            queues=queues,
            run_types=list(WORKFLOWS),
            runs_max=batch_max,
            rooms=self._budget.rooms(ACTIVITIES, batch_max),
            inbox_max=self.settings.inbox_max,
        )

    @staticmethod
    def _note_claimed(written: Written, claimed: Claimed, wanted: Wanted) -> None:
        written.claimed, written.started, written.questions = claimed.runs, claimed.activities, claimed.questions
        written.looked = True
        written.more_runs = len(claimed.runs) >= wanted.runs_max
        written.more_activities = claimed.filled

    def _beats(self) -> list[Beat]:
        interval_s = self._runner.beat_interval_s()
        if interval_s is None or self.now() < self._beaten_at + min(interval_s, self.settings.heartbeat_flush_s):
            return []
        self._beaten_at = self.now()
        return self._runner.beats()

    # --- after the transaction -------------------------------------------------------------------------------------------

    def _act(self, batch: Batch, written: Written) -> None:
        crashpoint("turns.committed_before_effects")
        own = set() if self.draining else set(self.queues())
        left: set[str] = set()  # queues with work that this process has not taken on
        for run_id, planned in batch.plans.items():
            if run_id in written.lost:
                # Somebody else has the run: our turn never happened. Results at hand still count, through the inbox.
                self._decider.instances.drop(run_id)
                self._left.extend(batch.jobs[run_id].direct)
            else:
                left |= planned.queues
                self._follow(run_id, planned)
        if any(batch.jobs[run_id].fired for run_id in {*written.lost, *(failure.run_id for failure in batch.failures)}):
            self._timers.leave(self.now())
        self._decider.instances.trim()
        self._runner.told(written.beaten)
        for answer in written.beaten:
            beating = self._running.get(answer.key)
            if beating is not None and answer.cancel_requested:  # so that its end is not taken for a failure to be tried again
                self._running[answer.key] = replace(beating, cancel_requested=True)
            if beating is not None and beating.scheduled.heartbeat_s is not None:
                self._agenda.add(self.now() + beating.scheduled.heartbeat_s, "deadlines")
        self._claimed, self._questions = written.claimed, written.questions
        self.claims += len(written.claimed)
        self._begin(written.started)
        for settled in batch.settlements:
            if isinstance(settled, TryAgain):
                self._agenda.add(settled.due_at, "claim")
        if written.orphans:
            self._agenda.add(self.now(), "orphans")
        if written.looked:
            self._hungry = written.more_activities
        if written.more_runs or (written.more_activities and written.started):
            left |= own  # a full claim: there may be more than one process can carry
        self._wanted = self._wanted or written.more_runs or bool((left | written.rings) & own)
        ring_all(self.broker, left | (written.rings - own))

    def _follow(self, run_id: str, planned: Plan) -> None:
        self._begin(planned.eager)
        for pending in planned.tasks:
            self.broker.send(pending)
        if self.settings.own_timers:
            self._timers.add(run_id, planned.timers)
        else:
            for fire_at, _ in planned.timers:
                self._agenda.add(fire_at, "timers")
        if planned.closed or planned.canceled:
            for key, pending in list(self._running.items()):
                if key.run_id == run_id and (planned.closed or key.seq in planned.canceled):
                    self._running[key] = replace(pending, cancel_requested=True)
                    self._runner.cancel(key)
        if planned.closed:
            self._decider.instances.drop(run_id)

    def _begin(self, started: Sequence[PendingActivity]) -> None:
        for pending in started:
            self._running[pending.key] = pending
            for limit_s in (pending.scheduled.start_to_close_s, pending.scheduled.heartbeat_s):
                if limit_s is not None:
                    self._agenda.add(self.now() + limit_s, "deadlines")
            if pending.deadline_at is not None:
                self._agenda.add(pending.deadline_at, "deadlines")
        if started:
            self._runner.start(started)

    def _pass_time(self, due: frozenset[Topic]) -> None:
        """Fire what is due by the database's clock. Our own queues need no message."""
        local = LocalFirst(self)
        batch_max = self.settings.due_batch_max
        if "timers" in due and fire_timers(self.store, local, self.settings) >= batch_max:
            self._agenda.add(self.now(), "timers")
        if "orphans" in due and part_children(self.store, local, batch_max=batch_max):
            self._agenda.add(self.now(), "orphans")  # there may be more of them, and they may have had children themselves
        if "deadlines" in due and expire_activities(self.store, local, batch_max=batch_max) >= batch_max:
            self._agenda.add(self.now(), "deadlines")

    # --- when something went wrong -----------------------------------------------------------------------------------------

    def _set_aside(self, batch: Batch, error: Exception) -> bool:
        """Something could not be written: let the runs it comes from wait, so that their neighbours go on; False if it comes from no run."""
        alone = Batch()
        try:
            unwritable = [commit for commit in batch.commits if not self._can_write(commit)]
            for commit in unwritable:
                self._decider.fail(batch.jobs[commit.run_id], error, alone)
            with self.store.transaction(purpose="turns.set_aside") as tx:
                self._write_all(tx, alone, Written())
        except DatabaseUnavailable:
            self._left.extend(alone.settlements)
            return True  # it will come up again once the database is back
        return bool(unwritable)

    def _can_write(self, commit: TurnCommit) -> bool:
        """Only look whether it can be written: the turn will be taken again, with all that belongs to it."""
        try:
            with self.store.transaction(purpose="turns.set_aside") as tx:
                self._write_all(tx, Batch(commits=[commit]), Written())
                tx.start_over()
        except DatabaseUnavailable:
            raise
        except Exception:  # noqa: BLE001 - whatever it is, it is this run's
            return False
        return True

    def start_over(self, batch: Batch | None = None) -> None:
        """A transaction failed, and it may even have been committed: trust only the store."""
        self._doubtful = True
        self._wanted = True
        if batch is not None:
            self._left = [*batch.give_back(), *self._left]
            self._timers.leave(self.now())
        self._claimed, self._questions = [], []
        self._decider.instances.clear()

    def _compare(self) -> None:
        """Own what the store says we own: claims that never reached us are given back, attempts that never began begin."""
        settled = {settlement.key for settlement in self._left}
        with self.store.transaction(purpose="turns.compare") as tx:
            known = [run.run_id for run in self._claimed]  # since the doubt arose: those answers came
            released = workers.release_runs(tx, self.worker_id, self.settings.due_batch_max, keep=known)
            mine = workers.running_activities(tx, self.worker_id, None, COMPARED_MAX)
        self._begin([pending for pending in mine if not (pending.scheduled.task or pending.key in self._running or pending.key in settled)])
        self._doubtful = bool(released)
        self._wanted = True


class LocalFirst:
    """A broker for chores that this process does itself: its own queues are a note to itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def ring(self, queue_name: str, *, delay_s: float = 0.0) -> None:
        """Look for work, or ring."""
        if queue_name in self._engine.queues():
            self._engine.want()
        else:
            self._engine.broker.ring(queue_name, delay_s=delay_s)

    def send(self, pending: PendingActivity) -> None:
        """As the broker."""
        self._engine.broker.send(pending)
