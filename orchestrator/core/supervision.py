"""What the supervisor of an agent does next, as a table; law: pure, and every wait has a deadline.

The state of an agent is its row, and changes there (`store.agents`). This is the other half: the process behind the row. Tidings come in,
acts go out, and a deadline stands for the tidings that do not come. A pair that is not in the table is old news: nothing follows from it.

    idle --start--> starting --ready--> idle --stop--> draining --drained--> ending --gone--> idle
                        |  crashed                         late: ending, by force; late again: killing
                        v
                     backoff --late--> starting
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from orchestrator.core.restarts import RestartPolicy, next_restart_s


class Phase(StrEnum):
    """What a supervisor waits for."""

    IDLE = "idle"
    STARTING = "starting"  # that the agent says it is ready
    DRAINING = "draining"  # that it has finished what it has
    ENDING = "ending"  # that its process is gone
    KILLING = "killing"  # the same, after force
    BACKOFF = "backoff"  # until it is started again


class News(StrEnum):
    """What a supervisor is told."""

    START = "start"
    STOP = "stop"
    RESTART = "restart"
    READY = "ready"
    DRAINED = "drained"
    GONE = "gone"  # the process has ended as it was told to, or well
    CRASHED = "crashed"
    REFUSED = "refused"  # it cannot be started at all: trying again would not help
    LATE = "late"  # the deadline of the phase has passed


class Act(StrEnum):
    """What a supervisor does; each is an activity."""

    SPAWN = "spawn"
    ATTACH = "attach"  # a service that came by itself gets a worker that takes its works to it
    DRAIN = "drain"
    END = "end"
    END_BY_FORCE = "end_by_force"
    KILL = "kill"
    FAIL_START = "fail_start"  # it was not ready in time
    GIVE_UP = "give_up"  # nobody can say what became of the process
    REPLACE = "replace"  # the drained process becomes its own successor, or makes room for one
    FORGET = "forget"  # the agent was to be removed once stopped


@dataclass(frozen=True, slots=True)
class Limits:
    """How long each phase may last, and how often a crash is forgiven."""

    start_s: float
    grace_s: float
    policy: RestartPolicy


@dataclass(frozen=True, slots=True)
class Supervised:
    """Where a supervisor stands; carried over when its workflow continues as new."""

    phase: Phase = Phase.IDLE
    then: News = News.STOP  # what follows when the process is gone
    forget: bool = False
    drain_s: float = 0.0
    deadline_at: float | None = None
    crashes: tuple[float, ...] = ()  # when


@dataclass(frozen=True, slots=True)
class Tidings:
    """News with what belongs to it."""

    news: News
    drain_s: float = 0.0
    forget: bool = False


P, N, A = Phase, News, Act

# phase -> news -> (next phase, acts). `draining` and `ending` lead on to `starting` when a restart was asked for (`_gone`); a crash is judged
# by the restart policy (`_crashed`).
PLAN: dict[Phase, dict[News, tuple[Phase, tuple[Act, ...]]]] = {
    P.IDLE: {
        N.START: (P.STARTING, (A.SPAWN,)),
        N.READY: (P.IDLE, (A.ATTACH,)),
        N.STOP: (P.DRAINING, (A.DRAIN,)),
        N.RESTART: (P.DRAINING, (A.DRAIN,)),
    },
    P.STARTING: {
        N.READY: (P.IDLE, (A.ATTACH,)),
        N.STOP: (P.DRAINING, (A.DRAIN,)),
        N.RESTART: (P.DRAINING, (A.DRAIN,)),
        N.GONE: (P.STARTING, (A.SPAWN,)),  # it made room for its successor
        N.REFUSED: (P.IDLE, ()),
        N.LATE: (P.BACKOFF, (A.KILL, A.FAIL_START)),
    },
    P.DRAINING: {
        N.DRAINED: (P.ENDING, (A.END,)),
        N.LATE: (P.ENDING, (A.END_BY_FORCE,)),
    },
    P.ENDING: {
        N.LATE: (P.KILLING, (A.KILL,)),
    },
    P.KILLING: {
        N.LATE: (P.IDLE, (A.GIVE_UP,)),
    },
    P.BACKOFF: {
        N.START: (P.STARTING, (A.SPAWN,)),
        N.RESTART: (P.STARTING, (A.SPAWN,)),
        N.STOP: (P.IDLE, ()),
        N.READY: (P.IDLE, (A.ATTACH,)),
        N.LATE: (P.STARTING, (A.SPAWN,)),
    },
}

GONE_IN = frozenset({P.DRAINING, P.ENDING, P.KILLING})


def step(state: Supervised, tidings: Tidings, *, now: float, limits: Limits) -> tuple[Supervised, tuple[Act, ...]]:
    """What follows from the tidings."""
    news = tidings.news
    if news in (N.STOP, N.RESTART):
        state = replace(state, then=news, drain_s=tidings.drain_s, forget=tidings.forget)
    if news in (N.GONE, N.CRASHED) and state.phase in GONE_IN:
        return _gone(state, news, now=now, limits=limits)
    if news is N.CRASHED and state.phase is not P.BACKOFF:
        return _crashed(state, now=now, limits=limits)
    found = PLAN[state.phase].get(news)
    if found is None:
        return state, ()
    phase, acts = found
    if phase is P.BACKOFF:
        judged, _ = _crashed(state, now=now, limits=limits)
        return judged, acts
    if acts == (A.END,) and state.then is N.RESTART:
        phase, acts = P.STARTING, (A.REPLACE,)
    if A.GIVE_UP in acts:
        return _ended(state, acts, now=now, limits=limits)
    return _entered(state, phase, now=now, limits=limits), acts


def _gone(state: Supervised, news: News, *, now: float, limits: Limits) -> tuple[Supervised, tuple[Act, ...]]:
    if news is N.CRASHED and state.then is N.RESTART:
        return _crashed(state, now=now, limits=limits)  # it was to come back, and it does, a little later
    return _ended(state, (), now=now, limits=limits)


def _ended(state: Supervised, acts: tuple[Act, ...], *, now: float, limits: Limits) -> tuple[Supervised, tuple[Act, ...]]:
    if state.then is N.RESTART:
        return _entered(state, P.STARTING, now=now, limits=limits), (*acts, A.SPAWN)
    return _entered(state, P.IDLE, now=now, limits=limits), (*acts, A.FORGET) if state.forget else acts


def _crashed(state: Supervised, *, now: float, limits: Limits) -> tuple[Supervised, tuple[Act, ...]]:
    crashes = (*state.crashes, now)[-limits.policy.restarts_max - 1 :]
    state = replace(state, crashes=crashes)
    delay_s = next_restart_s(crashes, now=now, policy=limits.policy)
    if delay_s is None:
        return _entered(state, P.IDLE, now=now, limits=limits), ()
    return replace(state, phase=P.BACKOFF, deadline_at=now + delay_s), ()


def _entered(state: Supervised, phase: Phase, *, now: float, limits: Limits) -> Supervised:
    longest_s = {P.STARTING: limits.start_s, P.DRAINING: state.drain_s, P.ENDING: limits.grace_s, P.KILLING: limits.grace_s}.get(phase)
    return replace(state, phase=phase, deadline_at=None if longest_s is None else now + longest_s)
