"""One run in the hands of a caller: wait for it, speak to it, look at it, end it; law: a message is committed before the call returns."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar, cast

from orchestrator.connection import Connection
from orchestrator.core.definitions import WORKFLOWS, WorkflowDefinition, valid_name
from orchestrator.core.failures import to_exception
from orchestrator.core.messages import Message, message
from orchestrator.delivering import Delivery
from orchestrator.errors import (
    DatabaseUnavailable,
    QueryFailed,
    ResultTimeout,
    WorkflowContinuedAsNew,
    WorkflowFailure,
    WorkflowNotFound,
    WorkflowNotOpen,
)
from orchestrator.starting import UNSET, one_or_many
from orchestrator.store import Transaction, control, hints, listing, runs
from orchestrator.waiting import Steps, drive
from orchestrator.workflow import Duration, seconds_of
from schemas.history import Arrival, CancelRequested, Failure, Json, RunTerminated, SignalReceived, Turn
from schemas.runs import PendingActivity, Question, RunDescription, Status

R = TypeVar("R")

QUERY_TIMEOUT_S = 10.0
CHILDREN_SHOWN = 100
FRESH_S = 0.01  # a run that was started by us within this time is waited for without a look of its own

Outcome = tuple[Status, Json, Failure | None, str | None]  # status, result, failure, run id that it continued as


@dataclass(frozen=True, slots=True)
class Target:
    """The run that a handle means at this moment."""

    run_id: str
    status: Status
    queue: str
    type: str


class Quick(Protocol):
    """Writes something by a single transaction; returns the queue that has work now, and whether a worker was told of it."""

    def __call__(self, tx: Transaction, *, hint: bool) -> tuple[str, bool]:
        """Write, or raise Unmet."""
        ...


@dataclass(frozen=True, slots=True)
class Spoken(Delivery):
    """What a handle delivers."""

    handle: WorkflowHandle[Any] = field(kw_only=True)


def deliver_together(connection: Connection, spoken: Sequence[Spoken]) -> Sequence[Exception | None]:
    """Write arrivals that were delivered at once by one commit; return what to raise for each."""
    if len(spoken) == 1:
        spoken[0].handle.deliver_alone(spoken[0].arrival, spoken[0].request_id)
        return [None]

    def act(tx: Transaction) -> tuple[list[Exception | None], set[str]]:
        found: dict[Hashable, Target | Exception] = {}
        for one in spoken:
            if one.target not in found:
                try:
                    found[one.target] = one.handle.target(tx)
                except WorkflowNotFound as error:
                    found[one.target] = error
        items = [(target.run_id, one.arrival, one.request_id) for one in spoken if isinstance(target := found[one.target], Target)]
        queues = runs.deliver_to(tx, items)
        return [_told(one, found[one.target], queues) for one in spoken], set(queues.values())

    def quickly(tx: Transaction) -> tuple[list[Exception | None], set[str]]:
        queue, _ = spoken[0].handle.deliver_quickly(tx, [(one.arrival, one.request_id) for one in spoken], hint=False)
        return [None] * len(spoken), {queue}

    alike = connection.store().dialect == "postgresql" and len({one.target for one in spoken}) == 1
    told, queues = connection.write(act, purpose="client.signals", quick=quickly if alike else None)
    connection.ring(queues)
    return told


def _told(one: Spoken, target: Target | Exception, queues: Mapping[str, str]) -> Exception | None:
    if isinstance(target, Exception):
        return target
    return None if target.run_id in queues else one.handle.not_open(target)


class WorkflowHandle(Generic[R]):
    """One run, or whatever run a workflow id has.

    Made by `start_workflow`, it means that run and those it continues as; made by `get_handle(id)`, the open or else latest run of the id;
    made by `get_handle(id, run_id)`, exactly that run.
    """

    def __init__(
        self,
        connection: Connection,
        workflow_id: str,
        run_id: str | None = None,
        *,
        definition: WorkflowDefinition | None = None,
        pinned: bool = False,
        created: bool = False,
        fresh: bool = False,
    ) -> None:
        self._connection = connection
        self._fresh_until = connection.clock.monotonic() + FRESH_S if fresh else 0.0
        self._id = valid_name("workflow id", workflow_id)
        self._run_id = None if run_id is None else valid_name("run id", run_id)
        self._definition = definition
        self._pinned = pinned
        self._created = created
        self._latest = self._run_id  # the last link of the chain of runs that is known

    def __repr__(self) -> str:
        return f"<workflow {self._id} run {self._run_id or 'latest'}>"

    @property
    def id(self) -> str:
        """The workflow id."""
        return self._id

    @property
    def run_id(self) -> str | None:
        """The run id; None when the handle means whatever run the id has."""
        return self._run_id

    @property
    def created(self) -> bool:
        """Whether the call that gave this handle has created the run; False if it was there already."""
        return self._created

    def result(self, timeout: Duration | None = None, *, follow_runs: bool = True) -> R:
        """Wait for the result.

        Raises WorkflowFailure when the run failed, was cancelled, terminated or timed out (its `.cause` says why), ResultTimeout after
        `timeout` seconds, WorkflowNotFound, and WorkflowContinuedAsNew when a run continued as new and `follow_runs` is off.
        """
        timeout_s = None if timeout is None else seconds_of(timeout, "timeout")
        late = partial(self.late, timeout_s)
        return drive(self.result_steps(follow_runs=follow_runs), timeout_s=timeout_s, late=late, clock=self._connection.clock)

    def signal(
        self,
        signal: str | Callable[..., Any],
        arg: Any = UNSET,  # noqa: ANN401 - any value that a payload can carry
        *,
        args: Sequence[Any] = UNSET,
        request_id: str | None = None,
    ) -> None:
        """Send a signal; when this returns it is stored. A second one with the same `request_id` is dropped.

        Raises WorkflowNotOpen, WorkflowNotFound, PayloadError.
        """
        spoken = self._message("signal", signal, arg, args)
        request_id = self._connection.clock.fresh_id() if request_id is None else valid_name("request id", request_id)
        self._deliver(SignalReceived(spoken.name, spoken.args, id=request_id), request_id)

    def query(
        self,
        query: str | Callable[..., Any],
        arg: Any = UNSET,  # noqa: ANN401 - any value that a payload can carry
        *,
        args: Sequence[Any] = UNSET,
        timeout: Duration = QUERY_TIMEOUT_S,
    ) -> Any:  # noqa: ANN401 - what the query's method returns
        """Ask the run, open or closed, through a worker. Raises QueryFailed when it cannot be answered or no worker does within `timeout` seconds."""
        timeout_s = seconds_of(timeout, "timeout")
        late = partial(self.unanswered, query, timeout_s)
        return drive(self.query_steps(query, arg, args), timeout_s=timeout_s, late=late, clock=self._connection.clock)

    def cancel(self, reason: str = "") -> None:
        """Ask the run to cancel itself; its code decides what that means. Raises WorkflowNotOpen, WorkflowNotFound."""
        self._deliver(CancelRequested(str(reason)), self._connection.clock.fresh_id())

    def terminate(self, reason: str = "") -> None:
        """End the run at once, without asking its code. Raises WorkflowNotOpen, WorkflowNotFound."""
        mine: set[str] = set()  # closed by a try of ours that seemed to fail

        def act(tx: Transaction) -> set[str]:
            target = self.target(tx)
            if target.status is Status.TERMINATED and target.run_id in mine:
                return set()
            queues = runs.close_from_outside(tx, target.run_id, RunTerminated(str(reason)))
            if queues is None:
                raise self.not_open(target)
            mine.add(target.run_id)
            return queues

        self._connection.ring(self._connection.write(act, purpose="client.terminate"))  # its parent, if it has one

    def describe(self) -> RunDescription:
        """All that is known about the run; payloads are as they are stored. Raises WorkflowNotFound."""

        def ask(tx: Transaction) -> RunDescription:
            found = runs.describe(tx, self.target(tx).run_id)
            if found is None:
                raise self._not_found()
            return found

        return self._connection.read(ask)

    def history(self) -> list[Turn]:
        """Every turn of the run so far, oldest first. Raises WorkflowNotFound."""
        run_id = self._connection.read(self.target).run_id
        turns: list[Turn] = []

        def next_page(tx: Transaction) -> list[Turn]:
            return runs.history(tx, run_id, after_turn=turns[-1].turn if turns else 0)

        while page := self._connection.read(next_page):
            turns += page
        return turns

    def pending_activities(self) -> list[PendingActivity]:
        """The activities that the run waits for. Raises WorkflowNotFound."""
        return self._connection.read(lambda tx: list(listing.pending_activities(tx, self.target(tx).run_id)))

    def children(self, limit: int = CHILDREN_SHOWN) -> list[RunDescription]:
        """The runs of the child workflows it has started, open and closed, the oldest first, at most `limit`. Raises WorkflowNotFound."""
        return self._connection.read(lambda tx: listing.children(tx, self.target(tx).run_id, limit))

    def result_steps(self, *, follow_runs: bool) -> Steps[R]:
        """`result` as steps: the first may speak to the database, the others only wait."""
        run_id, outcome = self._first_look()
        while True:
            if outcome is None:
                outcome = cast("Outcome", (yield self._waiting("run", run_id)))
            status, result, failure, continued_as = outcome
            if status is Status.COMPLETED:
                return cast("R", self._connection.converter.decode(result, self._returns(), what=f"the result of workflow {self._id!r}"))
            if status is not Status.CONTINUED_AS_NEW or continued_as is None:
                raise self._failed(status, failure)
            if not follow_runs:
                raise WorkflowContinuedAsNew(f"workflow {self._id!r} continued as run {continued_as}", new_run_id=continued_as)
            run_id, outcome = continued_as, None

    def query_steps(self, query: str | Callable[..., Any], arg: Any, args: Any) -> Steps[Any]:  # noqa: ANN401 - any value that a payload can carry
        """`query` as steps: the first speaks to the database, the others only wait."""
        spoken = self._message("query", query, arg, args)
        question_id = self._connection.clock.fresh_id()

        def ask(tx: Transaction) -> str:
            target = self.target(tx)
            control.ask(tx, Question(question_id, target.run_id, target.queue, target.type, spoken.name, spoken.args))
            return target.queue

        self._write_and_ring(ask, purpose="client.query")
        answered = cast("Question", (yield self._waiting("question", question_id)))
        if answered.failure is not None:
            raise QueryFailed(f"query {spoken.name!r}: {answered.failure.message}") from to_exception(
                answered.failure, self._connection.converter
            )
        return self._connection.converter.decode(answered.answer, spoken.result, what=f"the answer to query {spoken.name!r}")

    def unanswered(self, query: str | Callable[..., Any], timeout_s: float) -> QueryFailed:
        """No worker answered in time."""
        name = query if isinstance(query, str) else getattr(query, "__name__", repr(query))
        return QueryFailed(
            f"no worker answered query {name!r} of workflow {self._id!r} within {timeout_s:g} s; does one run for its queue?"
        )

    def late(self, timeout_s: float | None) -> ResultTimeout:
        """No result came in time."""
        return ResultTimeout(f"workflow {self._id!r} has no result after {timeout_s or 0:g} s; it goes on, ask again")

    def _waiting(self, kind: Any, key: str) -> Future[Any]:  # noqa: ANN401 - as `Awaited`
        return self._connection.waiter.wait_for((kind, key))

    def _first_look(self) -> tuple[str, Outcome | None]:
        """The run whose result is wanted, and its outcome if it is closed already."""

        def ask(tx: Transaction) -> tuple[str, Outcome | None]:
            found = runs.resolve(tx, self._id, self._run_id)
            if found is None:
                raise self._not_found()
            self._know(found[3])
            return found[0], runs.outcome(tx, [found[0]]).get(found[0])

        if self._run_id is None:
            return self._connection.read(ask)
        if self._definition is not None and self._connection.clock.monotonic() < self._fresh_until:
            return self._run_id, None  # it was started a moment ago; the waiter looks at once
        try:
            return self._connection.read_once(ask)
        except DatabaseUnavailable:
            return self._run_id, None  # the waiter looks on through an outage, for as long as the caller wants

    def target(self, tx: Transaction) -> Target:
        """The run that this handle means now. Raises WorkflowNotFound."""
        found = runs.resolve(tx, self._id, self._latest)
        while found is not None and found[1] is Status.CONTINUED_AS_NEW and self._latest is not None and not self._pinned:
            continued_as = runs.outcome(tx, [found[0]])[found[0]][3]
            following = None if continued_as is None else runs.resolve(tx, self._id, continued_as)
            if following is None:
                break
            found, self._latest = following, continued_as
        if found is None:
            raise self._not_found()
        target = Target(*found)
        self._know(target.type)
        return target

    def _know(self, workflow_type: str) -> None:
        if self._definition is None:
            self._definition = WORKFLOWS.get(workflow_type)

    def _returns(self) -> Any:  # noqa: ANN401 - an annotation
        return Any if self._definition is None else self._definition.signature.result

    def _message(self, role: str, target: str | Callable[..., Any], arg: Any, args: Any) -> Message:  # noqa: ANN401 - any value that a payload can carry
        return message(role, target, one_or_many(arg, args, role), self._definition, self._connection.converter)

    def _deliver(self, arrival: Arrival, request_id: str) -> None:
        delivery = Spoken((self._id, self._latest, self._pinned), arrival, request_id, handle=self)
        if self._connection.settings.group_commits:
            self._connection.deliveries(partial(deliver_together, self._connection)).deliver(delivery)
        else:
            self.deliver_alone(arrival, request_id)

    def deliver_alone(self, arrival: Arrival, request_id: str) -> None:
        """Write one arrival by a commit of its own. Raises WorkflowNotOpen, WorkflowNotFound."""

        def act(tx: Transaction) -> str:
            target = self.target(tx)
            if target.run_id not in runs.deliver(tx, [(target.run_id, arrival, request_id)]):
                raise self.not_open(target)
            return target.queue

        def quickly(tx: Transaction, *, hint: bool) -> tuple[str, bool]:
            return self.deliver_quickly(tx, [(arrival, request_id)], hint=hint)

        postgres = self._connection.store().dialect == "postgresql"
        self._write_and_ring(act, purpose=f"client.{arrival.kind}", quick=quickly if postgres else None)

    def deliver_quickly(self, tx: Transaction, items: Sequence[tuple[Arrival, str]], *, hint: bool) -> tuple[str, bool]:
        """Write arrivals by a single transaction on PostgreSQL; see `runs.deliver_plain`."""
        return runs.deliver_plain(tx, self._id, self._latest, items, hint=hint)

    def _write_and_ring(self, act: Callable[[Transaction], str], *, purpose: str, quick: Quick | None = None) -> None:
        """Commit what `act` writes and tell workers of the queue that it returns."""
        with self._connection.hinting() as hint:

            def act_and_hint(tx: Transaction) -> tuple[str, Callable[[], bool]]:
                queue = act(tx)
                woken = hints.wake(tx, tx.dialect, [queue] if hint else ())
                return queue, lambda: bool(hints.told(woken))

            def quick_and_hint(tx: Transaction) -> tuple[str, Callable[[], bool]]:
                assert quick is not None, "it is given"
                queue, told = quick(tx, hint=hint)
                return queue, lambda: told

            queue, told = self._connection.write(act_and_hint, purpose=purpose, quick=None if quick is None else quick_and_hint)
        self._connection.ring([queue], told=[queue] if told() else ())

    def _failed(self, status: Status, failure: Failure | None) -> WorkflowFailure:
        cause = None if failure is None else to_exception(failure, self._connection.converter)
        reason = "" if failure is None else f": {failure.message}"
        words = str(status).replace("_", " ")
        return WorkflowFailure(f"workflow {self._id!r} {words}{reason}", workflow_id=self._id, status=str(status), cause=cause)

    def _not_found(self) -> WorkflowNotFound:
        run = "" if self._run_id is None else f" with run id {self._run_id!r}"
        return WorkflowNotFound(f"there is no workflow {self._id!r}{run}")

    def not_open(self, target: Target) -> WorkflowNotOpen:
        """Why nothing can be sent to this run any more."""
        words = str(target.status).replace("_", " ")
        state = "closed meanwhile" if target.status is Status.RUNNING else words
        return WorkflowNotOpen(f"workflow {self._id!r} is {state} (run {target.run_id}); nothing more can be sent to it")
