"""Who may do what with the management API; law: what is not in the table `MAY` is refused."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """What a caller may do."""

    AGENT = "agent"  # report about itself: register, heartbeat, unregister
    VIEWER = "viewer"  # look
    OPERATOR = "operator"  # and control what is there
    ADMIN = "admin"  # and change what there is


MAY: dict[Role, frozenset[Role]] = {
    Role.AGENT: frozenset({Role.AGENT, Role.OPERATOR, Role.ADMIN}),
    Role.VIEWER: frozenset({Role.VIEWER, Role.OPERATOR, Role.ADMIN}),
    Role.OPERATOR: frozenset({Role.OPERATOR, Role.ADMIN}),
    Role.ADMIN: frozenset({Role.ADMIN}),
}
"""What a call needs -> the roles that may make it."""


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A key to the API, without the key."""

    id: str
    name: str
    role: Role
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None
    valid: bool = True  # by the database's clock, when it was read


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credentials were good."""

    actor: str
    role: Role
    token_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which entries of the audit to list, newest first; empty means all. `before` is the id of the last entry of the page before."""

    actor: str = ""
    action: str = ""
    target: str = ""
    outcome: str = ""
    since: float | None = None
    until: float | None = None
    limit: int = 100
    before: int | None = None
