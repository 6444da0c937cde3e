"""How long the fleet is patient with an agent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core import patience
from schemas.agents import AgentSpec
from schemas.settings import Settings

SECONDS = st.floats(0.1, 86_400)


def agent(**fields) -> AgentSpec:
    return AgentSpec(id="a", type="t", **fields)


@pytest.mark.parametrize("interval, ttl, timeout", [(15, 30, 60), (20, 40, 60), (60, 120, 120), (0.5, 30, 60)])
def test_an_agent_with_slow_heartbeats_is_given_two_intervals(interval, ttl, timeout):
    spec = agent(heartbeat_interval_s=interval)
    assert patience.registry_ttl_s(spec, Settings()) == ttl
    assert patience.heartbeat_timeout_s(spec, Settings()) == timeout


@given(interval=SECONDS, ttl=SECONDS, more=SECONDS)
def test_two_intervals_are_within_the_ttl_and_the_ttl_is_within_the_timeout(interval, ttl, more):
    settings, spec = Settings(registry_ttl_s=ttl, heartbeat_timeout_s=ttl + more), agent(heartbeat_interval_s=interval)
    assert 2 * interval <= patience.registry_ttl_s(spec, settings) <= patience.heartbeat_timeout_s(spec, settings)


@pytest.mark.req("S1-39")
@pytest.mark.parametrize(
    "override, own, fleet, expected",
    [(None, None, 30, 30), (None, None, 12, 12), (None, 600, 12, 600), (3, 600, 12, 3), (0, 600, 12, 0), (None, 0, 12, 0)],
)
def test_the_drain_time_of_the_environment_wins_over_the_agents_own_and_that_over_the_fleets(override, own, fleet, expected):
    settings = Settings(agent_drain_s=fleet, drain_override_s=override)
    assert patience.drain_s(agent(drain_timeout_s=own), settings) == expected
