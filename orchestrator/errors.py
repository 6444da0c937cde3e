"""Every error people can meet; the docstring of a class is its default message and names the remedy.

Two trees. `FailureError` and its children are *values of the language*: they travel through histories (`core.failures` turns them
into `schemas.history.Failure` and back), so a workflow catches the same class that an activity raised on another machine. All other
`OrchestratorError`s are told to the caller at hand and are never stored.

What only the engine may do is derived from `BaseException`, so that author code with `except Exception` cannot swallow it.
"""

from __future__ import annotations

from typing import Any

from schemas.codes import ErrorCode


class OrchestratorError(Exception):
    """Something went wrong that the caller can act on."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or " ".join((self.__doc__ or type(self).__name__).split()))

    @property
    def message(self) -> str:
        """The sentence for people."""
        return str(self.args[0])


# --- what a run, an activity or a child can end with ---------------------------------------------------------------------


class FailureError(OrchestratorError):
    """A failure that is recorded in history: raise a subclass to fail an activity or a run on purpose."""

    def __init__(self, message: str | None = None, *, cause: BaseException | None = None) -> None:
        super().__init__(message)
        if cause is not None:
            self.__cause__ = cause

    @property
    def cause(self) -> BaseException | None:
        """The failure that led to this one."""
        return self.__cause__


class ApplicationError(FailureError):
    """The author's code failed.

    `type` is the stable name that `RetryPolicy.non_retryable_error_types` compares, by default the name of the class; `details` are
    payload values for the catcher; `next_retry_delay_s` overrides the backoff of the retry policy once.
    """

    def __init__(
        self,
        message: str,
        *details: Any,  # noqa: ANN401 - any value that a payload can carry
        type: str | None = None,  # noqa: A002 - the field's name for it
        non_retryable: bool = False,
        next_retry_delay_s: float | None = None,
        cause: BaseException | None = None,
    ) -> None:
        super().__init__(message, cause=cause)
        self.details = details
        self.type = type or self.__class__.__name__
        self.non_retryable = non_retryable
        self.next_retry_delay_s = next_retry_delay_s


class CancelledError(FailureError):
    """The work was cancelled on request."""

    def __init__(self, message: str = "cancelled", *details: Any) -> None:  # noqa: ANN401 - any value that a payload can carry
        super().__init__(message)
        self.details = details


class TerminatedError(FailureError):
    """The run was terminated from outside; its code was not asked."""


class TimeoutError(FailureError):  # noqa: A001 - the field's name; author code imports it by module
    """A deadline passed.

    `type` says which one: `schedule_to_start`, `start_to_close`, `schedule_to_close`, `heartbeat` for activities, `run` for runs.
    """

    def __init__(self, message: str, *, type: str, last_heartbeat_details: tuple[Any, ...] = ()) -> None:  # noqa: A002 - the field's name
        super().__init__(message)
        self.type = type
        self.last_heartbeat_details = last_heartbeat_details


class WorkerLost(FailureError):
    """The worker process died while it ran this activity; see its log, and the kernel's for the out-of-memory killer."""


class ActivityError(FailureError):
    """An activity ended without a result; `.cause` says why, `retry_state` why it was not tried again."""

    def __init__(
        self,
        message: str,
        *,
        activity_type: str,
        activity_id: str,
        retry_state: str,
        cause: BaseException | None = None,
    ) -> None:
        super().__init__(message, cause=cause)
        self.activity_type = activity_type
        self.activity_id = activity_id
        self.retry_state = retry_state


class ChildWorkflowError(FailureError):
    """A child workflow ended without a result; `.cause` says why: it failed, or was cancelled, terminated or timed out."""

    def __init__(self, message: str, *, workflow_type: str, workflow_id: str, run_id: str = "", cause: BaseException | None = None) -> None:
        super().__init__(message, cause=cause)
        self.workflow_type = workflow_type
        self.workflow_id = workflow_id
        self.run_id = run_id


class MessageNotDelivered(FailureError):
    """A workflow sent a signal or cancel request to another run, and there is no such open run."""

    def __init__(self, message: str, *, workflow_id: str, run_id: str = "") -> None:
        super().__init__(message)
        self.workflow_id = workflow_id
        self.run_id = run_id


class WorkflowAlreadyStarted(FailureError):
    """A run with that id exists already and the policies of this start do not allow another one."""

    def __init__(self, message: str, *, workflow_id: str, run_id: str) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id
        self.run_id = run_id


# --- payloads ------------------------------------------------------------------------------------------------------------


class PayloadError(OrchestratorError):
    """A value cannot be carried between processes."""


class PayloadTooLarge(PayloadError):
    """The payload is larger than the limit. Store the value elsewhere and pass a reference to it."""


class PayloadNotSerializable(PayloadError):
    """The value has no JSON form. Pass a pydantic model, a dataclass or plain JSON types."""


class PayloadMismatch(PayloadError):
    """The arguments do not fit the signature of the function that is to receive them."""


# --- turns ---------------------------------------------------------------------------------------------------------------


class NonDeterministicCall(OrchestratorError):
    """Workflow code made a call whose outcome a replay cannot repeat. Use the function of `workflow` that the message names."""


class ReadOnlyContext(OrchestratorError):
    """A query tried to change the run. Queries only look; use a signal to change something."""


class Divergence(OrchestratorError):
    """The workflow code no longer matches its history. Give the changed step a new name, or pin the old version."""

    def __init__(self, *, turn: int, position: int, expected: str, found: str) -> None:
        super().__init__(
            f"the workflow code no longer matches its history: turn {turn}, command {position}: history has {expected}, the code asks for "
            f"{found}. Put the old code back, or give the changed step its own path; the run waits unharmed.",
        )
        self.turn = turn
        self.position = position
        self.expected = expected
        self.found = found


class HistoryTooNew(OrchestratorError):
    """The history was written by a newer version of the engine, whose behaviour this one does not know. Update this worker."""


class TurnTooLong(OrchestratorError):
    """The workflow code did not yield in time. Move the computation into an activity, or await something in the loop."""


class TooManyPending(OrchestratorError):
    """The run waits for more activities, child workflows and timers than the limit. Bound the fan-out, or split the work into several workflows."""


class InvalidDefinition(OrchestratorError):
    """The workflow or activity is not well defined."""


class EngineStop(BaseException):
    """Raised into author code when its instance leaves memory; not an Exception, so that no `except Exception` keeps it alive."""


# --- callers -------------------------------------------------------------------------------------------------------------


class InvalidArgument(OrchestratorError):
    """An argument of the call is not valid."""


class WorkflowNotFound(OrchestratorError):
    """No run with that id exists."""


class WorkflowNotOpen(OrchestratorError):
    """The run is closed, so nothing more can be sent to it. Start a new one."""


class WorkflowFailure(OrchestratorError):
    """The run did not complete; `.cause` is the failure that closed it."""

    def __init__(self, message: str, *, workflow_id: str, status: str, cause: BaseException | None = None) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id
        self.status = status
        if cause is not None:
            self.__cause__ = cause

    @property
    def cause(self) -> BaseException | None:
        """The failure that closed the run."""
        return self.__cause__


class WorkflowContinuedAsNew(OrchestratorError):
    """The run continued as a new one; ask for the result with `follow_runs=True` to follow the chain."""

    def __init__(self, message: str, *, new_run_id: str) -> None:
        super().__init__(message)
        self.new_run_id = new_run_id


class QueryFailed(OrchestratorError):
    """The query could not be answered."""


class ResultTimeout(OrchestratorError):
    """The run has no result yet. It goes on; ask again later or with a longer timeout."""


class InvalidFilter(OrchestratorError):
    """The filter of a list is not valid."""


# --- the fleet -----------------------------------------------------------------------------------------------------------


class FleetError(OrchestratorError):
    """The fleet refuses or failed; `code` is the same for HTTP, the bus and the command line."""

    def __init__(self, message: str | None = None, *, code: ErrorCode, details: Any = None) -> None:  # noqa: ANN401 - any JSON
        super().__init__(message)
        self.code = code
        self.details = details


class IllegalTransition(FleetError):
    """What was asked for is not possible in the agent's present state."""


class AgentNotFound(FleetError):
    """No agent has that id."""

    def __init__(self, agent_id: str) -> None:
        super().__init__(
            f"no agent is called {agent_id!r}; `orchestrator agent list` shows those there are", code=ErrorCode.AGENT_NOT_FOUND
        )


# --- the world -----------------------------------------------------------------------------------------------------------


class SettingsError(OrchestratorError):
    """A setting is not valid."""


class DatabaseUnavailable(OrchestratorError):
    """The database cannot be reached. Check that it runs and that ORCHESTRATOR_DATABASE_URL names it."""


class DatabaseNotMigrated(OrchestratorError):
    """The database schema is not at the version this code needs. Run `orchestrator db upgrade`."""


class BrokerUnavailable(OrchestratorError):
    """The broker cannot be reached. Check that it runs and that ORCHESTRATOR_BROKER_URL names it."""


class ServerUnavailable(OrchestratorError):
    """An embedded server could not be started."""
