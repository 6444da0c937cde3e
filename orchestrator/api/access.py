"""Short-lived keys for people's browsers; law: a web token is made from another kind of key, never from a web token."""

from __future__ import annotations

from fastapi import Request

from orchestrator.api.admission import ANYBODY
from orchestrator.api.bodies import WebToken
from orchestrator.api.guard import router as guarded
from orchestrator.api.services import Caller, Here
from orchestrator.errors import FleetError
from schemas.codes import ErrorCode

router = guarded(tags=["access"])


@router.post("/api/v1/auth/token")
def issue(here: Here, principal: Caller, request: Request) -> WebToken:
    """Change a key for a web token with the same role, good for jwt_ttl_s seconds, at most as long as the key itself."""
    if principal == ANYBODY or request.headers.get("authorization", "").count(".") == 2:
        raise FleetError("show an API token or the manager token; a web token is made from those", code=ErrorCode.UNAUTHORIZED)
    return WebToken(access_token=here.admission.issue(principal), expires_in=here.settings.jwt_ttl_s, role=str(principal.role))
