"""What authors of agents import: `Agent`; law: an agent knows its spec and its works, and nothing of databases, brokers or Celery.

    from orchestrator.agent import Agent, WorkRequest

    class Echo(Agent):
        type = "echo"
        capabilities = {"echo": "1.0"}

        async def execute_work(self, work: WorkRequest) -> object:
            return work.parameters

`execute_work` may be sync or async, and may return a `WorkResult` or any JSON, which is the output of a success. What it raises fails the
work and nothing else. A class that lacks something cannot be made: TypeError says what.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from orchestrator.errors import InvalidDefinition
from schemas.agents import AgentSpec, Health
from schemas.messages import ErrorCode, WorkError, WorkRequest, WorkResult
from schemas.settings import Settings

__all__ = ["AGENTS", "CURRENT", "Agent", "AgentConfig", "Info", "WorkFailed", "WorkRequest", "WorkResult", "info"]

Json = Any


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """What an agent was made with."""

    spec: AgentSpec
    settings: Settings

    @property
    def metadata(self) -> Mapping[str, Json]:
        """What its operator wrote into the spec, for the agent to read."""
        return self.spec.metadata


@dataclass(frozen=True, slots=True)
class Info:
    """Facts about the running work, as every log line of the agent tells them."""

    agent_id: str
    work_type: str
    request_id: str
    trace_id: str
    attempt: int = 1  # from 1


CURRENT: ContextVar[Info | None] = ContextVar("orchestrator_work", default=None)

AGENTS: dict[str, type[Agent]] = {}
"""The agent classes that this process has imported, by type."""


class WorkFailed(Exception):
    """Raise it to fail a work on purpose: `code` and `details` reach whoever asked for it. Anything else that is raised fails it as well.

    `retryable` says whether asking again may help; it is tried again only if the request allows several attempts.
    """

    def __init__(
        self, message: str, *, code: str = ErrorCode.EXECUTION_FAILED, details: Json = None, retryable: bool = False, exit_code: int = 1
    ) -> None:
        super().__init__(message)
        self.code, self.details, self.retryable, self.exit_code = str(code), details, retryable, exit_code

    @property
    def error(self) -> WorkError:
        """What the result says."""
        return WorkError(code=self.code, message=str(self), details=self.details, retryable=self.retryable)


class Agent(ABC):
    """A member of the fleet that does work; subclass it, give it a `type` and `capabilities`, and write `execute_work`."""

    type: ClassVar[str] = ""
    """Class of work; its queue is `work.<type>`."""

    capabilities: ClassVar[Mapping[str, str]] = {}
    """Work types that it can do -> their version. The first is meant by a request that names none; others are refused."""

    config: AgentConfig
    log: logging.LoggerAdapter[logging.Logger]

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: ANN401 - whatever a metaclass takes
        """Make a finished class known by its type."""
        super().__init_subclass__(**options)
        if cls.__dict__.get("type"):
            AGENTS[cls.type] = cls

    def __new__(cls, *_: Any, **__: Any) -> Self:  # noqa: ANN401 - what `__init__` takes
        """Refuse a class that is not finished."""
        made = super().__new__(cls)
        missing = [name for name in ("type", "capabilities") if not getattr(cls, name)]
        if missing:
            raise TypeError(f"{cls.__qualname__} is not a whole agent: it needs {' and '.join(missing)}")
        return made

    def __init__(self, spec: AgentSpec | None = None, settings: Settings | None = None) -> None:
        """Be the agent of this spec; without one it is called as its type. Raises InvalidDefinition if the spec is for another type."""
        spec = spec or AgentSpec(id=self.type, type=self.type)
        if spec.type != self.type:
            raise InvalidDefinition(
                f"the spec of agent {spec.id!r} is for type {spec.type!r}, and {self.__class__.__qualname__} is of {self.type!r}"
            )
        self.config = AgentConfig(spec, settings or Settings())
        self.log = _WorkLogger(logging.getLogger(f"orchestrator.agents.{spec.type}"), {"agent_id": spec.id})

    @property
    def id(self) -> str:
        """The id of its spec."""
        return self.config.spec.id

    @abstractmethod
    def execute_work(self, work: WorkRequest) -> WorkResult | Json | Awaitable[WorkResult | Json]:
        """Do a work. A sync method blocks one of the agent's slots, an async one shares a loop with others and must not block."""

    def on_start(self) -> Awaitable[None] | None:  # noqa: B027 - a hook that most agents leave alone
        """Called once before the first work; if it raises, the agent does not start."""

    def on_stop(self) -> Awaitable[None] | None:  # noqa: B027 - as above
        """Called once after the last work."""

    def on_flush(self) -> Json | Awaitable[Json]:  # noqa: B027 - as above
        """What was gathered since the last flush, as JSON; None: nothing to tell."""

    def health(self) -> Health | tuple[Health, str]:
        """How it does, and perhaps why; asked with every heartbeat, so it must not wait."""
        return Health.HEALTHY

    def metrics(self) -> Mapping[str, Json]:
        """Numbers of its own, sent with every heartbeat; must not wait."""
        return {}


class _WorkLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds who speaks, and about which work."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:  # noqa: ANN401 - logging's signature
        """Put the ids into the record."""
        work = CURRENT.get()
        ids = {} if work is None else {"trace_id": work.trace_id, "request_id": work.request_id, "work_type": work.work_type}
        kwargs["extra"] = {**(self.extra or {}), **ids, **(kwargs.get("extra") or {})}
        return msg, kwargs


def info() -> Info | None:
    """Facts about the work that runs here; None outside of any."""
    return CURRENT.get()
