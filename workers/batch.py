"""What one cycle of the engine carries from the store through the decision and back; law: these are values, nobody acts here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.history import Arrival, TimerFired
from schemas.runs import (
    ActivityKey,
    BeatAnswer,
    ClaimedRun,
    InboxEntry,
    PendingActivity,
    Question,
    Resolved,
    Settlement,
    TurnCommit,
    TurnFailure,
)
from workers.effects import Plan


@dataclass(slots=True)
class Job:
    """A run whose turn is to be taken now."""

    run_id: str
    epoch: int
    turn: int  # turns taken so far
    queue: str
    type: str
    arrivals: list[Arrival] = field(default_factory=list)
    consumed: list[int] = field(default_factory=list)
    settled: list[ActivityKey] = field(default_factory=list)
    direct: list[Resolved] = field(default_factory=list)  # outcomes of eager activities among the arrivals, in case the turn is lost
    fired: list[int] = field(default_factory=list)  # timers that this very turn fires, among the arrivals
    more: bool = False
    turn_failures: int = 0

    @classmethod
    def of(cls, run: ClaimedRun) -> Job:
        """The job of a claimed run."""
        return cls(
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

    def hear(self, inbox: Sequence[InboxEntry]) -> None:
        """Consume the whole inbox instead of its beginning."""
        fired = (TimerFired(seq) for seq in self.fired)
        self.arrivals = [*(entry.arrival for entry in inbox), *(settled.arrival for settled in self.direct), *fired]
        self.consumed = [entry.id for entry in inbox]
        self.more = False

    def add(self, settled: Resolved) -> None:
        """Consume the outcome of an eager activity without the detour through the inbox."""
        self.arrivals.append(settled.arrival)
        self.settled.append(settled.key)
        self.direct.append(settled)

    def fire(self, seq: int) -> None:
        """Consume the firing of a timer without the detour through the inbox."""
        self.arrivals.append(TimerFired(seq))
        self.fired.append(seq)


@dataclass(slots=True)
class Batch:
    """All that one transaction writes, and the jobs it comes from."""

    jobs: dict[str, Job] = field(default_factory=dict)
    settlements: list[Settlement] = field(default_factory=list)
    commits: list[TurnCommit] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)
    failures: list[TurnFailure] = field(default_factory=list)
    released: list[tuple[str, int]] = field(default_factory=list)
    answers: list[Question] = field(default_factory=list)

    def __bool__(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.settlements or self.commits or self.failures or self.released or self.answers)

    @property
    def run_ids(self) -> list[str]:
        """The runs that it writes to, in the order in which everybody locks them."""
        written = {commit.run_id for commit in self.commits} | {settlement.key.run_id for settlement in self.settlements}
        return sorted(written | {failure.run_id for failure in self.failures} | {run_id for run_id, _ in self.released})

    def give_back(self) -> list[Settlement]:
        """The outcomes that must not be lost when the transaction was."""
        return [*self.settlements, *(settled for job in self.jobs.values() for settled in job.direct)]


@dataclass(slots=True)
class Written:
    """What the transaction did, and what it claimed for the next cycle."""

    lost: frozenset[str] = frozenset()
    rings: set[str] = field(default_factory=set)
    orphans: bool = False  # children are without their parent now
    beaten: list[BeatAnswer] = field(default_factory=list)
    claimed: list[ClaimedRun] = field(default_factory=list)
    started: list[PendingActivity] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    looked: bool = False  # it asked for more work
    more_runs: bool = False
    more_activities: bool = False
