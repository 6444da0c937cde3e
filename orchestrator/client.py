"""What callers import: start workflows, find them, wait for them; law: when a call returns, what it asked for is committed.

    client = Client()
    handle = client.start_workflow(OrderWorkflow.run, order, id=f"order-{order.id}", queue="orders")
    handle.signal(OrderWorkflow.approve)
    receipt = handle.result(timeout=30)

`orchestrator.async_client.AsyncClient` has the same methods with await.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, ParamSpec, Self, TypeVar, Unpack, overload

from orchestrator import settings as settings_module
from orchestrator.clock import SYSTEM, Clock
from orchestrator.connection import Connection
from orchestrator.core.definitions import WorkflowDefinition, WorkflowFunction, workflow_named
from orchestrator.core.payloads import PayloadCodec, PayloadConverter
from orchestrator.dispatch import Broker
from orchestrator.errors import InvalidArgument, WorkflowAlreadyStarted
from orchestrator.filters import run_filter
from orchestrator.handle import WorkflowHandle
from orchestrator.starting import UNSET, StartOptions, StartRequest, new_run, one_or_many
from orchestrator.store import Store, Transaction, hints, listing, runs
from orchestrator.store.hints import Woken
from schemas.runs import NewRun, RunDescription, RunFilter, RunPage, StartOutcome, Status
from schemas.settings import Settings

__all__ = ["Client", "StartOptions", "StartRequest", "WorkflowHandle"]

P = ParamSpec("P")
R = TypeVar("R")
A = TypeVar("A")

STARTS_MAX = 10_000  # of one bulk start, which is one transaction


class Client:
    """Starts workflows and finds them again.

    `database` and `broker` are URLs; what is not given comes from `settings`, and those from the environment. Nothing is opened before the
    first use, and it is safe to fork at any time. `codec` must be the same one that the workers have.
    """

    def __init__(
        self,
        database: str | None = None,
        broker: str | None = None,
        *,
        settings: Settings | None = None,
        store: Store | None = None,
        bell: Broker | None = None,
        codec: PayloadCodec | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        found = settings_module.current() if settings is None else settings_module.load({}, **settings.model_dump())
        urls = {"database_url": database, "broker_url": broker}
        found = found.model_copy(update={name: url for name, url in urls.items() if url is not None})
        self.settings = found
        self._connection = Connection(found, PayloadConverter(codec, found.payload_bytes_max), store=store, bell=bell, clock=clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Send what is to be sent and close connections; the client opens new ones when it is used again."""
        self._connection.close()

    # --- starting ------------------------------------------------------------------------------------------------------------

    @overload
    def start_workflow(self, workflow: WorkflowFunction[[], R], **options: Unpack[StartOptions]) -> WorkflowHandle[R]: ...
    @overload
    def start_workflow(self, workflow: WorkflowFunction[[A], R], arg: A, **options: Unpack[StartOptions]) -> WorkflowHandle[R]: ...
    @overload
    def start_workflow(self, workflow: Callable[[Any], Awaitable[R]], **options: Unpack[StartOptions]) -> WorkflowHandle[R]: ...
    @overload
    def start_workflow(self, workflow: Callable[[Any, A], Awaitable[R]], arg: A, **options: Unpack[StartOptions]) -> WorkflowHandle[R]: ...
    @overload
    def start_workflow(
        self, workflow: Callable[..., Awaitable[R]], *, args: Sequence[Any], **options: Unpack[StartOptions]
    ) -> WorkflowHandle[R]: ...
    @overload
    def start_workflow(
        self, workflow: str | type[Any], arg: object = ..., *, args: Sequence[Any] = ..., **options: Unpack[StartOptions]
    ) -> WorkflowHandle[Any]: ...
    def start_workflow(
        self,
        workflow: Any,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = UNSET,
        **options: Unpack[StartOptions],
    ) -> WorkflowHandle[Any]:
        """Start a run of a workflow class, its run method, a workflow function or a type's name; one argument as `arg`, several as `args`.

        Options are those of `StartRequest`, and `session`: a SQLAlchemy or SQLModel session in whose transaction the run is written, so that
        it exists if and only if the session commits. Raises WorkflowAlreadyStarted as the policies say, PayloadError when the arguments
        cannot be carried or do not fit, InvalidArgument.
        """
        session = options.pop("session", None)
        request = StartRequest(workflow, args=one_or_many(arg, args, "start_workflow"), **options)  # type: ignore[misc] # `session` is out
        prepared = [self._prepared(request)]

        def act(tx: Transaction) -> tuple[list[StartOutcome], set[str]]:
            return self._start(tx, prepared)

        outcomes = self._connection.write_with(session, act) if session is not None else self._write_starts(prepared)
        return self._handles(prepared, outcomes, fresh=session is None)[0]  # a caller's session may still roll back

    @overload
    def execute_workflow(self, workflow: WorkflowFunction[[], R], **options: Unpack[StartOptions]) -> R: ...
    @overload
    def execute_workflow(self, workflow: WorkflowFunction[[A], R], arg: A, **options: Unpack[StartOptions]) -> R: ...
    @overload
    def execute_workflow(self, workflow: Callable[[Any], Awaitable[R]], **options: Unpack[StartOptions]) -> R: ...
    @overload
    def execute_workflow(self, workflow: Callable[[Any, A], Awaitable[R]], arg: A, **options: Unpack[StartOptions]) -> R: ...
    @overload
    def execute_workflow(self, workflow: Callable[..., Awaitable[R]], *, args: Sequence[Any], **options: Unpack[StartOptions]) -> R: ...
    @overload
    def execute_workflow(
        self, workflow: str | type[Any], arg: object = ..., *, args: Sequence[Any] = ..., **options: Unpack[StartOptions]
    ) -> Any: ...  # noqa: ANN401 - only other processes know the type
    def execute_workflow(self, workflow: Any, arg: Any = UNSET, *, args: Sequence[Any] = UNSET, **options: Unpack[StartOptions]) -> Any:
        """Start a run and wait for its result; as `start_workflow` and then `result`."""
        return self.start_workflow(workflow, arg, args=args, **options).result()

    def start_workflows(self, requests: Iterable[StartRequest]) -> list[WorkflowHandle[Any]]:
        """Start many runs in one transaction: all of them, or none and the error of the first that cannot be started."""
        prepared = [self._prepared(request) for request in requests]
        if len(prepared) > STARTS_MAX:
            raise InvalidArgument(f"at most {STARTS_MAX:,} workflows can be started in one transaction, not {len(prepared):,}")
        return self._handles(prepared, self._write_starts(prepared), fresh=True)

    # --- finding -------------------------------------------------------------------------------------------------------------

    @overload
    def get_handle(self, id: str, run_id: str | None = None) -> WorkflowHandle[Any]: ...
    @overload
    def get_handle(self, id: str, run_id: str | None = None, *, workflow: WorkflowFunction[P, R]) -> WorkflowHandle[R]: ...
    @overload
    def get_handle(self, id: str, run_id: str | None = None, *, workflow: Callable[..., Awaitable[R]]) -> WorkflowHandle[R]: ...
    @overload
    def get_handle(self, id: str, run_id: str | None = None, *, workflow: str | type[Any] | None) -> WorkflowHandle[Any]: ...
    def get_handle(self, id: str, run_id: str | None = None, *, workflow: Any = None) -> WorkflowHandle[Any]:  # noqa: A002 - the field's name
        """The handle of a run: exactly that of `run_id`, else the open or latest one of the workflow id. `workflow` says what type it is."""
        definition = None if workflow is None else workflow_named(workflow)[1]
        return WorkflowHandle(self._connection, id, run_id, definition=definition, pinned=run_id is not None)

    def list_workflows(
        self,
        filter: RunFilter | str | None = None,  # noqa: A002 - what people call it
        *,
        limit: int | None = None,
        **fields: Any,  # noqa: ANN401 - checked by `run_filter`
    ) -> Iterator[RunDescription]:
        """The runs that a filter admits, newest first, page by page; at most `limit`. `fields` are those of `RunFilter`.

        A filter may be text: `status=failed type=Order stuck id^=order-` (see `orchestrator.filters`). Raises InvalidFilter at once.
        """
        wanted = run_filter(filter, **fields)
        if limit is not None:
            if limit < 1:
                raise InvalidArgument(f"limit must be at least 1, not {limit}")
            wanted = replace(wanted, limit=min(wanted.limit, limit))
        return self._listed(wanted, limit)

    def count_workflows(self, /, filter: RunFilter | str | None = None, **fields: Any) -> int:  # noqa: A002, ANN401 - as `list_workflows`
        """How many runs a filter admits."""
        wanted = run_filter(filter, **fields)
        return self._connection.read(lambda tx: listing.count_runs(tx, wanted))

    def page_workflows(self, /, filter: RunFilter | str | None = None, **fields: Any) -> RunPage:  # noqa: A002, ANN401 - as `list_workflows`
        """One page of the list, with the `next_page` to give as `page_after` for the one behind it."""
        wanted = run_filter(filter, **fields)
        return self._connection.read(lambda tx: listing.list_runs(tx, wanted))

    # --- how it is done --------------------------------------------------------------------------------------------------------

    def _prepared(self, request: StartRequest) -> tuple[NewRun, WorkflowDefinition | None]:
        connection = self._connection
        return new_run(request, settings=self.settings, converter=connection.converter, clock=connection.clock)

    def _write_starts(self, prepared: Sequence[tuple[NewRun, WorkflowDefinition | None]]) -> list[StartOutcome]:
        new = [run for run, _ in prepared]

        with self._connection.hinting(len(new)) as hint:

            def act(tx: Transaction) -> tuple[list[StartOutcome], set[str], Woken]:
                outcomes, queues = self._start(tx, prepared)
                return outcomes, queues, hints.wake(tx, tx.dialect, queues if hint else ())

            def quickly(tx: Transaction) -> tuple[list[StartOutcome], set[str], Woken]:
                outcomes, woken = runs.start_plain(tx, new, hint=hint)
                return outcomes, {run.started.queue for run in new}, woken

            quick = quickly if runs.is_plain(new) else None
            outcomes, queues, woken = self._connection.write(act, purpose="client.start", quick=quick)
        self._connection.ring(queues, told=hints.told(woken))
        return outcomes

    @staticmethod
    def _start(tx: Transaction, prepared: Sequence[tuple[NewRun, WorkflowDefinition | None]]) -> tuple[list[StartOutcome], set[str]]:
        new = [run for run, _ in prepared]
        outcomes = runs.start(tx, new)
        queues = set()
        for run, outcome in zip(new, outcomes, strict=True):
            if outcome.used_existing:
                found = runs.resolve(tx, run.started.workflow_id, outcome.run_id) if run.signal is not None else None
                queues |= {found[2]} if found else set()
            elif not outcome.created:
                raise _refused(run, outcome)
            elif not run.start_delay_s:
                queues.add(run.started.queue)
        return outcomes, queues

    def _handles(
        self, prepared: Sequence[tuple[NewRun, WorkflowDefinition | None]], outcomes: Sequence[StartOutcome], *, fresh: bool
    ) -> list[WorkflowHandle[Any]]:
        return [
            WorkflowHandle(
                self._connection, run.started.workflow_id, outcome.run_id, definition=definition, created=outcome.created, fresh=fresh
            )
            for (run, definition), outcome in zip(prepared, outcomes, strict=True)
        ]

    def _listed(self, wanted: RunFilter, limit: int | None) -> Iterator[RunDescription]:
        listed = 0
        while True:
            page = self.page_workflows(wanted)
            for run in page.runs:
                yield run
                listed += 1
                if listed == limit:
                    return
            if page.next_page is None:
                return
            wanted = replace(wanted, page_after=page.next_page)


def _refused(run: NewRun, outcome: StartOutcome) -> WorkflowAlreadyStarted:
    workflow_id = run.started.workflow_id
    if outcome.status is Status.RUNNING:
        message = f"workflow {workflow_id!r} is running already (run {outcome.run_id}); use its handle, another id, or id_conflict_policy"
    else:
        words = str(outcome.status).replace("_", " ")
        message = f"workflow {workflow_id!r} ran before and is {words} (run {outcome.run_id}); {run.reuse} does not allow another run"
    return WorkflowAlreadyStarted(message, workflow_id=workflow_id, run_id=outcome.run_id)
