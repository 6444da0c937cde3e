"""The laws that hold in the tables after whatever happened, checked by reading them; law: this only reads, and names the run it complains of.

What SQL can tell is checked for every run; what only its code can tell (no divergence, no end that history does not know) by replay.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.core.definitions import WORKFLOWS
from orchestrator.core.payloads import PayloadConverter
from orchestrator.core.replay import revive
from orchestrator.store import Store, Transaction, documents, turns
from schemas.history import (
    CLOSES,
    TERMINALS,
    ActivityCanceled,
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    CancelSent,
    ChildScheduled,
    RunCanceled,
    RunCompleted,
    RunContinued,
    RunFailed,
    RunStarted,
    RunTerminated,
    RunTimedOut,
    SignalSent,
    TimerCanceled,
    TimerFired,
    TimerStarted,
    Turn,
)
from schemas.runs import Status
from tests.family_laws import LINKS, links_of, of_families

EARLY_S = 0.001  # timers are rounded to milliseconds
ENDS = {
    RunCompleted: Status.COMPLETED,
    RunFailed: Status.FAILED,
    RunCanceled: Status.CANCELED,
    RunContinued: Status.CONTINUED_AS_NEW,
    RunTerminated: Status.TERMINATED,
    RunTimedOut: Status.TIMED_OUT,
}
RESOLUTIONS = (ActivityCompleted, ActivityFailed, ActivityCanceled)

_RUNS = """
SELECT r.run_id, r.workflow_id, r.type, r.status, r.turn, r.ready, r.owner, r.history_events, r.continued_from, r.first_run_id,
       r.parent_run_id, p.result, p.continued_as
FROM runs r LEFT JOIN run_payloads p ON p.run_id = r.run_id ORDER BY r.run_id
"""


class LawBroken(AssertionError):
    """The tables contradict a promise."""


@dataclass
class Run:
    """All that the tables hold of one run."""

    run_id: str
    workflow_id: str
    type: str
    status: Status
    turn: int
    ready: bool
    owner: str | None
    history_events: int
    continued_from: str | None
    first_run_id: str
    parent_run_id: str | None
    result: Any
    continued_as: str | None
    turns: list[Turn] = field(default_factory=list)
    inbox: list[Any] = field(default_factory=list)
    activities: dict[int, tuple[Any, ...]] = field(default_factory=dict)  # seq -> attempt, state, worker, detached
    timers: dict[tuple[str, int], float] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        return self.status is Status.RUNNING


def check_laws(store: Store, *, replay: bool = True, orphans: bool = False) -> list[Run]:
    """Assert all laws; return what was read.

    `orphans`: workers that were struck off may still own something, because the sweep has not come round yet.
    """
    with store.transaction(readonly=True) as tx:
        runs, workers = _read(tx)
        links = links_of(tx.run(LINKS))
    complaints: list[str] = []
    for run in runs.values():
        told = [f"run {run.run_id} ({run.type}, {run.status}, turn {run.turn}): {what}" for what in _of_run(run)]
        if not orphans:
            told += [f"run {run.run_id} ({run.type}): {what}" for what in _of_owners(run, workers)]
        complaints += told
        if replay and not told:
            complaints += _of_replay(run)
    complaints += [*_between(runs), *of_families(runs, links)]
    if complaints:
        raise LawBroken("\n".join(complaints[:40]))
    return list(runs.values())


def _read(tx: Transaction) -> tuple[dict[str, Run], set[str]]:
    runs = {}
    for run_id, workflow_id, type_, status, turn, ready, owner, events, *rest in tx.run(_RUNS):
        continued_from, first_run_id, parent_run_id, result, continued_as = rest
        runs[run_id] = Run(
            run_id,
            workflow_id,
            type_,
            Status(status),
            turn,
            bool(ready),
            owner,
            events,
            continued_from,
            first_run_id,
            parent_run_id,
            documents.load(result),
            continued_as,
        )
    for run_id, history in turns.load(tx, dict.fromkeys(runs, 0)).items():
        runs[run_id].turns = history
    for run_id, event in tx.run("SELECT run_id, event FROM inbox ORDER BY id"):
        assert run_id in runs, f"the inbox of run {run_id} is left and the run is not"
        runs[run_id].inbox.append(documents.arrival(event))
    for run_id, seq, *rest in tx.run("SELECT run_id, seq, attempt, state, worker, detached FROM activities"):
        assert run_id in runs, f"an activity of run {run_id} is left and the run is not"
        runs[run_id].activities[seq] = tuple(rest)
    for run_id, kind, seq, fire_at in tx.run("SELECT run_id, kind, seq, fire_at FROM timers"):
        assert run_id in runs, f"a timer of run {run_id} is left and the run is not"
        runs[run_id].timers[kind, seq] = fire_at
    return runs, {worker_id for (worker_id,) in tx.run("SELECT worker_id FROM workers")}


def _of_run(run: Run) -> Iterable[str]:
    yield from _of_turns(run)
    yield from _of_events(run)
    yield from _of_end(run)
    yield from _of_open(run) if run.open else _of_closed(run)


def _of_turns(run: Run) -> Iterable[str]:
    numbers = [turn.turn for turn in run.turns]
    if numbers != list(range(1, run.turn + 1)):
        yield f"its turns are {numbers}, not dense from 1"
    times = [turn.at for turn in run.turns if not any(isinstance(command, CLOSES) for command in turn.commands)]
    if times != sorted(times):
        yield f"time went back between its turns: {times}"
    events = sum(len(turn.arrivals) + len(turn.commands) for turn in run.turns)
    if events != run.history_events:
        yield f"history_events is {run.history_events}, its turns hold {events}"
    starts = [(turn.turn, place) for turn in run.turns for place, event in enumerate(turn.arrivals) if isinstance(event, RunStarted)]
    outside = bool(run.turns) and any(isinstance(command, CLOSES) for command in run.turns[0].commands)
    if run.turns and starts != ([] if outside else [(1, 0)]):
        yield f"RunStarted stands at {starts}"
    for turn in run.turns[:1]:
        for event in turn.arrivals:
            if isinstance(event, RunStarted) and (event.run_id, event.workflow_id, event.type) != (run.run_id, run.workflow_id, run.type):
                yield "RunStarted names another run"


def _of_events(run: Run) -> Iterable[str]:
    scheduled: set[int] = set()
    timers: dict[int, float] = {}
    over: Counter[int] = Counter()
    newest = 0
    for turn in run.turns:
        for event in turn.arrivals:
            if isinstance(event, RESOLUTIONS):
                if event.seq not in scheduled:
                    yield f"turn {turn.turn}: activity {event.seq} is resolved and was not scheduled"
                over[event.seq] += 1
            elif isinstance(event, TimerFired):
                if event.seq not in timers:
                    yield f"turn {turn.turn}: timer {event.seq} fired and was not started"
                elif turn.at < timers[event.seq] - EARLY_S:
                    yield f"turn {turn.turn}: timer {event.seq} fired {timers[event.seq] - turn.at:.4f} s early"
                over[event.seq] += 1
        for command in turn.commands:
            if isinstance(command, ActivityScheduled | TimerStarted | ChildScheduled | SignalSent | CancelSent):
                if command.seq <= newest:
                    yield f"turn {turn.turn}: number {command.seq} comes again or out of order"
                newest = max(newest, command.seq)
                if isinstance(command, TimerStarted):
                    timers[command.seq] = command.fire_at
                elif isinstance(command, ActivityScheduled):
                    scheduled.add(command.seq)
            elif isinstance(command, ActivityCancelRequested) and command.seq not in scheduled:
                yield f"turn {turn.turn}: activity {command.seq} is cancelled and was not scheduled"
            elif isinstance(command, TimerCanceled) and command.seq not in timers:
                yield f"turn {turn.turn}: timer {command.seq} is cancelled and was not started"
    twice = sorted(seq for seq, times in over.items() if times > 1)
    if twice:
        yield f"numbers {twice} were resolved or fired more than once"


def _of_end(run: Run) -> Iterable[str]:
    ends = [(turn.turn, command) for turn in run.turns for command in turn.commands if isinstance(command, (*TERMINALS, *CLOSES))]
    if run.open:
        if ends:
            yield f"it is open and its history ends with {ends}"
        return
    if len(ends) != 1:
        yield f"it is closed and its history has {len(ends)} ends"
        return
    number, end = ends[0]
    if number != run.turn or end is not run.turns[-1].commands[-1]:
        yield "something stands behind its end"
    if ENDS[type(end)] is not run.status:
        yield f"its history ends with {end.kind}"
    if isinstance(end, RunCompleted) and end.result != run.result:
        yield f"its result is {run.result!r}, its history says {end.result!r}"


def _of_closed(run: Run) -> Iterable[str]:
    left = [name for name in ("inbox", "activities", "timers") if getattr(run, name)]
    if left:
        yield f"it is closed and there is left: {', '.join(left)}"
    if run.ready or run.owner:
        yield f"it is closed and ready={run.ready}, owner={run.owner}"


def _of_open(run: Run) -> Iterable[str]:
    scheduled, timers, abandoned, arrived = _pending(run)
    waiting = {event.seq for event in run.inbox if isinstance(event, (*RESOLUTIONS, TimerFired))}
    rows = {seq for seq, (_, _, _, detached) in run.activities.items() if not detached}
    for seq in sorted(scheduled - arrived - abandoned - rows - waiting):
        yield f"activity {seq} is unresolved and has no row (R6)"
    for seq in sorted(rows & (arrived | waiting)):
        yield f"activity {seq} is resolved and has a row"
    for seq in sorted(set(run.activities) - scheduled):
        yield f"activity {seq} has a row and was not scheduled"
    running = {seq for kind, seq in run.timers if kind == "timer"}
    for seq in sorted(timers - arrived - abandoned - running - waiting):
        yield f"timer {seq} is pending and has no row (R6)"
    for seq in sorted(running & (arrived | waiting | abandoned)):
        yield f"timer {seq} is over and has a row"
    awake = run.ready or run.owner is not None
    if run.inbox and not awake:
        yield f"{len(run.inbox)} arrivals wait and nobody will look (R6)"
    if not run.turn and not awake:
        yield "it has not begun and nobody will begin it (R6)"
    for seq, (attempt, state, worker, _) in run.activities.items():
        if attempt < 1 or (state == "started") != (worker is not None):
            yield f"activity {seq} is {state} by {worker} in attempt {attempt}"


def _pending(run: Run) -> tuple[set[int], set[int], set[int], set[int]]:
    """Numbers of activities, of timers, of those given up by the code, and of those whose end has come in."""
    scheduled: set[int] = set()
    timers: set[int] = set()
    abandoned: set[int] = set()
    arrived: set[int] = set()
    for turn in run.turns:
        arrived |= {event.seq for event in turn.arrivals if isinstance(event, (*RESOLUTIONS, TimerFired))}
        for command in turn.commands:
            if isinstance(command, ActivityScheduled):
                scheduled.add(command.seq)
            elif isinstance(command, TimerStarted):
                timers.add(command.seq)
            elif isinstance(command, TimerCanceled) or (isinstance(command, ActivityCancelRequested) and not command.wait):
                abandoned.add(command.seq)
    return scheduled, timers, abandoned, arrived


def _of_owners(run: Run, workers: set[str]) -> Iterable[str]:
    if run.owner is not None and run.owner not in workers:
        yield f"it belongs to worker {run.owner}, which does not exist"
    for seq, (_, _, worker, _) in run.activities.items():
        if worker is not None and worker not in workers:
            yield f"its activity {seq} belongs to worker {worker}, which does not exist"


def _of_replay(run: Run) -> Iterable[str]:
    definition = WORKFLOWS.get(run.type)
    if definition is None or not run.turns:
        return
    instance = None
    try:
        instance = revive(definition, run.turns, PayloadConverter())
        outside = any(isinstance(command, CLOSES) for command in run.turns[-1].commands)
        if (instance.terminal is None) != (run.open or outside):
            yield f"run {run.run_id} ({run.type}): replayed, it ends with {instance.terminal}, but it is {run.status}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it breaks the law
        yield f"run {run.run_id} ({run.type}): its history does not replay: {type(error).__name__}: {error}"
    finally:
        if instance is not None:
            instance.close()


def _between(runs: dict[str, Run]) -> Iterable[str]:
    opened: defaultdict[str, list[str]] = defaultdict(list)
    for run in runs.values():
        if run.open:
            opened[run.workflow_id].append(run.run_id)
        if run.status is Status.CONTINUED_AS_NEW:
            successor = runs.get(run.continued_as or "")
            if successor is None or (successor.continued_from, successor.workflow_id) != (run.run_id, run.workflow_id):
                yield f"run {run.run_id} continued as {run.continued_as}, which does not know it"
    successors = Counter(run.continued_from for run in runs.values() if run.continued_from is not None)
    for run_id, count in successors.items():
        if count > 1:
            yield f"run {run_id} has {count} successors"
    for workflow_id, run_ids in opened.items():
        if len(run_ids) > 1:
            yield f"workflow {workflow_id} has {len(run_ids)} open runs"


def events_of(history: Sequence[Turn]) -> list[Any]:
    """The events of a history without the turns they came in."""
    return [event for turn in history for event in (*turn.arrivals, *turn.commands)]
