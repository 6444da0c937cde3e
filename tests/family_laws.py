"""The laws between runs: parent and child agree, a child's end is told once, a message that was delivered is there once, and no other is."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from schemas.history import (
    CLOSES,
    Arrival,
    CancelSent,
    ChildCompleted,
    ChildFailed,
    ChildScheduled,
    ChildStarted,
    ChildStartFailed,
    Json,
    MessageDelivered,
    MessageFailed,
    RunStarted,
    SignalReceived,
    SignalSent,
)
from schemas.runs import Status

if TYPE_CHECKING:
    from tests.laws import Run

ENDED = (ChildCompleted, ChildFailed, ChildStartFailed)
ANSWERED = (MessageDelivered, MessageFailed)


@dataclass(frozen=True)
class Link:
    """A row that says whose child a chain of runs is."""

    workflow_id: str
    first_run_id: str
    parent_close: str
    orphaned: bool


Links = Mapping[tuple[str, int], Link]  # (parent's run id, number) -> row


def of_families(runs: Mapping[str, Run], links: Links) -> Iterator[str]:
    """What is wrong between runs."""
    chains: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs.values():
        chains[run.first_run_id].append(run)
    for run in runs.values():
        for what in (*_of_parent(run, runs, links), *_of_child(run, runs, links), *_of_messages(run, runs)):
            yield f"run {run.run_id} ({run.type}, {run.status}): {what}"
    for (run_id, seq), link in links.items():
        yield from (f"child {seq} of run {run_id}: {what}" for what in _of_link(runs.get(run_id), link, chains[link.first_run_id]))


def _of_parent(run: Run, runs: Mapping[str, Run], links: Links) -> Iterator[str]:
    """Each child of an open run is awaited by a row, or its end has come, and one of these only."""
    scheduled = {command.seq: command for turn in run.turns for command in turn.commands if isinstance(command, ChildScheduled)}
    came = [*_arrivals(run), *run.inbox]
    ends = Counter(event.seq for event in came if isinstance(event, ENDED))
    refused = {event.seq for event in came if isinstance(event, ChildStartFailed)}
    for event in came:
        if isinstance(event, (*ENDED, ChildStarted)) and event.seq not in scheduled:
            yield f"child {event.seq} is told of and was not scheduled"
        elif isinstance(event, ChildStarted) and event.run_id != scheduled[event.seq].run_id:
            yield f"child {event.seq} started as run {event.run_id}, not as its command says"
        elif isinstance(event, ChildCompleted | ChildFailed):
            yield from _of_end(event, scheduled[event.seq], runs)
    for seq, command in scheduled.items():
        if seq in refused and command.run_id in runs:
            yield f"child {seq} was refused, and its run {command.run_id} is there"
        if run.open and seq not in refused and command.run_id not in runs:
            yield f"child {seq} was not refused, and its run {command.run_id} is not there"
        if run.open and ends[seq] + ((run.run_id, seq) in links) != 1:
            yield f"child {seq} ended {ends[seq]} times and {'has' if (run.run_id, seq) in links else 'has no'} row (R6)"
        elif ends[seq] > 1:
            yield f"child {seq} ended {ends[seq]} times"


def _of_end(event: ChildCompleted | ChildFailed, command: ChildScheduled, runs: Mapping[str, Run]) -> Iterator[str]:
    last = runs.get(event.run_id)
    if last is None or last.first_run_id != command.run_id:
        yield f"child {event.seq} ended as run {event.run_id}, which is not of its chain"
    elif isinstance(event, ChildCompleted) and (last.status, last.result) != (Status.COMPLETED, event.result):
        yield f"child {event.seq} is said to be completed with {event.result!r}, but it is {last.status} with {last.result!r}"
    elif isinstance(event, ChildFailed) and last.status not in {Status.FAILED, Status.CANCELED, Status.TERMINATED, Status.TIMED_OUT}:
        yield f"child {event.seq} is said to have failed, but it is {last.status}"


def _of_child(run: Run, runs: Mapping[str, Run], links: Links) -> Iterator[str]:
    if run.parent_run_id is None:
        return
    parent = runs.get(run.parent_run_id)
    if parent is None:
        yield f"its parent {run.parent_run_id} does not exist"
        return
    asked = [c for turn in parent.turns for c in turn.commands if isinstance(c, ChildScheduled) and c.run_id == run.first_run_id]
    if [command.workflow_id for command in asked] != [run.workflow_id]:
        yield f"its parent {parent.run_id} asked for it {len(asked)} times"
        return
    for event in _arrivals(run):
        if isinstance(event, RunStarted) and (event.parent_id, event.parent_run_id) != (parent.workflow_id, parent.run_id):
            yield "its RunStarted names another parent"
    link = links.get((parent.run_id, asked[0].seq))
    if run.open and link is None and asked[0].parent_close == "terminate":
        yield f"it is open, and nothing will end it with its parent, which is {parent.status}"
    if run.open and link is None and parent.open:
        yield "it is open, and its parent will not hear of its end (R6)"


def _of_link(parent: Run | None, link: Link, chain: list[Run]) -> Iterator[str]:
    if link.orphaned == (parent is not None and parent.open):
        yield f"its parent is {parent.status if parent else 'gone'}, and it is {'' if link.orphaned else 'not '}an orphan"
    opened = [run.run_id for run in chain if run.open]
    if len(opened) != 1:
        yield f"its chain has {len(opened)} open runs"
    if link.orphaned and link.parent_close == "abandon":
        yield "it was abandoned and is still known"


def _of_messages(run: Run, runs: Mapping[str, Run]) -> Iterator[str]:
    answers: dict[int, MessageDelivered | MessageFailed] = {}
    for event in (*_arrivals(run), *run.inbox):
        if isinstance(event, ANSWERED):
            if event.seq in answers:
                yield f"message {event.seq} was answered twice"
            answers[event.seq] = event
    for turn in run.turns:
        for command in turn.commands:
            if isinstance(command, SignalSent | CancelSent):
                answer = answers.get(command.seq)
                if answer is None and run.open:
                    yield f"message {command.seq} has no answer (R6)"
                if isinstance(command, SignalSent):
                    yield from _of_signal(run, command, answer, runs)


def _of_signal(run: Run, command: SignalSent, answer: object, runs: Mapping[str, Run]) -> Iterator[str]:
    signal_id = f"{run.run_id}-{command.seq}"
    heard = {other.run_id: _heard(other, signal_id) for other in runs.values() if other.workflow_id == command.workflow_id}
    times = sum(heard.values())
    if times > 1:
        yield f"signal {command.seq} arrived {times} times"
    if isinstance(answer, MessageFailed) and times:
        yield f"signal {command.seq} failed and arrived"
    if isinstance(answer, MessageDelivered):
        recipient = runs.get(answer.run_id)
        dropped = recipient is not None and bool(recipient.turns) and any(isinstance(c, CLOSES) for c in recipient.turns[-1].commands)
        if recipient is None or (heard.get(answer.run_id) != 1 and not dropped):
            yield f"signal {command.seq} was delivered to run {answer.run_id}, which has not got it"


def _heard(run: Run, signal_id: str) -> int:
    return sum(isinstance(event, SignalReceived) and event.id == signal_id for event in (*_arrivals(run), *run.inbox))


def _arrivals(run: Run) -> Iterable[Arrival]:
    return (event for turn in run.turns for event in turn.arrivals)


def links_of(rows: Iterable[tuple[Json, ...]]) -> dict[tuple[str, int], Link]:
    """Rows of `child_workflows`."""
    return {
        (run_id, seq): Link(workflow_id, first_run_id, parent_close, orphaned_at is not None)
        for run_id, seq, workflow_id, first_run_id, parent_close, orphaned_at in rows
    }


LINKS = "SELECT run_id, seq, workflow_id, first_run_id, parent_close, orphaned_at FROM child_workflows"
