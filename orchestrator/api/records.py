"""Dead letters and the audit over HTTP; law: what was set aside goes only when somebody who may says so, and the audit never does."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, status

from orchestrator import dispatch
from orchestrator.api.bodies import AuditPage, AuditView, DeadLetterPage, DeadLetterView, Dropped, Instant, Name, ReplayedView, page_of
from orchestrator.api.guard import router as guarded
from orchestrator.api.services import Here
from orchestrator.errors import FleetError
from orchestrator.store import audit, control, deadletters
from schemas.access import AuditFilter
from schemas.codes import ErrorCode

PAGE = 100

router = guarded(tags=["records"])

Word = Annotated[str, Query(max_length=audit.WORD_CHARACTERS_MAX)]


@router.get("/api/v1/dead-letters")
def dead_letters(
    here: Here,
    *,
    limit: Annotated[int, Query(ge=1, le=control.DEAD_LETTERS_PAGE_MAX)] = PAGE,
    after: Annotated[Name | None, Query(description="the `next_page` of the page before")] = None,
) -> DeadLetterPage:
    """What was set aside because it could not be processed, newest first."""
    with here.store.transaction(readonly=True) as tx:
        letters = control.dead_letters(tx, limit=limit, after_id=after)
    return DeadLetterPage(dead_letters=[DeadLetterView.of(letter) for letter in letters], next_page=page_of(letters, limit, "id"))


@router.post("/api/v1/dead-letters/{letter_id}/replay", status_code=status.HTTP_202_ACCEPTED)
def replay(letter_id: Name, here: Here) -> ReplayedView:
    """Send a dead letter back to where it came from: an activity gets a fresh attempt in its run, a message goes to its queue.

    409: its run is closed, or has taken its failure and gone on; the letter stays.
    """
    with here.store.transaction(readonly=True) as tx:
        known = deadletters.get(tx, letter_id)
    replayed = dispatch.replay_letter(here.store, here.forwarder(), letter_id)
    if replayed.done:
        return ReplayedView(id=letter_id, told=replayed.told)
    if known is None:
        raise FleetError(f"dead letter {letter_id!r}: {replayed.told}", code=ErrorCode.NOT_FOUND)
    raise FleetError(f"dead letter {letter_id!r} stays: {replayed.told}", code=ErrorCode.INVALID_TRANSITION)


@router.delete("/api/v1/dead-letters/{letter_id}")
def drop(letter_id: Name, here: Here) -> Dropped:
    """Drop a dead letter for good."""
    with here.store.transaction(purpose="deadletters.drop") as tx:
        if not control.remove_dead_letter(tx, letter_id):
            raise FleetError(f"there is no dead letter {letter_id!r}", code=ErrorCode.NOT_FOUND)
    return Dropped(id=letter_id)


@router.get("/api/v1/audit")
def audit_log(
    here: Here,
    *,
    actor: Word = "",
    action: Word = "",
    target: Word = "",
    outcome: Word = "",
    since: Annotated[Instant | None, Query(description="RFC 3339")] = None,
    until: Annotated[Instant | None, Query(description="RFC 3339")] = None,
    limit: Annotated[int, Query(ge=1, le=audit.PAGE_MAX)] = PAGE,
    before: Annotated[int | None, Query(ge=1, lt=2**63, description="the `next_page` of the page before")] = None,
) -> AuditPage:
    """Who did what, and whether it was allowed, newest first."""
    wanted = AuditFilter(
        actor=actor,
        action=action,
        target=target,
        outcome=outcome,
        since=None if since is None else since.timestamp(),
        until=None if until is None else until.timestamp(),
        limit=limit,
        before=before,
    )
    with here.store.transaction(readonly=True) as tx:
        entries = audit.entries(tx, wanted)
    last = page_of(entries, limit, "id")
    return AuditPage(entries=[AuditView.model_validate(entry) for entry in entries], next_page=None if last is None else int(last))
