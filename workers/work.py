"""A work as a run: one activity in the worker that hosts the agent, then the result; law: a failure is a result, and every work has one.

Attempts that the request allows are counted here; a worker that dies in the middle is none of them, the engine begins anew elsewhere.
"""

from __future__ import annotations

from orchestrator import activity, workflow
from orchestrator.errors import ActivityError, ApplicationError
from orchestrator.store import works as rows
from orchestrator.works import WORKFLOW, failed
from schemas.agents import Work
from schemas.history import RetryPolicy
from schemas.messages import ErrorCode, WorkError, WorkRequest, WorkResult
from workers.hosted import HOSTED, Superseded
from workers.steps import Presence

LOSSES_MAX = 10  # workers that die or leave while they do one attempt
OVERTIME_S = 5.0  # after its timeout an agent's host ends a work itself; if it has not by then, the engine does
PAUSE_FIRST_S = 1.0  # between attempts, doubled each time
PAUSE_MAX_S = 30.0


@activity.defn(name="orchestrator.execute_work", needs_thread=True)
def execute_work(work: Work, request: WorkRequest, attempt: int, last: bool) -> WorkResult:
    """Have the agent of this process do it."""
    hosted = HOSTED.taker(work)
    if hosted is None:
        raise ApplicationError(f"this worker hosts no agent {work.agent_id or 'of type ' + work.agent_type!r}", type="AgentLeft")
    try:
        return hosted.execute(work, request, attempt=attempt, last=last, cancelled=activity.is_cancelled)
    except Superseded as error:
        raise ApplicationError(str(error), type="AgentLeft") from None


@activity.defn(name="orchestrator.settle_work")
def settle_work(work: Work, error: WorkError) -> WorkResult:
    """Write down that a work came to nothing, unless it has a result."""
    host = Presence.current()
    assert host is not None, "an activity runs in a host"
    with host.orchestrator.store.transaction(purpose="works.finish") as tx:
        known = rows.get(tx, work.request_id) or work
        return rows.finish(tx, work.request_id, failed(known, error))


@workflow.defn(name=WORKFLOW)
class WorkRun:
    """One work."""

    @workflow.run
    async def run(self, work: Work, request: WorkRequest) -> WorkResult:
        """Try it as often as the request allows."""
        attempts_max = request.attempts_max or 1
        attempt = 1
        while True:
            result = await self._attempt(work, request, attempt, last=attempt == attempts_max)
            if result.error is None or not result.error.retryable or attempt == attempts_max:
                return result
            await workflow.sleep(min(PAUSE_FIRST_S * 2 ** (attempt - 1), PAUSE_MAX_S))
            attempt += 1

    async def _attempt(self, work: Work, request: WorkRequest, attempt: int, *, last: bool) -> WorkResult:
        limit_s = None if request.timeout_s is None else request.timeout_s + OVERTIME_S
        losses = RetryPolicy(maximum_attempts=LOSSES_MAX)
        try:
            return await workflow.execute_activity(
                execute_work, args=[work, request, attempt, last], start_to_close_timeout=limit_s, retry_policy=losses
            )
        except ActivityError as error:
            if workflow.cancellation_reason() is not None:
                raise
            return await workflow.execute_activity(settle_work, args=[work, _explained(error)])


def _explained(error: ActivityError) -> WorkError:
    cause = error.cause
    if isinstance(cause, ApplicationError):
        details = cause.details[0] if len(cause.details) == 1 else list(cause.details) or None
        return WorkError(code=ErrorCode.EXECUTION_FAILED, message=f"{cause.type}: {cause}", details=details)
    return WorkError(code=ErrorCode.EXECUTION_FAILED, message=str(cause or error))
