"""Who may call what, and which calls are acts; law: one row a route, and a route without a row does not start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from schemas.access import Role


@dataclass(frozen=True, slots=True)
class Rule:
    """What a call needs, and how the audit names it. Without `role` nobody is asked; without `act` it is no act and is not audited."""

    role: Role | None = None
    act: str = ""
    target: str = ""  # parameters of the path in braces


OPEN = Rule()
LOOK = Rule(Role.VIEWER)


def _workflow(name: str) -> Rule:
    return Rule(Role.OPERATOR, f"workflow.{name}", "workflow:{workflow_id}")


RULES: Mapping[tuple[str, str], Rule] = {
    ("GET", "/health"): OPEN,
    ("GET", "/metrics"): LOOK,
    ("POST", "/api/v1/auth/token"): Rule(Role.VIEWER, "token.issue", "api"),
    ("GET", "/api/v1/config"): Rule(Role.ADMIN),
    ("GET", "/api/v1/logs"): LOOK,
    ("GET", "/api/v1/audit"): Rule(Role.ADMIN),
    ("GET", "/api/v1/dead-letters"): LOOK,
    ("DELETE", "/api/v1/dead-letters/{letter_id}"): Rule(Role.ADMIN, "deadletter.drop", "deadletter:{letter_id}"),
    ("GET", "/api/v1/workflows"): LOOK,
    ("POST", "/api/v1/workflows"): Rule(Role.OPERATOR, "workflow.start", "workflow:"),
    ("GET", "/api/v1/workflows/{workflow_id}"): LOOK,
    ("GET", "/api/v1/workflows/{workflow_id}/history"): LOOK,
    ("GET", "/api/v1/workflows/{workflow_id}/result"): LOOK,
    ("GET", "/api/v1/workflows/{workflow_id}/query/{name}"): LOOK,
    ("POST", "/api/v1/workflows/{workflow_id}/signal/{name}"): _workflow("signal"),
    ("POST", "/api/v1/workflows/{workflow_id}/cancel"): _workflow("cancel"),
    ("POST", "/api/v1/workflows/{workflow_id}/terminate"): _workflow("terminate"),
}
