"""Durable workflows over HTTP; law: one call of the client each, and its error is the answer."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated, Any

import orjson
from fastapi import Header, Query, Request, Response, status

from orchestrator.api.bodies import (
    Accepted,
    ActivityView,
    Answer,
    Arguments,
    History,
    Name,
    Reason,
    TurnView,
    Wait,
    WorkflowDetails,
    WorkflowPage,
    WorkflowResult,
    WorkflowStart,
    WorkflowStarted,
    WorkflowView,
    failure,
    page_of,
)
from orchestrator.api.guard import router as guarded
from orchestrator.api.services import Here
from orchestrator.errors import ResultTimeout, WorkflowFailure, WorkflowNotFound
from orchestrator.filters import LIMIT_MAX
from orchestrator.store import runs
from schemas.runs import IdConflictPolicy, IdReusePolicy, Status

PREFIX = "/api/v1/workflows"
PAGE = 100
TURNS_PAGE_MAX = 100
QUERY_WAIT_S = 10.0

router = guarded(tags=["workflows"])

RunId = Annotated[Name | None, Query(description="exactly this run, instead of the open or latest one")]


@router.post(
    PREFIX, status_code=status.HTTP_201_CREATED, responses={200: {"model": WorkflowStarted, "description": "It was there already"}}
)
def start(wanted: WorkflowStart, here: Here, request: Request, response: Response) -> WorkflowStarted:
    """Start a workflow; when this answers it is stored, and a broker that is away only delays it."""
    if wanted.id is not None:
        request.state.target = f"workflow:{wanted.id}"
    handle = here.client.start_workflow(
        wanted.type,
        args=wanted.args,
        id=wanted.id,
        queue=wanted.queue,
        run_timeout=wanted.run_timeout_s,
        execution_timeout=wanted.execution_timeout_s,
        start_delay=wanted.start_delay_s,
        priority=wanted.priority,
        memo=wanted.memo,
        search_attributes=wanted.search_attributes,
        id_reuse_policy=IdReusePolicy(wanted.id_reuse_policy),
        id_conflict_policy=IdConflictPolicy(wanted.id_conflict_policy),
    )
    request.state.target = f"workflow:{handle.id}"
    response.headers["Location"] = f"{PREFIX}/{handle.id}"
    if not handle.created:
        response.status_code = status.HTTP_200_OK
    return WorkflowStarted(workflow_id=handle.id, run_id=handle.run_id or "", created=handle.created)


@router.get(PREFIX)
def list_(
    here: Here,
    *,
    filter: Annotated[str, Query(max_length=2000, description="status=failed type=Order queue=q id^=order- stuck")] = "",  # noqa: A002 - what people call it
    limit: Annotated[int, Query(ge=1, le=LIMIT_MAX)] = PAGE,
    page_after: Annotated[str | None, Query(max_length=300, description="the `next_page` of the page before")] = None,
) -> WorkflowPage:
    """List runs, newest first."""
    page = here.client.page_workflows(filter, limit=limit, page_after=page_after)
    return WorkflowPage(workflows=[WorkflowView.of(run) for run in page.runs], next_page=page.next_page)


@router.get(f"{PREFIX}/{{workflow_id}}")
def show(workflow_id: Name, here: Here, *, run_id: RunId = None) -> WorkflowDetails:
    """All that is known about a run, and what it waits for."""
    handle = here.client.get_handle(workflow_id, run_id)
    details = WorkflowDetails.of(handle.describe())
    return details.model_copy(update={"pending_activities": [ActivityView.of(one) for one in handle.pending_activities()]})


@router.get(f"{PREFIX}/{{workflow_id}}/history")
def history(
    workflow_id: Name,
    here: Here,
    *,
    run_id: RunId = None,
    after_turn: Annotated[int, Query(ge=0, lt=2**31, description="the `next_turn` of the page before")] = 0,
    limit: Annotated[int, Query(ge=1, le=TURNS_PAGE_MAX)] = TURNS_PAGE_MAX,
) -> History:
    """The turns of a run, oldest first: what arrived, and what the code asked for."""
    with here.store.transaction(readonly=True) as tx:
        found = runs.resolve(tx, workflow_id, run_id)
        if found is None:
            raise WorkflowNotFound(f"there is no workflow {workflow_id!r}")
        turns = runs.history(tx, found[0], after_turn=after_turn, limit=limit)
    views = [TurnView.of(turn) for turn in turns]
    return History(workflow_id=workflow_id, run_id=found[0], turns=views, next_turn=page_of(turns, limit, "turn"))


@router.get(f"{PREFIX}/{{workflow_id}}/result", responses={202: {"model": WorkflowResult, "description": "It goes on; ask again"}})
def result(workflow_id: Name, here: Here, response: Response, *, run_id: RunId = None, wait: Wait = 0.0) -> WorkflowResult:
    """How a run ended: its result, or its failure. The status of this answer is about the question, `status` in it about the run."""
    handle = here.client.get_handle(workflow_id, run_id)
    with here.patience(wait) as seconds, suppress(ResultTimeout, WorkflowFailure):
        handle.result(timeout=seconds)
    run = handle.describe()
    if run.status is Status.RUNNING:
        response.status_code = status.HTTP_202_ACCEPTED
    return WorkflowResult(
        workflow_id=run.workflow_id, run_id=run.run_id, status=str(run.status), result=run.result, failure=failure(run.failure)
    )


@router.get(f"{PREFIX}/{{workflow_id}}/query/{{name}}")
def query(
    workflow_id: Name,
    name: Name,
    here: Here,
    *,
    run_id: RunId = None,
    arg: Annotated[list[str], Query(max_length=100, description="one argument as JSON, or plain text; repeat it for more")] = [],  # noqa: B006 - FastAPI copies it
    wait: Wait | None = None,
) -> Answer:
    """Ask a run a question through a worker; it changes nothing."""
    handle = here.client.get_handle(workflow_id, run_id)
    with here.patience(min(QUERY_WAIT_S, here.settings.execute_wait_s) if wait is None else wait) as seconds:
        return Answer(result=handle.query(name, args=[_value(text) for text in arg], timeout=seconds))


@router.post(f"{PREFIX}/{{workflow_id}}/signal/{{name}}", status_code=status.HTTP_202_ACCEPTED)
def signal(
    workflow_id: Name,
    name: Name,
    here: Here,
    given: Arguments = Arguments(),
    *,
    run_id: RunId = None,
    idempotency_key: Annotated[Name | None, Header(description="a second signal with the same key is dropped")] = None,
) -> Accepted:
    """Send a signal; when this answers it is stored."""
    here.client.get_handle(workflow_id, run_id).signal(name, args=given.args, request_id=idempotency_key)
    return Accepted(workflow_id=workflow_id, accepted=f"signal {name}")


@router.post(f"{PREFIX}/{{workflow_id}}/cancel", status_code=status.HTTP_202_ACCEPTED)
def cancel(workflow_id: Name, here: Here, why: Reason = Reason(), *, run_id: RunId = None) -> Accepted:
    """Ask a run to cancel itself; its code decides what that means."""
    here.client.get_handle(workflow_id, run_id).cancel(why.reason)
    return Accepted(workflow_id=workflow_id, accepted="cancel")


@router.post(f"{PREFIX}/{{workflow_id}}/terminate")
def terminate(workflow_id: Name, here: Here, why: Reason = Reason(), *, run_id: RunId = None) -> Accepted:
    """End a run at once, without asking its code."""
    here.client.get_handle(workflow_id, run_id).terminate(why.reason)
    return Accepted(workflow_id=workflow_id, accepted="terminate")


def _value(text: str) -> Any:  # noqa: ANN401 - any JSON
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
