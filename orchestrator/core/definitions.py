"""What authors declared: workflows and activities by name; law: a name means one thing in a process.

`orchestrator.workflow` and `orchestrator.activity` fill these records with their decorators; the rest of the engine only reads them.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeVar

from orchestrator.core.signatures import CallSignature
from orchestrator.errors import InvalidArgument, InvalidDefinition, SettingsError

ID_CHARACTERS_MAX = 1000  # of workflow ids, activity ids, names of types, signals, queries and queues

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

OnException = Literal["fail", "retry_turn"]


@dataclass(frozen=True, slots=True)
class Handler:
    """A signal or query handler of a workflow class."""

    name: str
    fn: Callable[..., Any]
    signature: CallSignature
    is_async: bool
    description: str = ""


@dataclass(frozen=True, slots=True)
class WorkflowDefinition:
    """A workflow as its author declared it; `cls` is None for a plain function."""

    name: str
    run: Callable[..., Any]
    signature: CallSignature
    cls: type | None = None
    init_takes_args: bool = False
    signals: dict[str, Handler] = field(default_factory=dict)
    queries: dict[str, Handler] = field(default_factory=dict)
    on_exception: OnException = "fail"


@dataclass(frozen=True, slots=True)
class ActivityDefinition:
    """An activity as its author declared it."""

    name: str
    fn: Callable[..., Any]
    signature: CallSignature
    is_async: bool
    needs_thread: bool = False  # not taken on in advance: only when a thread is free


class Promised(Protocol[R_co]):
    """A run that was started by Celery's habit, as far as an AsyncResult is known."""

    id: str
    """The run id."""

    def get(self, timeout: float | None = None) -> R_co:
        """Wait for the result, at most `timeout` seconds."""
        ...

    def ready(self) -> bool:
        """Whether the run is over."""
        ...


Habit = Callable[["WorkflowFunction[Any, Any]", Sequence[Any], Mapping[str, Any]], Promised[Any]]
"""Starts a workflow with these arguments and start options."""

HABITS: list[Habit] = []
"""Who starts what is called with `delay`: the last one. `orchestrator.celery` adds itself; a file of workflows knows no application."""


class WorkflowFunction(Generic[P, R]):
    """A plain function that is a workflow: `@workflow.defn async def greet(name: str) -> str`.

    Called, it is a part of the calling workflow. `greet.delay("Ada").get()` starts a run of its own, as Celery's tasks do.
    """

    def __init__(self, fn: Callable[P, Awaitable[R]], definition: WorkflowDefinition) -> None:
        self.fn = fn
        self.definition = definition
        self.__name__ = definition.name
        self.__doc__ = fn.__doc__
        self.__wrapped__ = fn

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        """Run the function itself, as a part of the calling workflow."""
        return self.fn(*args, **kwargs)

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Promised[R]:
        """Start a run through the Celery application of this process. Raises SettingsError if there is none, PayloadError, InvalidArgument."""
        return self._start(args, kwargs, {})

    def apply_async(
        self,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        id: str | None = None,  # noqa: A002 - the field's name
        queue: str | None = None,
        countdown: float | None = None,
        priority: int = 0,
    ) -> Promised[R]:
        """As `delay`, with a workflow id, a queue, a delay in seconds or a priority; `Client.start_workflow` has more."""
        return self._start(args, kwargs or {}, {"id": id, "queue": queue, "start_delay": countdown, "priority": priority})

    def _start(self, args: Sequence[Any], kwargs: Mapping[str, Any], options: Mapping[str, Any]) -> Promised[R]:
        if not HABITS:
            raise SettingsError(
                f"{self.__name__}.delay needs a Celery application of ours: write Orchestrator(app) where it is made, "
                f"or use Client().start_workflow({self.__name__}, ...)."
            )
        try:
            bound = inspect.signature(self.fn).bind(*args, **kwargs)
        except TypeError as error:
            raise InvalidArgument(f"workflow {self.__name__!r}: {error}") from None
        if bound.kwargs:
            raise InvalidArgument(f"workflow {self.__name__!r} takes {', '.join(bound.kwargs)} by keyword only, and payloads have no names")
        return HABITS[-1](self, bound.args, options)


WORKFLOWS: dict[str, WorkflowDefinition] = {}
ACTIVITIES: dict[str, ActivityDefinition] = {}


def register_workflow(definition: WorkflowDefinition) -> None:
    """Make a workflow known to this process."""
    known = WORKFLOWS.get(definition.name)
    if known is not None and _place(known.cls or known.run) != _place(definition.cls or definition.run):
        message = (
            f"two workflows are called {definition.name!r}: {_place(known.cls or known.run)} and {_place(definition.cls or definition.run)}. "
            f"Give one of them another name with @workflow.defn(name=...)."
        )
        raise InvalidDefinition(message)
    WORKFLOWS[definition.name] = definition


def register_activity(definition: ActivityDefinition) -> None:
    """Make an activity known to this process."""
    known = ACTIVITIES.get(definition.name)
    if known is not None and _place(known.fn) != _place(definition.fn):
        message = (
            f"two activities are called {definition.name!r}: {_place(known.fn)} and {_place(definition.fn)}. "
            f"Give one of them another name with @activity.defn(name=...)."
        )
        raise InvalidDefinition(message)
    ACTIVITIES[definition.name] = definition


def valid_name(what: str, value: object) -> str:
    """The value, if it can be an id or a name: text, not blank, no control characters, at most ID_CHARACTERS_MAX characters (R9)."""
    if not isinstance(value, str):
        message = f"{what} must be text, not {type(value).__name__}"
        raise InvalidArgument(message)
    if not value.strip():
        message = f"{what} must not be empty"
        raise InvalidArgument(message)
    if len(value) > ID_CHARACTERS_MAX:
        message = f"{what} has {len(value):,} characters; at most {ID_CHARACTERS_MAX:,} are allowed"
        raise InvalidArgument(message)
    if not value.isprintable():
        message = f"{what} contains a control character: {value[:40]!r}"
        raise InvalidArgument(message)
    return value


def is_coroutine_function(fn: Callable[..., Any]) -> bool:
    """Whether calling it gives a coroutine, also for callable objects and partials."""
    return inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004 - asks about it, does not call


def definition_of(target: Any) -> WorkflowDefinition:  # noqa: ANN401 - a workflow class, its run method or a workflow function
    """The definition behind what people pass around as "the workflow"."""
    if isinstance(target, WorkflowFunction):
        return target.definition
    definition = getattr(target, "__workflow_definition__", None)
    if isinstance(definition, WorkflowDefinition):
        return definition
    message = f"{target!r} is not a workflow; pass a class or function with @workflow.defn, its run method, or a workflow's name"
    raise InvalidArgument(message)


def workflow_named(workflow: Any) -> tuple[str, WorkflowDefinition | None]:  # noqa: ANN401 - a class, run method, function or name
    """The type's name and its definition; a name may be one that only other processes know."""
    if isinstance(workflow, str):
        return valid_name("workflow type", workflow), WORKFLOWS.get(workflow)
    definition = definition_of(workflow)
    return definition.name, definition


def _place(thing: Any) -> str:  # noqa: ANN401 - any callable or class
    return f"{getattr(thing, '__module__', '?')}.{getattr(thing, '__qualname__', repr(thing))}"
