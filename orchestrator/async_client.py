"""The client for asyncio: the same methods with await; law: nothing is written twice, and who waits for a result occupies no thread.

What speaks to the database is the method of `Client` in one of THREADS_MAX threads. Results and answers are fed by the one waiter.
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Concatenate, Final, Generic, ParamSpec, Self, TypeVar, cast

from orchestrator.client import Client, StartRequest
from orchestrator.handle import QUERY_TIMEOUT_S, WorkflowHandle
from orchestrator.starting import UNSET
from orchestrator.waiting import drive_async
from orchestrator.workflow import Duration, seconds_of
from schemas.runs import RunDescription, RunFilter

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

THREADS_MAX = 4

_END: Final = object()


class _Threads:
    """The threads that speak to the database; fresh ones in a child of fork."""

    def __init__(self) -> None:
        self._pid = 0
        self._pool: ThreadPoolExecutor | None = None

    async def run(self, call: Callable[[], T]) -> T:
        """The value of `call`, without holding up the loop."""
        if self._pool is None or self._pid != os.getpid():
            self._pool, self._pid = ThreadPoolExecutor(THREADS_MAX, thread_name_prefix="orchestrator-client"), os.getpid()
        return await asyncio.get_running_loop().run_in_executor(self._pool, call)

    def close(self) -> None:
        """End the threads when they have done what they do."""
        if self._pool is not None and self._pid == os.getpid():
            self._pool.shutdown(wait=False)
        self._pool = None


def _awaited(method: Callable[Concatenate[Client, P], T]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]:
    """A method of `Client`, in a thread."""

    @functools.wraps(method)
    async def call(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(functools.partial(method, self.sync, *args, **kwargs), kwargs)

    return call


def _starting(
    method: Callable[Concatenate[Client, P], WorkflowHandle[R]],
) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, AsyncWorkflowHandle[R]]]:
    """A method of `Client` that gives a handle."""

    @functools.wraps(method)
    async def call(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncWorkflowHandle[R]:
        return AsyncWorkflowHandle(await self._run(functools.partial(method, self.sync, *args, **kwargs), kwargs), self._threads)

    return call


def _executing(method: Callable[Concatenate[Client, P], R]) -> Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]:
    """`execute_workflow`, whose waiting must not be done in a thread; takes the types of `method`."""

    @functools.wraps(method)
    async def call(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> R:
        start = cast("Callable[..., WorkflowHandle[R]]", self.sync.start_workflow)
        handle = await self._run(functools.partial(start, *args, **kwargs), kwargs)
        return await AsyncWorkflowHandle(handle, self._threads).result()

    return call


def _finding(
    method: Callable[Concatenate[Client, P], WorkflowHandle[R]],
) -> Callable[Concatenate[AsyncClient, P], AsyncWorkflowHandle[R]]:
    """`get_handle`, which speaks to nobody and so needs no await."""

    @functools.wraps(method)
    def call(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AsyncWorkflowHandle[R]:
        return AsyncWorkflowHandle(method(self.sync, *args, **kwargs), self._threads)

    return call


def _sent(
    method: Callable[Concatenate[WorkflowHandle[Any], P], T],
) -> Callable[Concatenate[AsyncWorkflowHandle[Any], P], Coroutine[Any, Any, T]]:
    """A method of `WorkflowHandle`, in a thread."""

    @functools.wraps(method)
    async def call(self: AsyncWorkflowHandle[Any], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._threads.run(functools.partial(method, self.sync, *args, **kwargs))

    return call


class AsyncWorkflowHandle(Generic[R]):
    """As `WorkflowHandle`, with await; `sync` is the handle behind it."""

    def __init__(self, handle: WorkflowHandle[R], threads: _Threads) -> None:
        self.sync = handle
        self._threads = threads

    def __repr__(self) -> str:
        return repr(self.sync)

    @property
    def id(self) -> str:
        """The workflow id."""
        return self.sync.id

    @property
    def run_id(self) -> str | None:
        """The run id; None when the handle means whatever run the id has."""
        return self.sync.run_id

    signal = _sent(WorkflowHandle.signal)
    cancel = _sent(WorkflowHandle.cancel)
    terminate = _sent(WorkflowHandle.terminate)
    describe = _sent(WorkflowHandle.describe)
    history = _sent(WorkflowHandle.history)
    pending_activities = _sent(WorkflowHandle.pending_activities)

    async def result(self, timeout: Duration | None = None, *, follow_runs: bool = True) -> R:  # noqa: ASYNC109 - the field's name
        """As `WorkflowHandle.result`."""
        timeout_s = None if timeout is None else seconds_of(timeout, "timeout")
        late = functools.partial(self.sync.late, timeout_s)
        return await drive_async(
            self.sync.result_steps(follow_runs=follow_runs), timeout_s=timeout_s, late=late, in_thread=self._threads.run
        )

    async def query(
        self,
        query: str | Callable[..., Any],
        arg: Any = UNSET,  # noqa: ANN401 - any value that a payload can carry
        *,
        args: Sequence[Any] = UNSET,
        timeout: Duration = QUERY_TIMEOUT_S,  # noqa: ASYNC109 - the field's name
    ) -> Any:  # noqa: ANN401 - what the query's method returns
        """As `WorkflowHandle.query`."""
        timeout_s = seconds_of(timeout, "timeout")
        late = functools.partial(self.sync.unanswered, query, timeout_s)
        return await drive_async(self.sync.query_steps(query, arg, args), timeout_s=timeout_s, late=late, in_thread=self._threads.run)


class AsyncClient:
    """As `Client`, with await; `sync` is the client behind it. A start with `session` runs in the loop's thread, where the session lives."""

    def __init__(self, database: str | None = None, broker: str | None = None, **options: Any) -> None:  # noqa: ANN401 - those of `Client`
        self.sync = Client(database, broker, **options)
        self._threads = _Threads()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    start_workflow = _starting(Client.start_workflow)
    execute_workflow = _executing(Client.execute_workflow)
    get_handle = _finding(Client.get_handle)
    count_workflows = _awaited(Client.count_workflows)
    page_workflows = _awaited(Client.page_workflows)

    async def start_workflows(self, requests: Iterable[StartRequest]) -> list[AsyncWorkflowHandle[Any]]:
        """As `Client.start_workflows`."""
        handles = await self._threads.run(functools.partial(self.sync.start_workflows, requests))
        return [AsyncWorkflowHandle(handle, self._threads) for handle in handles]

    async def list_workflows(
        self,
        filter: RunFilter | str | None = None,  # noqa: A002 - what people call it
        *,
        limit: int | None = None,
        **fields: Any,  # noqa: ANN401 - those of `RunFilter`
    ) -> AsyncIterator[RunDescription]:
        """As `Client.list_workflows`."""
        listed = self.sync.list_workflows(filter, limit=limit, **fields)
        while (run := await self._threads.run(lambda: next(listed, _END))) is not _END:
            yield cast("RunDescription", run)

    async def close(self) -> None:
        """As `Client.close`."""
        await self._threads.run(self.sync.close)
        self._threads.close()

    async def _run(self, call: Callable[[], T], options: dict[str, Any]) -> T:
        if options.get("session") is not None:
            return call()  # the caller's session belongs to this thread, and its transaction is open already
        return await self._threads.run(call)
