"""From a history back to an instance, and the next decision; law: `decide(definition, history) -> Decision` is pure.

Replay feeds each recorded turn to the code again and compares what it asks for with what it asked for then. Kind, number, and the name and
id of activities and of other workflows must agree, in order; arguments, queues, timeouts and retry policies may change between versions of the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from orchestrator.core.definitions import WorkflowDefinition
from orchestrator.core.instance import Instance
from orchestrator.core.patches import expected
from orchestrator.core.payloads import PayloadConverter
from orchestrator.errors import Divergence, HistoryTooNew
from schemas.history import (
    CLOSES,
    FLAGS_NOW,
    TERMINALS,
    ActivityScheduled,
    Arrival,
    CancelSent,
    ChildScheduled,
    Close,
    Command,
    PatchMarked,
    SignalSent,
    Terminal,
    Turn,
)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the code asks for in a turn, and whether that closes the run."""

    commands: tuple[Command, ...]
    terminal: Terminal | None


def decide(
    definition: WorkflowDefinition,
    history: Sequence[Turn],
    arrivals: Sequence[Arrival],
    *,
    at: float,
    converter: PayloadConverter,
) -> Decision:
    """Replay `history`, then take the next turn with `arrivals` at time `at`."""
    instance = revive(definition, history, converter)
    try:
        return step(instance, arrivals, at=at)
    finally:
        instance.close()


def step(instance: Instance, arrivals: Sequence[Arrival], *, at: float) -> Decision:
    """Take the next turn of an instance that stands at the end of its history."""
    return Decision(instance.activate(at, arrivals), instance.terminal)


def revive(definition: WorkflowDefinition, history: Sequence[Turn], converter: PayloadConverter) -> Instance:
    """The instance that stands at the end of `history`. Raises Divergence, HistoryTooNew, and what `Instance.activate` raises."""
    instance = Instance(definition, converter)
    try:
        for turn in history:
            replay(instance, turn)
    except BaseException:
        instance.close()
        raise
    return instance


def replay(instance: Instance, turn: Turn) -> None:
    """Feed one recorded turn to the code."""
    unknown = turn.flags & ~int(FLAGS_NOW)
    if unknown:
        message = f"turn {turn.turn} was taken with behaviours {unknown:#x} that this version does not know; update this worker"
        raise HistoryTooNew(message)
    if any(isinstance(command, CLOSES) for command in turn.commands):
        instance.turn += 1  # closed from outside: the code had no part in it
        return
    instance.patches.recall(turn.commands)
    found = instance.activate(turn.at, turn.arrivals, replaying=True)
    instance.history_events += len(turn.commands) - len(found)  # marks that the code passes over are in the history all the same
    for position, (then, now) in enumerate(zip_longest(expected(turn.commands, found), found), start=1):
        if then is None or now is None or identity(then) != identity(now):
            raise Divergence(turn=turn.turn, position=position, expected=describe(then), found=describe(now))


def identity(command: Command | Close) -> tuple[object, ...]:
    """What must not change between versions of the code."""
    if isinstance(command, ActivityScheduled):
        return command.kind, command.seq, command.type, command.activity_id
    if isinstance(command, ChildScheduled):
        return command.kind, command.seq, command.type, command.workflow_id, command.announced
    if isinstance(command, SignalSent):
        return command.kind, command.seq, command.workflow_id, command.name
    if isinstance(command, CancelSent):
        return command.kind, command.seq, command.workflow_id
    if isinstance(command, PatchMarked):
        return command.kind, command.id
    if isinstance(command, (*TERMINALS, *CLOSES)):
        return (command.kind,)
    return command.kind, command.seq


def describe(command: Command | Close | None) -> str:
    """A command in words, for people."""
    if command is None:
        return "nothing"
    if isinstance(command, ActivityScheduled):
        return f"activity {command.type!r} (id {command.activity_id}, number {command.seq})"
    if isinstance(command, ChildScheduled):
        announced = ", started and awaited apart" if command.announced else ""
        return f"child workflow {command.type!r} (id {command.workflow_id}, number {command.seq}{announced})"
    if isinstance(command, SignalSent):
        return f"signal {command.name!r} to workflow {command.workflow_id} (number {command.seq})"
    if isinstance(command, CancelSent):
        return f"cancel request to workflow {command.workflow_id} (number {command.seq})"
    if isinstance(command, PatchMarked):
        return f"patch {command.id!r}"
    words = command.kind.replace("_", " ")
    return words if isinstance(command, (*TERMINALS, *CLOSES)) else f"{words} (number {command.seq})"
