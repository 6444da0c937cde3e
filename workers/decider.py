"""Takes the turns of a batch of runs; law: reads and decides, writes nothing, and no run's fault touches its neighbours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from orchestrator.core.definitions import WORKFLOWS
from orchestrator.core.failures import to_failure
from orchestrator.core.instance import Instance
from orchestrator.core.payloads import PayloadConverter
from orchestrator.core.replay import replay, revive, step
from orchestrator.errors import OrchestratorError, QueryFailed
from schemas.history import FLAGS_NOW, Failure, Json, Turn
from schemas.runs import Question, TurnCommit, TurnFailure
from workers.batch import Batch, Job
from workers.effects import Route, TakeOn, plan
from workers.instances import Held, Instances
from workers.watchdog import Watchdog

log = logging.getLogger("orchestrator.turns")

TURN_RETRY_FIRST_S = 0.5  # a failed turn is tried again after this, doubled each time
TURN_RETRY_MAX_S = 30.0

Histories = Mapping[str, Sequence[Turn]]


class Decider:
    """Workflow code, its instances and its watchdog."""

    def __init__(
        self,
        instances: Instances,
        watchdog: Watchdog,
        *,
        converter: PayloadConverter,
        route: Route,
        fresh_id: Callable[[], str],
    ) -> None:
        self.instances = instances
        self._watchdog = watchdog
        self._converter = converter
        self._route = route
        self._fresh_id = fresh_id

    def missing(self, jobs: Iterable[Job], questions: Iterable[Question]) -> dict[str, int]:
        """Runs whose history must be read, from the turn after the given one: all of it, or what others did since our instance was here."""
        missing = {}
        for job in jobs:
            held = self.instances.get(job.run_id)
            if not (job.arrivals and job.turn):
                continue
            if held is None or held.instance is None:
                missing[job.run_id] = 0
            elif held.turn != job.turn:
                missing[job.run_id] = held.turn
        for question in questions:
            held = self.instances.get(question.run_id)
            if held is None or held.instance is None:
                missing[question.run_id] = 0
        return missing

    def decide(self, job: Job, histories: Histories, batch: Batch, *, now: float, take_on: TakeOn) -> None:
        """Take one turn and put what follows from it into the batch."""
        if not job.arrivals:
            batch.released.append((job.run_id, job.epoch))
            return
        try:
            instance = self._instance(job, histories)
            with self._watchdog.turn(f"workflow {job.type!r}"):
                decision = step(instance, job.arrivals, at=now)
        except Exception as error:  # noqa: BLE001 - author code, or a fault of ours: the run must survive both, and so must its neighbours
            self.fail(job, error, batch)
            return
        for remark in instance.remarks:
            log.warning("run %s: %s", job.run_id, remark)
        instance.remarks.clear()
        commit = TurnCommit(
            run_id=job.run_id,
            epoch=job.epoch,
            turn=job.turn + 1,
            at=instance.loop.now,
            flags=FLAGS_NOW,
            arrivals=tuple(job.arrivals),
            commands=decision.commands,
            consumed=tuple(job.consumed),
            settled=tuple(job.settled),
            fired=tuple(job.fired),
            more=job.more,
        )
        try:
            commit, planned = plan(
                commit,
                decision.terminal,
                instance.run_started,
                route=self._route,
                take_on=take_on,
                fresh_id=self._fresh_id,
                has_children=instance.operations.has_children,
            )
        except Exception as error:  # noqa: BLE001 - an application's own router may raise anything: it must not touch the neighbours
            instance.close()
            self.fail(job, error, batch)
            return
        self.instances.put(job.run_id, Held(job.epoch, job.turn + 1, instance, job.queue, job.type))
        batch.commits.append(commit)
        batch.plans[job.run_id] = planned

    def answer(self, question: Question, histories: Histories) -> Question:
        """The question with its answer, from the instance in memory or from one made for it."""
        held = self.instances.get(question.run_id)
        instance = None if held is None else held.instance
        passing = None
        try:
            with self._watchdog.turn(f"query {question.name!r} of workflow {question.type!r}"):
                if instance is None:
                    instance = passing = revive(WORKFLOWS[question.type], histories.get(question.run_id, ()), self._converter)
                return _answered(question, answer=instance.query(question.name, question.args))
        except QueryFailed as error:
            return _answered(question, failure=to_failure(error, self._converter))
        except Exception as error:  # noqa: BLE001 - author code in a replay
            message = error.message if isinstance(error, OrchestratorError) else f"{type(error).__name__}: {error}"
            return _answered(question, failure=to_failure(QueryFailed(f"the run cannot be replayed: {message}"), self._converter))
        finally:
            if passing is not None:
                passing.close()
            elif instance is not None and instance.spoiled:
                self.instances.drop(question.run_id)  # the query woke waiting code; the history does not know of that

    def _instance(self, job: Job, histories: Histories) -> Instance:
        held = self.instances.get(job.run_id)
        if held is not None and held.instance is not None and held.turn == job.turn:
            return held.instance
        with self._watchdog.turn(f"workflow {job.type!r} in its replay"):
            if held is None or held.instance is None:
                return revive(WORKFLOWS[job.type], histories.get(job.run_id, ()), self._converter)
            for turn in histories.get(job.run_id, ()):  # what it stood at was committed, so it goes on from there
                replay(held.instance, turn)
            return held.instance

    def fail(self, job: Job, error: Exception, batch: Batch) -> None:
        """The turn cannot be taken: the run waits, with the reason, and is tried again later."""
        self.instances.drop(job.run_id)
        retry_in_s = min(TURN_RETRY_FIRST_S * 2 ** min(job.turn_failures, 20), TURN_RETRY_MAX_S)
        log.error(
            "run %s is stuck at turn %s (try %s): %s: %s", job.run_id, job.turn + 1, job.turn_failures + 1, type(error).__name__, error
        )
        batch.failures.append(TurnFailure(job.run_id, job.epoch, to_failure(error, self._converter), retry_in_s))
        # Results at hand must not be lost with the turn: they wait in the inbox for the code to be mended.
        batch.settlements.extend(job.direct)
        job.direct = []


def _answered(question: Question, *, answer: Json = None, failure: Failure | None = None) -> Question:
    return replace(question, answer=answer, failure=failure, answered=True)
