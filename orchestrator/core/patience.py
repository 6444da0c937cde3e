"""How long the fleet is patient with an agent; law: whoever is told to be slow is not punished for it."""

from __future__ import annotations

from schemas.agents import AgentSpec
from schemas.settings import Settings

MISSED_HEARTBEATS_MIN = 2


def registry_ttl_s(spec: AgentSpec, settings: Settings) -> float:
    """After this many seconds of silence it is no longer registered: registry_ttl_s, or two of its own intervals if that is longer."""
    return max(settings.registry_ttl_s, MISSED_HEARTBEATS_MIN * spec.heartbeat_interval_s)


def heartbeat_timeout_s(spec: AgentSpec, settings: Settings) -> float:
    """After this many seconds of silence it is inactive; never before it has left the registry."""
    return max(settings.heartbeat_timeout_s, MISSED_HEARTBEATS_MIN * spec.heartbeat_interval_s)


def drain_s(spec: AgentSpec, settings: Settings) -> float:
    """How long it may finish its work when it stops: what the environment demands of all, else its spec, else the fleet's setting."""
    if settings.drain_override_s is not None:
        return settings.drain_override_s
    return settings.agent_drain_s if spec.drain_timeout_s is None else spec.drain_timeout_s
