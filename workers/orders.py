"""What agents are told by remote control; law: answered from the main process while everything else is busy, and never by waiting in it.

Each answers `{"ok": {…}}` when it is done, or `{"error": code, "message": …}`. Orders about one agent name it as `id`; those of beat name
many as `ids`, and are not answered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, get_args

from celery.worker.control import control_command
from pydantic import ValidationError

from orchestrator.errors import FleetError, OrchestratorError
from schemas.agents import AgentKind, AgentSpec
from schemas.frames import Member
from schemas.messages import ErrorCode
from workers.agent_host import AgentHost, drain_s_of
from workers.child import tail
from workers.child.host import log_folder
from workers.hosted import HOSTED, Hosted
from workers.keeper import Keeper, then, unknown

log = logging.getLogger("orchestrator.agents")

LINES = 100  # of a log, unless somebody asks for more
MEMBERS: tuple[str, ...] = get_args(Member)

Answer = Mapping[str, Any] | Future[dict[str, Any]]
Order = Callable[..., Answer]


def order(function: Order) -> Order:
    """Make it a remote control command `agent_<name>` whose failures are answered as such."""

    def command(_state: Any, **arguments: Any) -> dict[str, Any] | Future[dict[str, Any]]:  # noqa: ANN401 - Celery's
        try:
            answer = function(**arguments)
        except (FleetError, TypeError, ValueError) as error:
            return refused(error)
        if not isinstance(answer, Future):
            return {"ok": dict(answer)}
        answered: Future[dict[str, Any]] = Future()

        def done(first: Future[dict[str, Any]]) -> None:
            failure = FleetError("it was given up", code=ErrorCode.AGENT_UNAVAILABLE) if first.cancelled() else first.exception()
            answered.set_result({"ok": dict(first.result())} if failure is None else refused(failure))

        answer.add_done_callback(done)
        return answered

    control_command(name=f"agent_{function.__name__}")(command)
    return function


def refused(error: BaseException) -> dict[str, Any]:
    """The answer that says why not."""
    code = ErrorCode.EXECUTION_FAILED
    if isinstance(error, FleetError):
        code = error.code
    elif isinstance(error, TypeError | ValueError):
        code = ErrorCode.INVALID_REQUEST
    else:
        log.warning("an order to an agent failed: %r", error)
    message = error.message if isinstance(error, OrchestratorError) else f"{type(error).__name__}: {error}"
    return {"error": code.value, "message": message}


# --- taking work ---------------------------------------------------------------------------------------------------------------------


@order
def pause(id: str, **_: Any) -> Answer:  # noqa: A002, ANN401 - what the command calls it; what others may add
    """Take nothing more; what runs ends."""
    return _paused(id, paused=True)


@order
def resume(id: str, **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """Take work again."""
    return _paused(id, paused=False)


@order
def drain(id: str, **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """Take nothing more, and report when everything is done."""
    host = here()
    hosted = HOSTED.get(id)
    if hosted is not None:
        host.drain(hosted)
        return {"running": sorted(hosted.running)}
    keeper = kept(host, id)
    return host.act(lambda: _drained(host, keeper, id))


@order
def scale(id: str, delta: int, **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """Do so many more works at once, or fewer; at least one."""
    own(id)
    return {"concurrency": here().scale(delta)}


# --- coming and going ----------------------------------------------------------------------------------------------------------------


@order
def start(spec: Mapping[str, Any], **_: Any) -> Answer:  # noqa: ANN401 - as above
    """Start the process of an agent."""
    host = here()
    if host.keeper is None or host.services is None:
        raise FleetError("this worker starts no agents; it does not consume the queue of the fleet", code=ErrorCode.START_FAILED)
    wanted = _spec(spec)
    return host.services.start(wanted) if wanted.kind is AgentKind.HTTP else host.keeper.start(wanted)


@order
def attach(spec: Mapping[str, Any], service_url: str, **_: Any) -> Answer:  # noqa: ANN401 - as above
    """Take works to a service that has come by itself."""
    host = here()
    if host.services is None:
        raise FleetError("this worker speaks for no services; it does not consume the queue of the fleet", code=ErrorCode.AGENT_UNAVAILABLE)
    return host.services.attach(_spec(spec), service_url)


@order
def end(id: str, forced: bool = False, **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """End the agent's process; by force, without waiting for what it does."""
    host = here()
    if host.services is not None and host.services.has(id) and not (forced and host.keeper is not None and host.keeper.has(id)):
        return host.services.end(id)
    if HOSTED.get(id) is not None:
        host.end(forced=forced)
        return {}
    keeper = kept(host, id)
    return then(host.act(lambda: keeper.end(id, forced=forced)), lambda _: {})


@order
def kill(id: str, **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """Kill a process that this host has started."""
    kept(here(), id).kill(id)
    return {}


@order
def restart(id: str, **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """Drain, then become one's own successor."""
    host = here()
    if host.services is not None and host.services.has(id):
        return host.services.restart(id)
    own(id)
    return {"mode": here().restart().value}


# --- telling -------------------------------------------------------------------------------------------------------------------------


@order
def heartbeat(ids: Iterable[str] | None = None, id: str | None = None, **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """Write heartbeats of those of these agents that live here."""
    host = AgentHost.present
    return {"agents": 0 if host is None else host.beat(ids if id is None else [id])}


@order
def flush(ids: Iterable[str] | None = None, id: str | None = None, **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """Have those of these agents that live here give their summaries; about one agent, answered when it has."""
    if id is not None:
        return _flush(here(), id)
    host = AgentHost.present
    if host is None:
        return {"agents": 0}
    mine = [agent_id for agent_id in ids or () if HOSTED.get(agent_id) or (host.keeper is not None and host.keeper.has(agent_id))]
    for agent_id in mine:
        _flush(host, agent_id).add_done_callback(_complain)
    return {"agents": len(mine)}


@order
def sequence(id: str, sequence: Iterable[str], **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """Do these one after the other."""
    host, members = here(), tuple(sequence)
    strange = [member for member in members if member not in MEMBERS]
    if strange or not members:
        message = f"a sequence is made of {', '.join(MEMBERS)}" + (f", not {strange[0]!r}" if strange else ", and of at least one")
        raise FleetError(message, code=ErrorCode.INVALID_REQUEST)
    hosted = HOSTED.get(id)
    if hosted is None:
        return kept(host, id).sequence(id, members, timeout_s=host.settings.flush_timeout_s)  # type: ignore[arg-type] # checked above
    return host.act(_in_order, host, hosted, members)


@order
def logs(id: str, lines: int = LINES, **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """The last lines of an agent's log."""
    host = here()
    return host.act(lambda: {"lines": tail(log_folder(host.settings), id, lines)})


@order
def status(id: str, **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """Where it stands and what it does, as its host knows it."""
    hosted = own(id)
    return {"status": hosted.status, "current_work": sorted(hosted.running), "tasks_total": hosted.done + hosted.failed}


@order
def health(id: str, **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """How it does."""
    hosted = own(id)

    def ask() -> dict[str, Any]:
        found, why = hosted.health()
        return {"health": found.value, "reason": why}

    return here().act(ask)


@order
def metrics(id: str, **_: Any) -> Answer:  # noqa: A002, ANN401 - as above
    """Its own numbers."""
    return here().act(own(id).metrics)


# --- how it is done --------------------------------------------------------------------------------------------------------------------


def _spec(found: Mapping[str, Any]) -> AgentSpec:
    try:
        return AgentSpec.model_validate(found)
    except ValidationError as error:
        raise FleetError(f"the spec is not valid: {error.errors()[0]['msg']}", code=ErrorCode.START_FAILED) from error


def here() -> AgentHost:
    """The host of this process; raises FleetError if it hosts nothing."""
    if AgentHost.present is None:
        raise FleetError("this worker hosts no agents", code=ErrorCode.AGENT_UNAVAILABLE)
    return AgentHost.present


def own(agent_id: str) -> Hosted:
    """An agent that lives in this process; raises FleetError."""
    hosted = HOSTED.get(agent_id)
    if hosted is None:
        raise unknown(agent_id)
    return hosted


def kept(host: AgentHost, agent_id: str) -> Keeper:
    """The keeper of an agent's process; raises FleetError."""
    if host.keeper is None or not host.keeper.has(agent_id):
        raise unknown(agent_id)
    return host.keeper


def _paused(agent_id: str, *, paused: bool) -> Answer:
    host, hosted = here(), HOSTED.get(agent_id)
    if hosted is None:
        keeper = kept(host, agent_id)
        return keeper.sequence(agent_id, ("pause" if paused else "resume",), timeout_s=host.settings.flush_timeout_s)
    hosted.paused = paused
    return then(host.align(), lambda _: {"current_work": sorted(hosted.running)})


def _drained(host: AgentHost, keeper: Keeper, agent_id: str) -> dict[str, Any]:
    keeper.drain(agent_id, drain_s_of(host.fleet.get(agent_id).spec, host.settings))
    return {}


def _flush(host: AgentHost, agent_id: str) -> Future[dict[str, Any]]:
    hosted = HOSTED.get(agent_id)
    return kept(host, agent_id).flush(agent_id) if hosted is None else host.flush(hosted)


def _complain(future: Future[dict[str, Any]]) -> None:
    failure = None if future.cancelled() else future.exception()
    if failure is not None:
        log.warning("an agent gave no summary: %s", failure)


def _in_order(host: AgentHost, hosted: Hosted, members: tuple[str, ...]) -> dict[str, Any]:
    done = []
    for member in members:
        match member:
            case "pause" | "stop":
                hosted.paused = True
                host.align()
            case "resume":
                hosted.paused = False
                host.align()
            case "flush":
                host.flush(hosted).result()
            case "shutdown":
                host.end(forced=False)
        done.append(member)
    return {"acknowledged": done, "left": "shutdown" in members}
