"""What an exception that leaves the workflow's code means; law: one table for the run and its signal handlers (temporal-semantics 3.7).

| raised                                                           | means                                             |
|------------------------------------------------------------------|---------------------------------------------------|
| `continue_as_new`, also inside a task group                      | the run continues                                 |
| what only mended code can cure: a non-deterministic call, ...    | the turn fails and is tried again                 |
| a cancellation, after the run was asked to cancel itself         | the run is cancelled                              |
| a failure, a timeout, a payload that does not fit                | the run fails                                     |
| anything else                                                    | as `on_exception` says: the run fails, or the turn |
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from orchestrator.core.definitions import OnException
from orchestrator.core.failures import is_cancellation, to_failure
from orchestrator.core.payloads import PayloadConverter
from orchestrator.errors import EngineStop, FailureError, InvalidArgument, OrchestratorError, PayloadError
from schemas.history import RunCanceled, RunContinued, RunFailed, Terminal


class ContinueAsNew(EngineStop):
    """Raised by `workflow.continue_as_new`; ends the run and starts the next one."""

    def __init__(self, command: RunContinued) -> None:
        super().__init__("continue as new")
        self.command = command


def judge(
    error: BaseException, *, cancel_requested: bool, on_exception: OnException, converter: PayloadConverter
) -> Terminal | BaseException:
    """How the run closes, or the exception with which the turn fails."""
    leaves = tuple(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, ContinueAsNew):
            return leaf.command
    for leaf in leaves:
        if _fails_the_turn(leaf):
            return leaf
    if cancel_requested and is_cancellation(error):
        return RunCanceled(to_failure(error, converter))
    if on_exception == "fail" or all(isinstance(leaf, _FAILS_THE_RUN) for leaf in leaves):
        return RunFailed(to_failure(error, converter))
    return error


_FAILS_THE_RUN = (FailureError, TimeoutError, PayloadError, asyncio.CancelledError)


def _fails_the_turn(error: BaseException) -> bool:
    """Whether the author must mend code, or the engine stopped the turn; a wrong argument is the author's exception like any other."""
    if isinstance(error, OrchestratorError):
        return not isinstance(error, FailureError | PayloadError | InvalidArgument)
    return isinstance(error, EngineStop)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
