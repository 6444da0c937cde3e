"""What a run waits for elsewhere: activities, child workflows, messages to other runs; law: each ends once, by an arrival or a cancellation.

Cancellation has two phases. A cancelled wait asks the other side to cancel and goes on waiting; the wait ends when the end is known: at once
where the author does not want to wait for it, otherwise with the true outcome.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from orchestrator.core.failures import to_exception
from orchestrator.core.loop import WorkflowLoop
from orchestrator.core.payloads import PayloadConverter
from orchestrator.errors import ActivityError, CancelledError, ChildWorkflowError, FailureError
from schemas.history import (
    ActivityCanceled,
    ActivityCancelRequested,
    ActivityCompleted,
    ActivityFailed,
    ActivityScheduled,
    ChildCancelRequested,
    ChildCompleted,
    ChildFailed,
    ChildScheduled,
    ChildStarted,
    ChildStartFailed,
    Command,
    Failure,
    MessageDelivered,
    MessageFailed,
    Scheduled,
)

CancellationType = Literal["try_cancel", "wait_cancellation_completed", "abandon"]
ChildCancellationType = Literal["try_cancel", "wait_cancellation_requested", "wait_cancellation_completed", "abandon"]
"""As `CancellationType`. A request reaches the child with the very turn that makes it, so waiting for that is no wait at all."""

Asked = ActivityScheduled | ChildScheduled


@dataclass(slots=True)
class Operation:
    """Something the run waits for. `outcome` is set once, by the arrival or by a cancellation."""

    command: Scheduled
    returns: Any = None
    cancellation: ChildCancellationType = "abandon"
    start: Operation | None = None  # of a child whose start the code waits for
    outcome: tuple[bool, Any] | None = None  # (succeeded, payload or exception)
    waiter: asyncio.Future[None] | None = None
    awaited: bool = False
    cancel_sent: bool = False

    def resolve(self, *, succeeded: bool, value: Any) -> None:  # noqa: ANN401 - a payload or an exception
        """Set the outcome, unless there is one."""
        if self.outcome is None:
            self.outcome = (succeeded, value)
            if self.waiter is not None and not self.waiter.done():
                self.waiter.set_result(None)

    def value(self) -> Any:  # noqa: ANN401 - a payload
        """What it came to; raises what it failed with."""
        assert self.outcome is not None, "asked only when it is over"
        succeeded, value = self.outcome
        if succeeded:
            return value
        raise value


class Owner(Protocol):
    """What operations ask of the run they belong to."""

    loop: WorkflowLoop
    converter: PayloadConverter
    commands: dict[tuple[str, int | str], Command]
    cancel_reason: str | None


class Operations:
    """All that one run waits for elsewhere, by number."""

    def __init__(self, owner: Owner) -> None:
        self.pending: dict[int, Operation] = {}
        self.has_children = False  # some child was started, whatever became of it
        self._owner = owner

    # --- asking ----------------------------------------------------------------------------------------------------------

    def ask(self, operation: Operation) -> Operation:
        """Ask for it; its command's number came from `Instance.take_seq`."""
        command = operation.command
        self.pending[command.seq] = operation
        self._owner.commands["asked", command.seq] = command
        self.has_children = self.has_children or isinstance(command, ChildScheduled)
        return operation

    def is_pending(self, activity_id: str) -> bool:
        """Whether the run waits for an activity of that id."""
        return any(isinstance(one.command, ActivityScheduled) and one.command.activity_id == activity_id for one in self.pending.values())

    async def outcome(self, operation: Operation) -> Any:  # noqa: ANN401 - whatever it returns
        """Wait for an activity or a child. Cancelling the wait asks it to cancel; the wait ends when its end is known."""
        operation.awaited = True
        while operation.outcome is None:
            operation.waiter = self._owner.loop.create_future()
            try:
                await operation.waiter
            except asyncio.CancelledError as error:
                if operation.outcome is not None:  # ended in this very moment: the cancellation is for the code around it
                    raise
                self.cancel(operation, _reason(error))
                _uncancel()
        command = operation.command
        assert isinstance(command, Asked), "messages are waited for by `sent`"
        what = "activity" if isinstance(command, ActivityScheduled) else "child workflow"
        return self._owner.converter.decode(operation.value(), operation.returns, what=f"the result of {what} {command.type!r}")

    async def started(self, child: Operation) -> str:
        """Wait until a child exists; its run id. Cancelling this wait asks the child to cancel, and ends: nobody will have its handle."""
        start = child.start
        assert start is not None, "the start was asked to be announced"
        while start.outcome is None:
            start.waiter = self._owner.loop.create_future()
            try:
                await start.waiter
            except asyncio.CancelledError as error:
                if start.outcome is not None:
                    raise
                self.cancel(child, _reason(error))
                _uncancel()
                start.resolve(succeeded=False, value=self._canceled(child.command))
        return str(start.value())

    async def sent(self, message: Operation) -> None:
        """Wait until a message is in the inbox of its recipient. Cancelling this wait takes it back if no turn has committed it."""
        while message.outcome is None:
            message.waiter = self._owner.loop.create_future()
            try:
                await message.waiter
            except asyncio.CancelledError:
                if message.outcome is None:
                    self._owner.commands.pop(("asked", message.command.seq), None)
                    self._resolve(message.command.seq, succeeded=False, value=CancelledError("nobody waits for it"))
                raise
        message.value()

    def cancel(self, operation: Operation, reason: str = "") -> None:
        """First phase of a cancellation: tell the other side, and move on at once unless the author wants to wait for its end."""
        if operation.outcome is not None or operation.cancel_sent:
            return
        operation.cancel_sent = True
        command = operation.command
        if self._owner.commands.pop(("asked", command.seq), None) is not None:  # never left this turn: nobody has heard of it
            self._resolve(command.seq, succeeded=False, value=self._canceled(command))
            return
        wait = operation.cancellation == "wait_cancellation_completed"
        if operation.cancellation != "abandon":
            if isinstance(command, ChildScheduled):
                reason = reason or self._owner.cancel_reason or ""
                self._owner.commands["cancel", command.seq] = ChildCancelRequested(command.seq, reason, wait)
            else:
                self._owner.commands["cancel", command.seq] = ActivityCancelRequested(command.seq, wait)
        if not wait:
            self._resolve(command.seq, succeeded=False, value=self._canceled(command))

    # --- arrivals --------------------------------------------------------------------------------------------------------

    def completed(self, arrival: ActivityCompleted | ChildCompleted) -> None:
        """It has a result."""
        self._resolve(arrival.seq, succeeded=True, value=arrival.result)

    def activity_failed(self, arrival: ActivityFailed) -> None:
        """An activity failed for good."""
        self._fail(arrival.seq, arrival.failure, arrival.retry_state)

    def activity_canceled(self, arrival: ActivityCanceled) -> None:
        """An activity has stopped as it was told."""
        self._fail(arrival.seq, Failure("canceled", "the activity was cancelled", details=arrival.details), "cancel_requested")

    def child_failed(self, arrival: ChildFailed) -> None:
        """A child closed without a result."""
        self._fail(arrival.seq, arrival.failure, run_id=arrival.run_id)

    def child_started(self, arrival: ChildStarted) -> None:
        """A child exists."""
        child = self.pending.get(arrival.seq)
        if child is not None and child.start is not None:
            child.start.resolve(succeeded=True, value=arrival.run_id)

    def child_start_failed(self, arrival: ChildStartFailed) -> None:
        """A child cannot be."""
        child = self.pending.get(arrival.seq)
        error = to_exception(arrival.failure, self._owner.converter)
        if child is not None and child.start is not None:
            child.start.resolve(succeeded=False, value=error)
        self._resolve(arrival.seq, succeeded=False, value=error)

    def message_delivered(self, arrival: MessageDelivered) -> None:
        """A message is in the inbox of its recipient."""
        self._resolve(arrival.seq, succeeded=True, value=None)

    def message_failed(self, arrival: MessageFailed) -> None:
        """A message has no recipient."""
        self._resolve(arrival.seq, succeeded=False, value=to_exception(arrival.failure, self._owner.converter))

    # --- how it is done --------------------------------------------------------------------------------------------------

    def _resolve(self, seq: int, *, succeeded: bool, value: Any) -> None:  # noqa: ANN401 - a payload or an exception
        operation = self.pending.pop(seq, None)
        if operation is not None:
            operation.resolve(succeeded=succeeded, value=value)

    def _fail(self, seq: int, failure: Failure, retry_state: str = "", run_id: str = "") -> None:
        operation = self.pending.get(seq)
        if operation is not None:
            error = _error(operation.command, to_exception(failure, self._owner.converter), retry_state, run_id)
            self._resolve(seq, succeeded=False, value=error)

    @staticmethod
    def _canceled(command: Scheduled) -> FailureError:
        what = "activity" if isinstance(command, ActivityScheduled) else "child workflow"
        return _error(command, CancelledError(f"the {what} was cancelled"), "cancel_requested")


def _error(command: Scheduled, cause: FailureError, retry_state: str = "", run_id: str = "") -> FailureError:
    if isinstance(command, ActivityScheduled):
        return ActivityError(
            f"activity {command.type!r} ({command.activity_id}) did not complete: {cause}",
            activity_type=command.type,
            activity_id=command.activity_id,
            retry_state=retry_state,
            cause=cause,
        )
    assert isinstance(command, ChildScheduled), "messages have their own failures"
    return ChildWorkflowError(
        f"child workflow {command.type!r} ({command.workflow_id}) did not complete: {cause}",
        workflow_type=command.type,
        workflow_id=command.workflow_id,
        run_id=run_id,
        cause=cause,
    )


def _reason(error: asyncio.CancelledError) -> str:
    """What was given to `cancel()`."""
    return error.args[0] if error.args and isinstance(error.args[0], str) else ""


def _uncancel() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


APPLY: dict[type, Callable[[Operations, Any], None]] = {
    ActivityCompleted: Operations.completed,
    ActivityFailed: Operations.activity_failed,
    ActivityCanceled: Operations.activity_canceled,
    ChildStarted: Operations.child_started,
    ChildStartFailed: Operations.child_start_failed,
    ChildCompleted: Operations.completed,
    ChildFailed: Operations.child_failed,
    MessageDelivered: Operations.message_delivered,
    MessageFailed: Operations.message_failed,
}
