"""What an agent's own HTTP adapter may tell it; law: the row first where it decides, and the same states as when the fleet tells it.

The fleet's supervisor may be told of it too and do the same: each step here bears that, and only one of the two replaces the process.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from orchestrator.core import machines
from orchestrator.errors import FleetError
from schemas.codes import ErrorCode
from schemas.messages import CommandName, CommandResponse
from workers.agent_host import AgentHost
from workers.hosted import Hosted

ACTOR = "adapter"
CONSUMERS_MAX_S = 5.0  # how long the broker may take to stop or start consuming


def act(host: AgentHost, hosted: Hosted, command: CommandName) -> CommandResponse:
    """Carry out an action; waits for a pause, not for a drain. Raises IllegalTransition and other FleetErrors, and changes nothing then."""
    if command in {CommandName.STOP, CommandName.RESTART}:
        response = host.fleet.command(hosted.id, command, actor=ACTOR)
        if response.result.get("changed"):
            host.drain(hosted, then=partial(_leave, host, hosted, command))
        return response
    trigger = machines.order(host.fleet.get(hosted.id).status, command)
    if trigger is machines.HOLDS:
        return _response(hosted, command, changed=False)
    hosted.paused = command is CommandName.PAUSE
    try:
        host.align().result(CONSUMERS_MAX_S)
    except TimeoutError:
        raise FleetError("the broker does not answer, so it is not known to take nothing", code=ErrorCode.BROKER_UNAVAILABLE) from None
    host.fleet.turned(hosted.id, trigger, actor=ACTOR)
    return _response(hosted, command, changed=True)


def _leave(host: AgentHost, hosted: Hosted, command: CommandName, *, late: bool) -> None:
    """It has drained, or was to long enough."""
    if command is CommandName.STOP:
        host.end(forced=late)
    elif host.fleet.replacing(hosted.id) is not None:
        host.restart()


def _response(hosted: Hosted, command: CommandName, **result: Any) -> CommandResponse:  # noqa: ANN401 - any JSON
    return CommandResponse(command=command.value, agent_id=hosted.id, result={"state": hosted.status, **result})
