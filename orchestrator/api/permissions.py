"""Who may call what, and what the audit calls it; law: one row a route, and a route without a row does not start."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from schemas.access import Role


@dataclass(frozen=True, slots=True)
class Rule:
    """What a call needs, and how the audit names it. Without `role` nobody is asked; without `action` it only looks and is not audited."""

    role: Role | None = None
    action: str = ""
    target: str = ""  # parameters of the path in braces


OPEN = Rule()
LOOK = Rule(Role.VIEWER)


def _workflow(name: str) -> Rule:
    return Rule(Role.OPERATOR, f"workflow.{name}", "workflow:{workflow_id}")


def _agent(name: str, role: Role = Role.OPERATOR) -> Rule:
    return Rule(role, f"agent.{name}", "agent:{agent_id}")


RULES: Mapping[tuple[str, str], Rule] = {
    ("GET", "/health"): OPEN,
    ("GET", "/metrics"): LOOK,
    ("POST", "/api/v1/auth/token"): Rule(Role.VIEWER, "token.issue", "api"),
    ("GET", "/api/v1/config"): Rule(Role.ADMIN),
    ("GET", "/api/v1/logs"): LOOK,
    ("GET", "/api/v1/audit"): Rule(Role.ADMIN),
    ("GET", "/api/v1/dead-letters"): LOOK,
    ("POST", "/api/v1/dead-letters/{letter_id}/replay"): Rule(Role.OPERATOR, "deadletter.replay", "deadletter:{letter_id}"),
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
    ("GET", "/api/v1/agents"): LOOK,
    ("POST", "/api/v1/agents"): Rule(Role.ADMIN, "agent.add", "agent:"),
    ("GET", "/api/v1/agents/{agent_id}"): LOOK,
    ("PUT", "/api/v1/agents/{agent_id}"): _agent("update", Role.ADMIN),
    ("DELETE", "/api/v1/agents/{agent_id}"): _agent("delete", Role.ADMIN),
    ("POST", "/api/v1/agents/{agent_id}/start"): _agent("start"),
    ("POST", "/api/v1/agents/{agent_id}/stop"): _agent("stop"),
    ("POST", "/api/v1/agents/{agent_id}/restart"): _agent("restart"),
    ("POST", "/api/v1/agents/{agent_id}/pause"): _agent("pause"),
    ("POST", "/api/v1/agents/{agent_id}/resume"): _agent("resume"),
    ("POST", "/api/v1/agents/{agent_id}/flush"): _agent("flush"),
    ("POST", "/api/v1/agents/{agent_id}/pool"): _agent("scale"),
    ("POST", "/api/v1/agents/{agent_id}/sequence"): _agent("sequence"),
    ("POST", "/api/v1/agents/{agent_id}/execute"): _agent("execute"),
    ("GET", "/api/v1/agents/{agent_id}/status"): LOOK,
    ("GET", "/api/v1/agents/{agent_id}/metrics"): LOOK,
    ("GET", "/api/v1/agents/{agent_id}/health"): LOOK,
    ("GET", "/api/v1/agents/{agent_id}/logs"): LOOK,
    ("GET", "/api/v1/agents/{agent_id}/events"): LOOK,
    ("GET", "/api/v1/agents/{agent_id}/commands"): LOOK,
    ("GET", "/api/v1/agents/{agent_id}/summaries"): LOOK,
    ("POST", "/api/v1/agent-types/{agent_type}/rolling-restart"): Rule(Role.OPERATOR, "agent.rolling_restart", "type:{agent_type}"),
    ("GET", "/api/v1/agent-types/{agent_type}/rolling-restart"): LOOK,
    ("POST", "/api/v1/work"): Rule(Role.OPERATOR, "work.submit", "work:"),
    ("GET", "/api/v1/work/{request_id}"): LOOK,
    ("GET", "/api/v1/stream"): LOOK,
    ("POST", "/api/agent-services/register"): Rule(Role.AGENT, "agent.register", "agent:"),
    ("POST", "/api/agent-services/heartbeat"): Rule(Role.AGENT),  # no act: there are too many, and they are kept elsewhere
    ("POST", "/api/agent-services/unregister"): Rule(Role.AGENT, "agent.unregister", "agent:"),
    ("GET", "/api/agent-services"): LOOK,
    ("GET", "/api/agent-services/{agent_id}"): LOOK,
    ("GET", "/api/agent-services/{agent_id}/status"): LOOK,
    ("GET", "/api/agent-services/{agent_id}/info"): LOOK,
    ("GET", "/api/agent-services/{agent_id}/logs"): LOOK,
    ("POST", "/api/agent-services/{agent_id}/execute"): _agent("execute"),
    ("POST", "/api/agent-services/{agent_id}/action"): _agent("action"),
}

_ADDRESSES = [(method, re.compile(re.sub(r"\{\w+\}", "[^/]+", path))) for method, path in RULES]


def methods_of(path: str) -> list[str]:
    """What an address understands."""
    literally = sorted(method for method, address in RULES if address == path)
    return literally or sorted({method for method, address in _ADDRESSES if address.fullmatch(path)})
