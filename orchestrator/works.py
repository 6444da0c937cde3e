"""Asking agents for work: accept or refuse, and wait for the result; law: accepting is one transaction, and a request id counts once.

    works = Works()
    receipt = works.submit(WorkRequest(work_type="echo", parameters={"x": 1}), agent_type="test")
    result = works.wait(receipt.work.request_id, timeout_s=30)

Accepted means: the agent's row was read under a lock and its state takes work, the work is written, and its run is started, all in one
commit. Whatever stops the agent writes the same row, so every work is either accepted before and done, or refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Self
from uuid import UUID

from orchestrator import settings as settings_module
from orchestrator.clock import SYSTEM, Clock
from orchestrator.connection import Connection
from orchestrator.core import placement
from orchestrator.core.machines import REFUSALS
from orchestrator.core.payloads import PayloadConverter
from orchestrator.dispatch import Broker
from orchestrator.errors import AgentNotFound, FleetError, PayloadError, PayloadTooLarge, ResultTimeout
from orchestrator.starting import StartRequest, new_run
from orchestrator.store import Store, Transaction, agents, runs, works
from orchestrator.waiting import Steps, drive
from schemas.agents import Agent, AgentFilter, Work
from schemas.messages import ErrorCode, Requirements, WorkError, WorkRequest, WorkResult
from schemas.runs import IdConflictPolicy, NewRun, Status
from schemas.settings import Settings

WORKFLOW = "orchestrator.work"
"""The workflow whose run is a work; `workers.work` has it."""

PRIORITY_PLAIN = 5  # of an envelope that says none; the run's is relative to it
CANDIDATES_MAX = 1000  # agents of a type among which one is chosen


@dataclass(frozen=True, slots=True)
class Receipt:
    """A work that was accepted; `created` is False if its request id was known already, and then `work` may have a result."""

    work: Work
    created: bool


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody asks of an agent, or of any agent of a type."""

    request: WorkRequest
    work: Work
    priority: int = PRIORITY_PLAIN
    expires_in_s: float | None = None


def agent_queue(agent_id: str) -> str:
    """The queue of this very agent."""
    return f"agent.{agent_id}"


def type_queue(agent_type: str) -> str:
    """The queue that all agents of a type share."""
    return f"work.{agent_type}"


class Works:
    """Submits works and waits for them. Nothing is opened before the first use; safe after a fork, as a `Client` is."""

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        store: Store | None = None,
        bell: Broker | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        found = settings or settings_module.current()
        self._connection = Connection(found, PayloadConverter(None, found.payload_bytes_max), store=store, bell=bell, clock=clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop waiting and close what was opened here."""
        self._connection.close()

    def submit(
        self,
        request: WorkRequest,
        *,
        agent_id: str = "",
        agent_type: str = "",
        request_id: UUID | str | None = None,
        trace_id: UUID | str | None = None,
        actor: str = "",
        priority: int = PRIORITY_PLAIN,
        expires_in_s: float | None = None,
    ) -> Receipt:
        """Ask one agent, or any of a type. The same request id again gives the same work; when this returns, it is accepted for good.

        Raises FleetError: idempotency_conflict, payload_too_large, invalid_request, what `machines.REFUSALS` says of the agent's state,
        no_capacity if no agent of the type has what the request requires; AgentNotFound.
        """
        fresh = self._connection.clock.fresh_id
        work = Work(
            request_id=_uuid("request_id", request_id or fresh()),
            agent_type=agent_type,
            agent_id=agent_id,
            work_type=request.work_type,
            fingerprint=fingerprint(request, agent_id, agent_type),
            trace_id=_uuid("trace_id", trace_id or fresh()),
            actor=actor,
        )
        return self.place(Order(request, work, priority, expires_in_s))

    def place(self, order: Order) -> Receipt:
        """Submit an order; as `submit`."""
        connection = self._connection
        self._check(order)
        receipt = connection.write(lambda tx: accept(tx, order, self._new_run), purpose="works.accept")
        if receipt.work.result is None:  # also if it is known: a commit whose answer was lost has not rung
            connection.ring([queue_of(receipt.work)])
        return receipt

    def get(self, request_id: UUID | str) -> Work:
        """A work; raises FleetError not_found."""
        known = _uuid("request_id", request_id)
        return self._connection.read(lambda tx: need(tx, known))

    def wait(self, request_id: UUID | str, *, timeout_s: float | None = None) -> WorkResult:
        """Wait for the result of a work; raises ResultTimeout after `timeout_s`, FleetError not_found. The work goes on."""
        late = partial(self.late, request_id, timeout_s)
        return drive(self.steps(request_id), timeout_s=timeout_s, late=late, clock=self._connection.clock)

    def steps(self, request_id: UUID | str) -> Steps[WorkResult]:
        """The steps of a wait, for `waiting.drive` and `waiting.drive_async`."""
        known = _uuid("request_id", request_id)
        work, run_id = self._connection.read(lambda tx: _with_run(tx, known))
        if work.result is None and run_id is not None:
            status, *_ = yield self._connection.waiter.wait_for(("run", run_id))
            work = self._connection.read(lambda tx: need(tx, known))
        else:
            status = Status.TERMINATED
        return work.result or _ended_outside(work, status)

    def late(self, request_id: UUID | str, timeout_s: float | None) -> ResultTimeout:
        """What a wait raises that took too long."""
        return ResultTimeout(f"work {request_id} has no result after {timeout_s:g} s; it goes on, ask again later")

    def _check(self, order: Order) -> None:
        """Refuse what cannot be carried, before anything is read or written."""
        if not (order.work.agent_id or order.work.agent_type):
            raise FleetError("a work needs an agent or an agent type", code=ErrorCode.INVALID_REQUEST)
        try:
            self._connection.converter.encode(order.request, what="the work request")
        except PayloadTooLarge as error:
            raise FleetError(error.message, code=ErrorCode.PAYLOAD_TOO_LARGE) from error
        except PayloadError as error:
            raise FleetError(error.message, code=ErrorCode.INVALID_REQUEST) from error

    def _new_run(self, order: Order) -> NewRun:
        connection = self._connection
        request = StartRequest(
            WORKFLOW,
            args=(order.work, order.request),
            id=works.RUN_PREFIX + order.work.request_id,
            queue=queue_of(order.work),
            id_conflict_policy=IdConflictPolicy.USE_EXISTING,
            execution_timeout=order.expires_in_s,
            priority=order.priority - PRIORITY_PLAIN,
        )
        return new_run(request, settings=connection.settings, converter=connection.converter, clock=connection.clock)[0]


def accept(tx: Transaction, order: Order, run_of: Callable[[Order], NewRun]) -> Receipt:
    """Accept or refuse a work within a transaction; whoever calls it rings for `queue_of` the work after the commit."""
    known = works.get(tx, order.work.request_id)
    if known is None:
        order = replace(order, work=_addressed(tx, order))
        if works.add(tx, order.work):
            runs.start(tx, [run_of(order)])
            return Receipt(need(tx, order.work.request_id), created=True)
        known = need(tx, order.work.request_id)
    if known.fingerprint != order.work.fingerprint:
        message = f"request id {known.request_id} was used for another work; what is new needs a new request id"
        raise FleetError(message, code=ErrorCode.IDEMPOTENCY_CONFLICT)
    return Receipt(known, created=False)


def queue_of(work: Work) -> str:
    """Where a work waits for its agent."""
    return agent_queue(work.agent_id) if work.agent_id else type_queue(work.agent_type)


def need(tx: Transaction, request_id: str) -> Work:
    """A work; raises FleetError not_found."""
    found = works.get(tx, request_id)
    if found is None:
        raise FleetError(f"no work is known as {request_id}; results are kept for a limited time", code=ErrorCode.NOT_FOUND)
    return found


def fingerprint(request: WorkRequest, agent_id: str, agent_type: str) -> str:
    """What must be the same when a request id comes again."""
    text = f"{agent_id}\n{agent_type}\n{request.model_dump_json()}"
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def failed(work: Work, error: WorkError) -> WorkResult:
    """The result of a work that came to nothing."""
    return WorkResult(
        agent_id=work.executed_by or work.agent_id,
        work_type=work.work_type,
        status="error",
        exit_code=1,
        error=error,
        trace_id=UUID(work.trace_id),
        request_id=UUID(work.request_id),
    )


def _addressed(tx: Transaction, order: Order) -> Work:
    """The work with the agent that shall do it; refuses if there is none."""
    work, wanted = order.work, order.request.requirements
    if work.agent_id:
        agent = agents.get(tx, work.agent_id, lock=True)
        if agent is None:
            raise AgentNotFound(work.agent_id)
        if work.agent_type and work.agent_type != agent.spec.type:
            message = f"agent {agent.id!r} is of type {agent.spec.type!r}, not {work.agent_type!r}"
            raise FleetError(message, code=ErrorCode.INVALID_REQUEST)
        _refuse_unless_it_accepts(agent)
        if not placement.fits(agent, wanted):
            raise FleetError(f"the machine of agent {agent.id!r} does not have free what the work requires", code=ErrorCode.NO_CAPACITY)
        return replace(work, agent_type=agent.spec.type)
    anyone = wanted == Requirements()
    known = agents.list_agents(tx, AgentFilter(type=work.agent_type, limit=1 if anyone else CANDIDATES_MAX))
    if not known:
        raise FleetError(
            f"no agent is of type {work.agent_type!r}; `orchestrator agent list` shows those there are", code=ErrorCode.INVALID_REQUEST
        )
    if anyone:
        return work
    while True:
        chosen = placement.choose(known, wanted)
        if chosen is None:
            raise FleetError(f"no agent of type {work.agent_type!r} has free what the work requires", code=ErrorCode.NO_CAPACITY)
        locked = agents.get(tx, chosen.id, lock=True)
        if locked is not None and placement.accepts(locked):
            return replace(work, agent_id=chosen.id)
        known.remove(chosen)


def _refuse_unless_it_accepts(agent: Agent) -> None:
    code = REFUSALS.get(agent.status)
    if code is None and not agent.registered:
        raise FleetError(f"agent {agent.id!r} has not been heard of lately", code=ErrorCode.AGENT_UNAVAILABLE)
    if code is not None:
        reason = f" ({agent.reason})" if agent.reason else ""
        raise FleetError(f"agent {agent.id!r} is {agent.status}{reason} and takes no work", code=code)


def _with_run(tx: Transaction, request_id: str) -> tuple[Work, str | None]:
    work = need(tx, request_id)
    if work.result is not None:
        return work, None
    run = runs.resolve(tx, works.RUN_PREFIX + request_id)
    return work, None if run is None else run[0]


def _ended_outside(work: Work, status: Status) -> WorkResult:
    words = str(status).replace("_", " ")
    return failed(work, WorkError(code=ErrorCode.EXECUTION_FAILED, message=f"the run of the work was {words} before it had a result"))


def _uuid(what: str, value: UUID | str) -> str:
    try:
        return str(value if isinstance(value, UUID) else UUID(value))
    except ValueError:
        raise FleetError(f"{what} must be a UUID, not {value!r}", code=ErrorCode.INVALID_REQUEST) from None
