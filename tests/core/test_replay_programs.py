"""Random programs of the language: a live instance and one revived before every turn ask for the same.

A program is a tree of steps that a workflow interprets. The world answers in random order, with results, failures, fired timers, signals
and a cancellation. `Twin` compares the two instances turn by turn.
"""

from __future__ import annotations

import asyncio
from typing import Any

import hypothesis
from hypothesis import strategies as st

from orchestrator import workflow
from orchestrator.errors import ActivityError, ChildWorkflowError, MessageNotDelivered, WorkflowAlreadyStarted
from schemas.history import (
    ActivityCancelRequested,
    ActivityScheduled,
    Arrival,
    CancelSent,
    ChildCancelRequested,
    ChildScheduled,
    ChildStarted,
    SignalSent,
    TimerCanceled,
    TimerStarted,
)
from tests.core.twin import Twin, begun, cancel, canceled, delivered, done, failed, fired, grown, lost, signal, taken, undelivered

TURNS_MAX = 25
CANCELLATIONS = ("try_cancel", "wait_cancellation_completed", "abandon")
CHILD_CANCELLATIONS = (*CANCELLATIONS, "wait_cancellation_requested")

Step = list[Any]


@workflow.defn
class Interpreter:
    def __init__(self) -> None:
        self.level = 0
        self.log: list[str] = []
        self.lock = asyncio.Lock()
        self.queue: asyncio.Queue[int] = asyncio.Queue(maxsize=2)

    @workflow.run
    async def run(self, program: Step) -> list[str]:
        try:
            await self.take(program)
        except (ActivityError, ChildWorkflowError, WorkflowAlreadyStarted, TimeoutError, ExceptionGroup) as error:
            if workflow.is_cancellation(error):
                raise
            self.log.append(type(error).__name__)
        return self.log

    @workflow.signal
    async def up(self, by: int) -> None:
        self.level += by
        if self.level % 3 == 0:
            await workflow.execute_activity("on signal", self.level)
        self.log.append(f"level {self.level}")

    async def take(self, step: Step) -> None:
        kind, *rest = step
        self.log.append(f"{kind} {workflow.random().randrange(100)}")
        await getattr(self, kind)(*rest)

    async def activity(self, cancellation: Any) -> None:
        await workflow.execute_activity("work", len(self.log), cancellation_type=cancellation)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def until(self, level: int, timeout: float | None) -> None:  # noqa: ASYNC109 - a step's argument
        await workflow.wait_condition(lambda: self.level >= level, timeout=timeout)

    async def sequence(self, *steps: Step) -> None:
        for step in steps:
            await self.take(step)

    async def gather(self, *steps: Step) -> None:
        await asyncio.gather(*(self.take(step) for step in steps))

    async def group(self, *steps: Step) -> None:
        async with asyncio.TaskGroup() as tasks:
            for step in steps:
                tasks.create_task(self.take(step))

    async def bounded(self, seconds: float, step: Step) -> None:
        async with asyncio.timeout(seconds):
            await self.take(step)

    async def waited_for(self, seconds: float, step: Step) -> None:
        await asyncio.wait_for(self.take(step), seconds)

    async def abort(self, rounds: int, cancellation: Any) -> None:
        handle = workflow.start_activity("aborted", cancellation_type=cancellation)
        for _ in range(rounds):
            await asyncio.sleep(0)
        handle.cancel()
        try:
            await handle
        except ActivityError as error:
            self.log.append(error.retry_state)

    async def child(self, cancellation: Any, announced: bool) -> None:
        try:
            if announced:
                handle = await workflow.start_child_workflow("kid", len(self.log), cancellation_type=cancellation)
                self.log.append(handle.first_execution_run_id)
                self.log.append(str(await handle))
            else:
                await workflow.execute_child_workflow("kid", len(self.log), cancellation_type=cancellation)
        except WorkflowAlreadyStarted as error:
            self.log.append(error.workflow_id)

    async def disown(self, rounds: int, cancellation: Any) -> None:
        handle = await workflow.start_child_workflow("disowned", cancellation_type=cancellation)
        for _ in range(rounds):
            await asyncio.sleep(0)
        handle.cancel("disowned")
        try:
            await handle
        except ChildWorkflowError as error:
            self.log.append(type(error.cause).__name__)

    async def tell(self, cancels: bool) -> None:
        other = workflow.get_external_workflow_handle("other")
        try:
            await (other.cancel("enough") if cancels else other.signal("word", len(self.log)))
        except MessageNotDelivered as error:
            self.log.append(error.workflow_id)

    async def patched(self, number: int, deprecated: bool) -> None:
        if deprecated:
            workflow.deprecate_patch(f"patch {number}")
        self.log.append(str(workflow.patched(f"patch {number}")))

    async def locked(self, step: Step) -> None:
        async with self.lock:
            await self.take(step)

    async def queued(self, step: Step) -> None:
        await self.queue.put(1)
        try:
            await self.take(step)
        finally:
            self.queue.get_nowait()

    async def cleaned(self, step: Step) -> None:
        try:
            await self.take(step)
        finally:
            await workflow.execute_activity("clean up")


def composed(steps: st.SearchStrategy[Step]) -> st.SearchStrategy[Step]:
    several = st.lists(steps, min_size=1, max_size=3)
    seconds = st.sampled_from([0.5, 3, 60])
    return st.one_of(
        several.map(lambda inner: ["sequence", *inner]),
        several.map(lambda inner: ["gather", *inner]),
        several.map(lambda inner: ["group", *inner]),
        st.tuples(seconds, steps).map(lambda pair: ["bounded", *pair]),
        st.tuples(seconds, steps).map(lambda pair: ["waited_for", *pair]),
        steps.map(lambda inner: ["locked", inner]),
        steps.map(lambda inner: ["queued", inner]),
        steps.map(lambda inner: ["cleaned", inner]),
    )


SIMPLE = st.one_of(
    st.sampled_from(CANCELLATIONS).map(lambda how: ["activity", how]),
    st.sampled_from([0, 1, 30]).map(lambda seconds: ["sleep", seconds]),
    st.tuples(st.integers(0, 4), st.sampled_from([None, 5])).map(lambda pair: ["until", *pair]),
    st.tuples(st.integers(0, 2), st.sampled_from(CANCELLATIONS)).map(lambda pair: ["abort", *pair]),
    st.tuples(st.sampled_from(CHILD_CANCELLATIONS), st.booleans()).map(lambda pair: ["child", *pair]),
    st.tuples(st.integers(0, 2), st.sampled_from(CHILD_CANCELLATIONS)).map(lambda pair: ["disown", *pair]),
    st.booleans().map(lambda cancels: ["tell", cancels]),
    st.tuples(st.integers(0, 2), st.booleans()).map(lambda pair: ["patched", *pair]),
)
PROGRAMS = st.recursive(SIMPLE, composed, max_leaves=10)


class World:
    """What the run waits for, and what may arrive for it."""

    def __init__(self, run: Twin) -> None:
        self.run = run
        self.activities: dict[int, bool] = {}  # number -> cancellation requested
        self.timers: dict[int, float] = {}
        self.gone: list[int] = []
        self.born: list[int] = []  # children whose start is to be told
        self.children: dict[int, bool] = {}  # that may end -> cancellation requested
        self.messages: list[int] = []

    def note(self) -> None:
        for command in self.run.history[-1].commands:
            match command:
                case ActivityScheduled(seq=seq):
                    self.activities[seq] = False
                case ActivityCancelRequested(seq=seq, wait=True):
                    self.activities[seq] = True
                case ActivityCancelRequested(seq=seq):
                    self.activities.pop(seq)
                    self.gone.append(seq)
                case ChildScheduled(seq=seq, announced=announced):
                    if announced:
                        self.born.append(seq)
                    else:
                        self.children[seq] = False
                case ChildCancelRequested(seq=seq):
                    if seq in self.children:
                        self.children[seq] = True
                case SignalSent(seq=seq) | CancelSent(seq=seq):
                    self.messages.append(seq)
                case TimerStarted(seq=seq, fire_at=fire_at):
                    self.timers[seq] = fire_at
                case TimerCanceled(seq=seq):
                    self.timers.pop(seq)

    def arrival(self, data: st.DataObject) -> Arrival:
        kinds = ["signal", "signal", *(["activity"] * 4 if self.activities else []), *(["timer"] * 3 if self.timers else [])]
        kinds += ["child"] * 3 if self.children else []
        kinds += ["birth"] * 4 if self.born else []
        kinds += ["answer"] * 4 if self.messages else []
        kind = data.draw(st.sampled_from([*kinds, "cancel", *(["late"] if self.gone else [])]))
        if kind == "activity":
            seq = data.draw(st.sampled_from(sorted(self.activities)))
            ends: list[Arrival] = [done(seq, "ok"), done(seq, "ok"), failed(seq), *([canceled(seq)] if self.activities.pop(seq) else [])]
            return data.draw(st.sampled_from(ends))
        if kind in {"child", "birth", "answer"}:
            return self.news(kind, data)
        if kind == "timer":
            seq = min(self.timers, key=lambda seq: (self.timers[seq], seq))
            self.timers.pop(seq)
            return fired(seq)
        if kind == "late":
            return done(data.draw(st.sampled_from(self.gone)), "late")
        return cancel() if kind == "cancel" else signal("up", data.draw(st.integers(1, 2)))

    def news(self, kind: str, data: st.DataObject) -> Arrival:
        """Of other runs."""
        if kind == "answer":
            seq = self.messages.pop(0)
            answers: list[Arrival] = [delivered(seq), delivered(seq), undelivered(seq)]
            return data.draw(st.sampled_from(answers))
        if kind == "birth":
            seq = self.born.pop(0)
            starts: list[Arrival] = [begun(seq), begun(seq), taken(seq)]
            start = data.draw(st.sampled_from(starts))
            if isinstance(start, ChildStarted):
                self.children[seq] = False
            return start
        seq = data.draw(st.sampled_from(sorted(self.children)))
        asked = self.children.pop(seq)
        ends: list[Arrival] = [grown(seq, "ok"), grown(seq, "ok"), lost(seq), lost(seq, "canceled" if asked else "terminated")]
        return data.draw(st.sampled_from(ends))


@hypothesis.settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
@hypothesis.given(program=PROGRAMS, data=st.data())
def test_a_run_revived_from_history_before_every_turn_asks_for_the_same_as_one_that_lives(program, data):
    run = Twin(Interpreter, program)
    world = World(run)
    run.start()
    for _ in range(TURNS_MAX):
        if run.terminal is not None:
            break
        world.note()
        run.turn(*(world.arrival(data) for _ in range(data.draw(st.integers(1, 3)))))
    Twin.close_all()
