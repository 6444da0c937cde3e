"""Runs, activities and workers as the store hands them out and takes them in; law: values only, a row never leaves the store.

`runs` knows one run's state between turns, `history` what happened in them. Times are seconds since the epoch (UTC) by the database's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.history import ActivityScheduled, Arrival, Close, Command, Failure, Json, ParentClosePolicy, RunStarted, SignalReceived


class Status(StrEnum):
    """Where a run stands; all but RUNNING are final."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    TERMINATED = "terminated"
    TIMED_OUT = "timed_out"
    CONTINUED_AS_NEW = "continued_as_new"


class IdReusePolicy(StrEnum):
    """May a start use the id of a *closed* run?"""

    ALLOW_DUPLICATE = "allow_duplicate"
    ALLOW_DUPLICATE_FAILED_ONLY = "allow_duplicate_failed_only"  # after failed, canceled, terminated or timed out
    REJECT_DUPLICATE = "reject_duplicate"


class IdConflictPolicy(StrEnum):
    """What does a start do with the id of an *open* run?"""

    FAIL = "fail"
    USE_EXISTING = "use_existing"
    TERMINATE_EXISTING = "terminate_existing"


class ActivityState(StrEnum):
    """Where a pending activity stands; a resolved one has no row."""

    QUEUED = "queued"  # may be claimed, or published again, from due_at on
    STARTED = "started"  # a worker runs this attempt


# --- starting ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be created, with the policies of its id."""

    started: RunStarted
    reuse: IdReusePolicy = IdReusePolicy.ALLOW_DUPLICATE
    conflict: IdConflictPolicy = IdConflictPolicy.FAIL
    signal: SignalReceived | None = None  # signal-with-start: delivered to the new or the existing run
    start_delay_s: float = 0.0
    priority: int | None = 0  # None: that of the run it continues, or of its parent
    search_attributes: dict[str, Json] | None = None


@dataclass(frozen=True, slots=True)
class StartOutcome:
    """What became of a NewRun. Not created and not used means that the policies refused: `status` is that of the run in the way."""

    run_id: str
    created: bool
    used_existing: bool = False
    status: Status = Status.RUNNING


# --- turns ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """Something that arrived and that no turn has consumed."""

    id: int
    arrival: Arrival


@dataclass(frozen=True, slots=True)
class ClaimedRun:
    """A run that this worker alone may advance, as long as its epoch stands."""

    run_id: str
    epoch: int
    turn: int  # turns taken so far
    queue: str
    type: str
    inbox: tuple[InboxEntry, ...]
    more: bool  # the inbox held more than one batch; the commit must leave the run ready
    turn_failures: int = 0  # failed tries of the turn to come


@dataclass(frozen=True, slots=True)
class NewActivity:
    """An activity that a turn schedules, as the edge resolved it."""

    scheduled: ActivityScheduled
    queue: str
    eager: bool  # started by the committing worker in the same commit


@dataclass(frozen=True, slots=True)
class NewChild:
    """A child workflow that a turn starts."""

    seq: int
    run: NewRun
    announced: bool  # its parent waits for the start itself
    parent_close: ParentClosePolicy


@dataclass(frozen=True, slots=True)
class ParentLink:
    """Whom the end of a run is told to: the parent's run, which knows the child by the first run of its chain."""

    run_id: str
    first_run_id: str


@dataclass(frozen=True, slots=True)
class ActivityKey:
    """One attempt of one activity: the fence of everything that happens to it."""

    run_id: str
    seq: int
    attempt: int


@dataclass(frozen=True, slots=True)
class TurnCommit:
    """One turn of one run, decided and to be written: all or nothing, and only if `epoch` still stands."""

    run_id: str
    epoch: int
    turn: int  # the number of this turn: turns taken before it + 1
    at: float
    flags: int
    arrivals: tuple[Arrival, ...]
    commands: tuple[Command | Close, ...]
    consumed: tuple[int, ...] = ()  # inbox ids
    settled: tuple[ActivityKey, ...] = ()  # eager activities whose outcome is among `arrivals`: their rows must still be ours
    fired: tuple[int, ...] = ()  # timers whose firing is among `arrivals`: their rows must still be there, and due
    activities: tuple[NewActivity, ...] = ()
    more: bool = False
    status: Status = Status.RUNNING
    result: Json = None
    failure: Failure | None = None
    continued_as: NewRun | None = None
    related: bool = False  # it touches other runs: one of the three below, or messages among its commands
    children: tuple[NewChild, ...] = ()
    parent: ParentLink | None = None  # to be told that the run has closed for good
    orphans: bool = False  # the run closes, and it has had children


@dataclass(frozen=True, slots=True)
class TurnFailure:
    """A turn that could not be taken: the run waits, unharmed, and is tried again after `retry_in_s`."""

    run_id: str
    epoch: int
    reason: Failure
    retry_in_s: float


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit of turns did; runs in `lost` were claimed by somebody else meanwhile, or got new arrivals as they closed.

    `rings`: the queues of other runs that have something new. `orphans`: some children are without their parent now.
    """

    lost: frozenset[str] = frozenset()
    rings: frozenset[str] = frozenset()
    orphans: bool = False


# --- activities ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PendingActivity:
    """One unresolved activity."""

    key: ActivityKey
    scheduled: ActivityScheduled
    queue: str
    run_queue: str
    workflow_id: str
    workflow_type: str
    state: ActivityState
    scheduled_at: float
    started_at: float | None = None
    due_at: float = 0.0
    deadline_at: float | None = None
    worker: str | None = None
    heartbeat_at: float | None = None
    heartbeat_details: tuple[Json, ...] = ()
    last_failure: Failure | None = None
    losses: int = 0  # workers that died while they ran it
    cancel_requested: bool = False


@dataclass(frozen=True, slots=True)
class Resolved:
    """The activity is over: its row goes, the arrival enters the inbox, the run becomes ready."""

    key: ActivityKey
    arrival: Arrival
    dead_letter: bool = False  # set aside as poison as well


@dataclass(frozen=True, slots=True)
class TryAgain:
    """The activity goes back to its queue as the next attempt, due at `due_at`."""

    key: ActivityKey
    due_at: float
    failure: Failure
    losses: int = 0


Settlement = Resolved | TryAgain


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life of one attempt, with the details it wants the next attempt to have."""

    key: ActivityKey
    details: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class BeatAnswer:
    """What a sign of life brings back."""

    key: ActivityKey
    cancel_requested: bool
    gone: bool  # the attempt is no longer ours: stop


# --- workers -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """One worker process; `worker_id` is new at every start, `node` is the name people gave it."""

    worker_id: str
    node: str
    host: str
    boot_id: str
    pid: int
    pid_started_at: float
    queues: tuple[str, ...]
    build: str


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker as the store knows it."""

    identity: WorkerIdentity
    expires_at: float
    expired: bool
    stopping: bool = False  # it finishes what it has and takes nothing more


# --- looking -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RunDescription:
    """One run, for people."""

    workflow_id: str
    run_id: str
    type: str
    queue: str
    status: Status
    started_at: float
    closed_at: float | None
    turn: int
    history_events: int
    attempt: int
    priority: int
    ready: bool
    parent_id: str | None
    continued_from: str | None
    continued_as: str | None
    memo: dict[str, Json]
    search_attributes: dict[str, Json]
    result: Json = None
    failure: Failure | None = None
    stuck: Failure | None = None  # why the last turn could not be taken
    turn_failures: int = 0
    deadline_at: float | None = None


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs a list shows; empty means all. `page_after` is the `next_page` of the page before."""

    status: tuple[Status, ...] = ()
    type: tuple[str, ...] = ()
    queue: tuple[str, ...] = ()
    id_prefix: str = ""
    started_after: float | None = None
    started_before: float | None = None
    stuck: bool | None = None
    limit: int = 100
    page_after: str | None = None


@dataclass(frozen=True, slots=True)
class RunPage:
    """One page of runs, newest first."""

    runs: tuple[RunDescription, ...]
    next_page: str | None


@dataclass(frozen=True, slots=True)
class Question:
    """A query that waits for a worker, or its answer."""

    id: str
    run_id: str
    queue: str
    type: str
    name: str
    args: tuple[Json, ...]
    answer: Json = None
    failure: Failure | None = None
    answered: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Something that was set aside because it could not be processed; visible and replayable."""

    id: str
    kind: str  # activity | message
    reason: str
    at: float
    run_id: str | None
    seq: int | None
    document: Json


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of a dead letter that was to go back: on its way, or why not."""

    letter_id: str
    done: bool
    told: str  # half a sentence for people
    queues: frozenset[str] = frozenset()  # that have new work
