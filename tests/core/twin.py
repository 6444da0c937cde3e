"""A run taken twice: by one live instance, and by one that is revived from history before every turn; law: both ask for the same.

Tests of the language use it, so that each of them is a test of replay too.
"""

from __future__ import annotations

from typing import Any, ClassVar

from orchestrator.core.instance import Instance
from orchestrator.core.payloads import PayloadConverter
from orchestrator.core.replay import decide
from orchestrator.workflow import definition_of
from schemas.history import (
    ActivityCanceled,
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    Arrival,
    CancelRequested,
    CancelSent,
    ChildCancelRequested,
    ChildCompleted,
    ChildFailed,
    ChildScheduled,
    ChildStarted,
    ChildStartFailed,
    Close,
    Command,
    Failure,
    MessageDelivered,
    MessageFailed,
    RunCompleted,
    RunFailed,
    RunStarted,
    SignalReceived,
    SignalSent,
    Terminal,
    TimerCanceled,
    TimerFired,
    TimerStarted,
    Turn,
)

CONVERTER = PayloadConverter()
BEGIN = 1_000_000.0


class Twin:
    """One run; `turn` takes the next turn with what arrived. The clock moves one second a turn, and to a timer's time when it fires."""

    open: ClassVar[list[Twin]] = []

    def __init__(self, workflow: Any, *args: Any, replayed: bool = True, **started: Any) -> None:
        self.definition = definition_of(workflow)
        self.live = Instance(self.definition, CONVERTER)
        self.history: list[Turn] = []
        self.at = BEGIN
        self.replayed = replayed
        self.timers: dict[int, float] = {}
        facts: dict[str, Any] = {"workflow_id": "w-1", "run_id": "r-1", "queue": "default", "started_at": BEGIN, **started}
        self.started = RunStarted(type=self.definition.name, args=tuple(CONVERTER.encode_args(args, what="args")), **facts)
        Twin.open.append(self)

    @classmethod
    def close_all(cls) -> None:
        for twin in cls.open:
            twin.live.close()
        cls.open.clear()

    def start(self, *arrivals: Arrival) -> tuple[Command, ...]:
        return self.turn(self.started, *arrivals)

    def turn(self, *arrivals: Arrival) -> tuple[Command, ...]:
        fires = [self.timers.pop(arrival.seq, 0.0) for arrival in arrivals if isinstance(arrival, TimerFired)]
        self.at = max(self.at + 1, *fires, 0)
        revived = decide(self.definition, self.history, arrivals, at=self.at, converter=CONVERTER) if self.replayed else None
        commands = self.live.activate(self.at, arrivals)
        if revived is not None:
            assert revived.commands == commands, "the run revived from history asks for something else"
            assert revived.terminal == self.live.terminal
        self.timers |= {command.seq: command.fire_at for command in commands if isinstance(command, TimerStarted)}
        self.record(*commands, arrivals=arrivals)
        return commands

    def record(self, *commands: Command | Close, arrivals: tuple[Arrival, ...] = ()) -> None:
        self.history.append(Turn(len(self.history) + 1, self.at, arrivals, commands))

    def signal(self, name: str, *args: Any, key: str = "") -> tuple[Command, ...]:
        return self.turn(signal(name, *args, key=key))

    def query(self, name: str, *args: Any) -> Any:
        return self.live.query(name, CONVERTER.encode_args(args, what="args"))

    @property
    def terminal(self) -> Terminal | None:
        return self.live.terminal

    @property
    def result(self) -> Any:
        assert isinstance(self.terminal, RunCompleted), self.terminal
        return self.terminal.result

    @property
    def failure(self) -> Failure:
        assert isinstance(self.terminal, RunFailed), self.terminal
        return self.terminal.failure


def signal(name: str, *args: Any, key: str = "") -> SignalReceived:
    return SignalReceived(name, tuple(CONVERTER.encode_args(args, what="args")), key)


def done(seq: int, result: Any = None) -> ActivityCompleted:
    return ActivityCompleted(seq, CONVERTER.encode(result, what="result"))


def failed(seq: int, message: str = "broken", *, name: str = "ValueError", retry_state: str = "non_retryable_failure") -> ActivityFailed:
    return ActivityFailed(seq, Failure("application", message, name), retry_state)


def canceled(seq: int) -> ActivityCanceled:
    return ActivityCanceled(seq)


def begun(seq: int, run_id: str = "child-run") -> ChildStarted:
    return ChildStarted(seq, run_id)


def taken(seq: int, workflow_id: str = "taken") -> ChildStartFailed:
    return ChildStartFailed(seq, Failure("already_started", f"{workflow_id} is running", workflow_id=workflow_id, run_id="r-0"))


def grown(seq: int, result: Any = None) -> ChildCompleted:
    return ChildCompleted(seq, CONVERTER.encode(result, what="result"), "child-run")


def lost(seq: int, kind: Any = "application", message: str = "broken") -> ChildFailed:
    return ChildFailed(seq, Failure(kind, message), "child-run")


def delivered(seq: int) -> MessageDelivered:
    return MessageDelivered(seq, "other-run")


def undelivered(seq: int, workflow_id: str = "nobody") -> MessageFailed:
    return MessageFailed(seq, Failure("not_delivered", f"{workflow_id} is not open", workflow_id=workflow_id))


def fired(seq: int) -> TimerFired:
    return TimerFired(seq)


def cancel(reason: str = "enough") -> CancelRequested:
    return CancelRequested(reason)


def brief(commands: tuple[Command, ...]) -> list[str]:
    """Commands as short words: "run charge #1", "timer #2", "cancel #1", "run_completed"."""
    return [_word(command) for command in commands]


def _word(command: Command) -> str:
    match command:
        case ActivityScheduled():
            return f"run {command.type} #{command.seq}"
        case ChildScheduled():
            return f"child {command.type} #{command.seq}"
        case SignalSent():
            return f"signal {command.workflow_id} {command.name} #{command.seq}"
        case CancelSent():
            return f"cancel {command.workflow_id} #{command.seq}"
        case ActivityCancelRequested() | ChildCancelRequested():
            return f"cancel #{command.seq}"
        case TimerStarted():
            return f"timer #{command.seq}"
        case TimerCanceled():
            return f"untimer #{command.seq}"
        case _:
            return command.kind
