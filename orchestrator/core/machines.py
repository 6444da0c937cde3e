"""The state machine of an agent as tables; law: a pair that is not in a table changes nothing and is an error that says so.

`AGENT` says what may happen in which state and where it leads, `ORDERS` what a command means there. Nothing here knows a clock, a store or
a process: who asks gets an answer, and writes it with the version it was asked for.
"""

from __future__ import annotations

from enum import StrEnum

from orchestrator.errors import IllegalTransition
from schemas.agents import AgentStatus, DesiredState
from schemas.messages import CommandName, ErrorCode


class Trigger(StrEnum):
    """What happens to an agent."""

    START = "start"  # somebody wants it to run, and its process is about to be started
    READY = "ready"  # it said that it is there, by itself or after a start
    START_FAILED = "start_failed"  # it ended, or stayed silent, before it was ready
    PAUSED = "paused"  # it has confirmed that it takes nothing
    RESUMED = "resumed"
    DRAIN = "drain"  # it takes nothing more, finishes what it has, and goes
    GONE = "gone"  # its process has ended as it was told to
    RESTARTED = "restarted"  # drained, and its successor is being started
    CRASHED_IN_DRAIN = "crashed_during_drain"
    RESTART_FAILED = "restart_failed"
    CRASHED = "crashed"  # its process ended with an error, unasked
    EXITED = "exited"  # its process ended well, unasked
    SILENT = "silent"  # no heartbeat for longer than the timeout
    HEARD = "heard"  # a heartbeat of one that was silent
    LOST = "lost"  # silent, and its process is known to be gone
    ACKNOWLEDGED = "acknowledged"  # somebody has seen the error


S, T = AgentStatus, Trigger

AGENT: dict[AgentStatus, dict[Trigger, AgentStatus]] = {
    S.STARTING: {
        T.READY: S.RUNNING,
        T.START_FAILED: S.ERROR,
        T.CRASHED: S.ERROR,
        T.EXITED: S.ERROR,
        T.DRAIN: S.STOPPING,
        T.SILENT: S.INACTIVE,
    },
    S.RUNNING: {
        T.READY: S.RUNNING,
        T.PAUSED: S.PAUSED,
        T.DRAIN: S.STOPPING,
        T.CRASHED: S.ERROR,
        T.EXITED: S.STOPPED,
        T.SILENT: S.INACTIVE,
    },
    S.PAUSED: {
        T.READY: S.RUNNING,
        T.RESUMED: S.RUNNING,
        T.DRAIN: S.STOPPING,
        T.CRASHED: S.ERROR,
        T.EXITED: S.STOPPED,
        T.SILENT: S.INACTIVE,
    },
    S.STOPPING: {
        T.GONE: S.STOPPED,
        T.RESTARTED: S.STARTING,
        T.CRASHED_IN_DRAIN: S.ERROR,
        T.RESTART_FAILED: S.ERROR,
    },
    S.STOPPED: {T.START: S.STARTING, T.READY: S.RUNNING},
    S.ERROR: {T.START: S.STARTING, T.READY: S.RUNNING, T.ACKNOWLEDGED: S.STOPPED},
    S.INACTIVE: {
        T.START: S.STARTING,
        T.READY: S.RUNNING,
        T.HEARD: S.RUNNING,
        T.DRAIN: S.STOPPING,
        T.CRASHED: S.ERROR,
        T.EXITED: S.STOPPED,
        T.LOST: S.ERROR,
    },
}

HOLDS = None
"""The state that a command wants holds already: nothing changes, and that is no error."""

ORDERS: dict[CommandName, dict[AgentStatus, Trigger | None]] = {
    CommandName.START: {S.STOPPED: T.START, S.ERROR: T.START, S.INACTIVE: T.START},
    CommandName.PAUSE: {S.RUNNING: T.PAUSED, S.PAUSED: HOLDS},
    CommandName.RESUME: {S.PAUSED: T.RESUMED, S.RUNNING: HOLDS},
    CommandName.STOP: {
        S.STARTING: T.DRAIN,
        S.RUNNING: T.DRAIN,
        S.PAUSED: T.DRAIN,
        S.INACTIVE: T.DRAIN,
        S.STOPPING: HOLDS,
        S.STOPPED: HOLDS,
        S.ERROR: T.ACKNOWLEDGED,
    },
    CommandName.RESTART: {
        S.STARTING: T.DRAIN,
        S.RUNNING: T.DRAIN,
        S.PAUSED: T.DRAIN,
        S.INACTIVE: T.DRAIN,
        S.STOPPED: T.START,
        S.ERROR: T.START,
    },
}
"""Commands that change the state. The others (flush, sequence, scale, …) need an agent in LISTENING and leave the state alone."""

LISTENING = frozenset({S.RUNNING, S.PAUSED})

REFUSALS: dict[AgentStatus, ErrorCode] = {
    S.PAUSED: ErrorCode.AGENT_PAUSED,
    S.STOPPING: ErrorCode.AGENT_STOPPING,
    S.STARTING: ErrorCode.AGENT_UNAVAILABLE,
    S.STOPPED: ErrorCode.AGENT_UNAVAILABLE,
    S.ERROR: ErrorCode.AGENT_UNAVAILABLE,
    S.INACTIVE: ErrorCode.AGENT_UNAVAILABLE,
}
"""Why an agent in this state takes no work. A state that is not here takes it."""

RETURNS = frozenset({T.READY, T.HEARD})
"""After these an agent is what its operator wants it to be: running, or paused."""


def after(status: AgentStatus, trigger: Trigger, desired: DesiredState = DesiredState.RUNNING) -> AgentStatus:
    """Where `trigger` leads from `status`; raises IllegalTransition."""
    found = AGENT[status].get(trigger)
    if found is None:
        raise IllegalTransition(f"an agent that is {status} cannot be {trigger.replace('_', ' ')}", code=ErrorCode.INVALID_TRANSITION)
    return S.PAUSED if trigger in RETURNS and desired is DesiredState.PAUSED else found


def order(status: AgentStatus, command: CommandName) -> Trigger | None:
    """What a command means to an agent in this state; None: nothing, it holds already or changes no state. Raises IllegalTransition."""
    table = ORDERS.get(command)
    allowed = table if table is not None else dict.fromkeys(LISTENING)
    if status not in allowed:
        states = ", ".join(sorted(allowed))
        message = f"an agent that is {status} cannot {command}; that needs one that is {states}"
        raise IllegalTransition(message, code=ErrorCode.INVALID_TRANSITION)
    return allowed[status]
