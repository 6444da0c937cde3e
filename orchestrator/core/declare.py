"""From a decorated class or function to a definition; law: all that is wrong is told at once, when the file is imported."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Literal

from orchestrator.core.definitions import Handler, OnException, WorkflowDefinition, is_coroutine_function, valid_name
from orchestrator.core.guard import find_forbidden
from orchestrator.core.signatures import CallSignature
from orchestrator.errors import InvalidArgument, InvalidDefinition

Role = Literal["run", "init", "signal", "query", ""]


def mark(fn: Any, role: Role, name: str = "", description: str = "") -> Any:  # noqa: ANN401 - any method
    """Note what a method is for; read by `class_definition`."""
    fn.__workflow_role__ = (role, name, description)
    return fn


def class_definition(cls: type, name: str, on_exception: OnException) -> WorkflowDefinition:
    """The definition of a workflow class. Raises InvalidDefinition with all that is wrong."""
    wrong: list[str] = []
    runs: list[Callable[..., Any]] = []
    handlers: dict[str, dict[str, Handler]] = {"signal": {}, "query": {}}
    for attribute, member in inspect.getmembers(cls, inspect.isfunction):
        role, given, description = _role(member)
        wrong += _mistakes(cls, attribute, member, role, given)
        if role == "run":
            runs.append(member)
        elif role in handlers:
            if given in handlers[role]:
                wrong.append(f"two methods handle {role} {given!r}")
            handlers[role][given] = Handler(
                given,
                member,
                _signature(member, wrong),
                is_async=inspect.iscoroutinefunction(member),
                description=description or inspect.getdoc(member) or "",
            )
    if len(runs) != 1:
        wrong.append(f"exactly one method must carry @workflow.run, there are {len(runs)}")
    signature = _signature(runs[0], wrong) if runs else _NOTHING
    init_takes_args = _role(cls.__init__)[0] == "init"  # type: ignore[misc] # only looked at
    wrong += _init_mistakes(cls, signature, marked=init_takes_args)
    wrong += find_forbidden(cls)
    _refuse(wrong, f"workflow class {cls.__qualname__}")
    definition = WorkflowDefinition(
        name=valid_name("workflow name", name),
        run=runs[0],
        signature=signature,
        cls=cls,
        init_takes_args=init_takes_args,
        signals=handlers["signal"],
        queries=handlers["query"],
        on_exception=on_exception,
    )
    runs[0].__workflow_definition__ = definition  # type: ignore[attr-defined] # so that `OrderWorkflow.run` names the workflow
    return definition


def function_definition(fn: Any, name: str, on_exception: OnException) -> WorkflowDefinition:  # noqa: ANN401 - checked here
    """The definition of a workflow that is a plain function. Raises InvalidDefinition with all that is wrong."""
    wrong = [] if inspect.iscoroutinefunction(fn) else ["it must be a class, or an async function"]
    signature = _NOTHING
    if not wrong:
        signature = _signature(fn, wrong, skip_self=False)
        wrong += find_forbidden(fn)
    _refuse(wrong, f"workflow {name}")
    return WorkflowDefinition(valid_name("workflow name", name), fn, signature, on_exception=on_exception)


def loose_handler(role: Literal["signal", "query"], name: str, fn: Callable[..., Any]) -> Handler:
    """A handler that a running workflow puts in place itself: it gets no `self`. Raises InvalidArgument."""
    is_async = is_coroutine_function(fn)
    if role == "query" and is_async:
        message = f"query {name!r} must not be async: it must not wait"
        raise InvalidArgument(message)

    def handler(_workflow: Any, *args: Any) -> Any:  # noqa: ANN401 - whatever the sender sent
        return fn(*args)

    return Handler(valid_name(f"{role} name", name), handler, CallSignature.of(fn, skip_self=False), is_async=is_async)


_NOTHING = CallSignature("nothing", (), None, Any)


def _role(member: Any) -> tuple[Role, str, str]:  # noqa: ANN401 - any member of a class
    role: tuple[Role, str, str] = getattr(member, "__workflow_role__", ("", "", ""))
    return role


def _mistakes(cls: type, attribute: str, member: Callable[..., Any], role: Role, given: str) -> Iterator[str]:
    is_async = inspect.iscoroutinefunction(member)
    if role == "run":
        if not is_async:
            yield f"@workflow.run method {attribute} must be async"
        if attribute not in vars(cls):
            yield f"@workflow.run method {attribute} must be defined in the class itself, not only in a parent"
    elif role == "query" and is_async:
        yield f"query {given!r} must not be async: it must not wait"
    elif not role:
        was = next((found for parent in cls.__mro__[1:] if (found := _role(vars(parent).get(attribute))[0]) not in {"", "init"}), None)
        if was:
            yield f"{attribute} is @workflow.{was} in a parent; repeat the decorator here"
    if role in {"signal", "query"}:
        try:
            valid_name(f"{role} name", given)
        except InvalidArgument as error:
            yield error.message


def _init_mistakes(cls: type, run: CallSignature, *, marked: bool) -> Iterator[str]:
    if cls.__init__ is object.__init__:  # type: ignore[misc] # only compared
        return
    wrong: list[str] = []
    init = _signature(cls.__init__, wrong)  # type: ignore[misc] # only looked at
    yield from wrong
    if not marked and init.required:
        yield "__init__ wants arguments: decorate it with @workflow.init and give it the parameters of the run method, or drop them"
    elif marked and [(p.annotation, p.required) for p in init.parameters] != [(p.annotation, p.required) for p in run.parameters]:
        yield "an __init__ with @workflow.init must have the parameters of the run method"


def _signature(fn: Callable[..., Any], wrong: list[str], *, skip_self: bool = True) -> CallSignature:
    try:
        return CallSignature.of(fn, skip_self=skip_self)
    except InvalidDefinition as error:
        wrong.append(error.message)
        return _NOTHING


def _refuse(wrong: list[str], what: str) -> None:
    if wrong:
        message = f"invalid {what}: " + "; ".join(wrong)
        raise InvalidDefinition(message)
