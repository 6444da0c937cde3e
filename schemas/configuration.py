"""What configuration files say, with where each thing stands; law: values only, and whoever reports one names file, line and key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from schemas.agents import AgentSpec

SENTENCE_CHARACTERS_MAX = 600


@dataclass(frozen=True, slots=True)
class Origin:
    """Where something was written down."""

    file: str
    line: int | None = None
    key: str = ""

    def __str__(self) -> str:
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something in a file that is not right; the message is a sentence without its place, and holds no secret."""

    origin: Origin
    message: str
    agent: str = ""  # id of the agent that cannot be loaded because of it

    @property
    def sentence(self) -> str:
        """For people: where, then what; one line, whatever was written into keys."""
        text = " ".join(f"{self.origin}: {self.message}".split())
        return text if len(text) <= SENTENCE_CHARACTERS_MAX else text[: SENTENCE_CHARACTERS_MAX - 1] + "…"


@dataclass(frozen=True, slots=True)
class Discovered:
    """An agent that was found, and how: `config` in a configuration file, `package` in a folder of packages, `shipped` if that came with us."""

    spec: AgentSpec
    origin: Origin
    discovery: str = "config"


@dataclass(frozen=True, slots=True)
class Configuration:
    """All that some configuration files say together.

    `values` are for fields of `schemas.settings.Settings`, valid one by one. `mistakes` are settings that nobody should start with; `problems` cost one
    agent each, the others are in `agents`; `warnings` cost nothing.
    """

    files: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    origins: Mapping[str, Origin] = field(default_factory=dict)
    agents: tuple[Discovered, ...] = ()
    mistakes: tuple[Problem, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()
