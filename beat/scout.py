"""What beat does for agents that are not in the fleet yet: those of configuration files and package folders are entered; law: a file speaks once.

What a file says is entered when it is first seen and whenever it has changed. In between, what operators say through the API holds; and who has left a
file stays in the fleet until an operator removes it. A package is an offer: an agent of its id that came in another way stays as it is; one that came with us is not entered before a setting names it.
"""

from __future__ import annotations

import logging

from orchestrator.discovery import discover
from orchestrator.errors import AgentNotFound, OrchestratorError
from orchestrator.fleet import Fleet
from schemas.agents import AgentSpec
from schemas.configuration import Discovered
from schemas.messages import CommandName
from schemas.settings import Settings

log = logging.getLogger("orchestrator.discovery")

ACTOR = "discovery"
CONFIG, PACKAGE, SHIPPED = "config", "package", "shipped"
ADOPTED_MAX = 100
"""Agents entered in one transaction."""


class Scout:
    """Looks through files and folders for one fleet."""

    def __init__(self, fleet: Fleet, settings: Settings) -> None:
        self._fleet = fleet
        self._settings = settings
        self._seen: dict[str, AgentSpec] = {}
        self._told: frozenset[str] = frozenset()

    def look(self) -> int:
        """Enter who is new or has changed, and start those that are enabled and stand still; return how many were entered. Raises DatabaseUnavailable."""
        found = discover(self._settings)
        sentences = {problem.sentence for problem in found.problems}
        for sentence in sorted(sentences - self._told):
            log.error("not discovered: %s", sentence)
        self._told = frozenset(sentences)
        wanted = [each for each in found.agents if each.discovery != SHIPPED or each.spec.enabled]
        news = [each for each in wanted if self._seen.get(each.spec.id) != each.spec]
        for at in range(0, len(news), ADOPTED_MAX):
            self._enter(news[at : at + ADOPTED_MAX])
        return len(news)

    def _enter(self, news: list[Discovered]) -> None:
        for how, ways in ((CONFIG, {CONFIG}), (PACKAGE, {PACKAGE, SHIPPED})):
            specs = [each.spec for each in news if each.discovery in ways]
            entered = specs if how == CONFIG else [spec for spec in specs if self._is_open(spec.id)]
            for agent in self._fleet.adopt(entered, discovery=how):
                try:
                    self._fleet.command(agent.id, CommandName.START, actor=ACTOR)
                except OrchestratorError as error:
                    log.warning("agent %s was found and could not be started: %s", agent.id, error.message)
            self._seen.update({spec.id: spec for spec in specs})

    def _is_open(self, agent_id: str) -> bool:
        try:
            return self._fleet.get(agent_id).discovery == PACKAGE
        except AgentNotFound:
            return True
