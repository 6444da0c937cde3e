"""A run as Celery's AsyncResult shows a task; law: the words are Celery's, the facts are the store's.

greet.delay("Ada").get(timeout=10)
AsyncResult(run_id).state           # of any run, whoever started it
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from orchestrator.client import Client
from orchestrator.errors import WorkflowNotFound
from orchestrator.handle import WorkflowHandle
from orchestrator.store import runs
from orchestrator.workflow import Duration
from schemas.runs import RunDescription, Status

R = TypeVar("R")

STATES = {
    Status.RUNNING: "STARTED",
    Status.COMPLETED: "SUCCESS",
    Status.FAILED: "FAILURE",
    Status.TIMED_OUT: "FAILURE",
    Status.CANCELED: "REVOKED",
    Status.TERMINATED: "REVOKED",
    Status.CONTINUED_AS_NEW: "STARTED",
}
"""Celery's word for each status."""


class RunResult(Generic[R]):
    """What `delay` returns: one run and those it continues as."""

    def __init__(self, handle: WorkflowHandle[R]) -> None:
        self.handle = handle
        self.id = str(handle.run_id)

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        return f"<AsyncResult: {self.id} of workflow {self.handle.id}>"

    def get(self, timeout: Duration | None = None) -> R:
        """Wait for the result. Raises WorkflowFailure, and ResultTimeout after `timeout` seconds."""
        return self.handle.result(timeout)

    wait = get

    @property
    def state(self) -> str:
        """PENDING until a worker has taken it up, STARTED, SUCCESS, FAILURE or REVOKED."""
        last = self._last()
        return "PENDING" if last.status is Status.RUNNING and not last.turn else STATES[last.status]

    status = state

    def ready(self) -> bool:
        """Whether it is over."""
        return self._last().status is not Status.RUNNING

    def successful(self) -> bool:
        """Whether it has a result."""
        return self._last().status is Status.COMPLETED

    def failed(self) -> bool:
        """Whether it ended without one."""
        return self.ready() and not self.successful()

    def revoke(self, *, terminate: bool = False) -> None:
        """Ask the run to cancel itself; with `terminate`, end it at once."""
        if terminate:
            self.handle.terminate("revoked")
        else:
            self.handle.cancel("revoked")

    def _last(self) -> RunDescription:
        """The last link of the chain of runs."""
        return self.handle.describe()


def result_of(client: Client, run_id: str) -> RunResult[Any]:
    """The result of a run by its run id. Raises WorkflowNotFound."""
    connection = client._connection  # noqa: SLF001 - this is the client's own annex
    found = connection.read(lambda tx: runs.describe(tx, run_id))
    if found is None:
        raise WorkflowNotFound(f"there is no run {run_id!r}; results of plain Celery tasks are in the result backend of their application.")
    return RunResult(WorkflowHandle(connection, found.workflow_id, run_id))
