"""An agent that runs commands its operator has listed, within limits; law: no shell, no command and no argument that the list does not allow.

The list is in the spec, under `metadata.commands`; without one the agent can do nothing. See `agent.toml` for an example.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from orchestrator.agent import Agent, WorkFailed, WorkRequest
from orchestrator.errors import InvalidDefinition
from schemas.agents import AgentSpec
from schemas.settings import Settings
from workers.child import command

ARGUMENTS_MAX = 100
STDIN_BYTES_MAX = 1024 * 1024


class Allowed(BaseModel):
    """One command of the list."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    argv: tuple[str, ...] = Field(min_length=1, description="the program and its fixed arguments; never given to a shell")
    arguments: str = Field("", description="what each further argument must match as a whole (regular expression); empty: there are none")
    arguments_max: int = Field(ARGUMENTS_MAX, ge=0, le=ARGUMENTS_MAX)
    stdin: bool = Field(default=False, description="whether a caller may give it something to read")
    timeout_s: float = Field(30.0, gt=0, le=86_400)
    output_bytes_max: int = Field(64 * 1024, ge=1, le=1024 * 1024)
    cwd: Path = Path("/")
    env: dict[str, str] = Field(default_factory=dict, description="beside PATH and LANG, all of its environment")
    description: str = ""

    @field_validator("arguments")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return pattern


class Asked(BaseModel):
    """What somebody wants to be run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str
    arguments: tuple[str, ...] = ()
    stdin: str = ""


class Shell(Agent):
    """`run` runs one of the commands, `list` tells which there are."""

    type = "shell"
    capabilities = {"run": "1.0", "list": "1.0"}  # noqa: RUF012 - declared a ClassVar by Agent

    def __init__(self, spec: AgentSpec | None = None, settings: Settings | None = None) -> None:
        super().__init__(spec, settings)
        self.commands = allowed(self.config.metadata.get("commands", {}))

    def execute_work(self, work: WorkRequest) -> Any:  # noqa: ANN401 - JSON
        """Look it up, check it, run it."""
        if work.work_type == "list":
            return {name: {"description": known.description, "arguments": known.arguments} for name, known in sorted(self.commands.items())}
        try:
            asked = Asked.model_validate(work.parameters)
        except ValidationError as error:
            first = error.errors()[0]
            raise refused(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        known = self.commands.get(asked.command)
        if known is None:
            raise refused(f"command {asked.command!r} is not in the list; there are {', '.join(sorted(self.commands)) or 'none'}")
        self.log.info("runs %s", asked.command)
        return answer(asked.command, known, command.run(checked(asked, known)) if known.cwd.is_dir() else None)


def allowed(listed: Any) -> dict[str, Allowed]:  # noqa: ANN401 - whatever the spec says
    """The list of a spec; raises InvalidDefinition that names what is wrong in it."""
    if not isinstance(listed, dict):
        raise InvalidDefinition("metadata.commands must be a table: a name for each command, and what it is")
    commands = {}
    for name, value in listed.items():
        try:
            commands[str(name)] = Allowed.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            raise InvalidDefinition(f"metadata.commands.{name}.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    return commands


def checked(asked: Asked, known: Allowed) -> command.Command:
    """What is to be run, if all of it is allowed."""
    if len(asked.arguments) > (known.arguments_max if known.arguments else 0):
        raise refused(f"command {asked.command!r} takes at most {known.arguments_max if known.arguments else 0} arguments")
    for argument in asked.arguments:
        if "\0" in argument or re.fullmatch(known.arguments, argument) is None:
            raise refused(f"argument {argument!r} of command {asked.command!r} does not match {known.arguments!r}")
    stdin = asked.stdin.encode()
    if stdin and (not known.stdin or len(stdin) > STDIN_BYTES_MAX):
        raise refused(
            f"command {asked.command!r} takes no input" if not known.stdin else f"the input is longer than {STDIN_BYTES_MAX:,} bytes"
        )
    return command.Command(
        argv=(*known.argv, *asked.arguments),
        env={"PATH": os.defpath, "LANG": "C.UTF-8", **known.env},
        cwd=known.cwd,
        timeout_s=known.timeout_s,
        output_bytes_max=known.output_bytes_max,
        stdin=stdin,
    )


def answer(name: str, known: Allowed, ran: command.Ran | None) -> dict[str, Any]:
    """The output of a command that ended well; raises WorkFailed with all that is known of one that did not."""
    if ran is None:
        raise WorkFailed(f"command {name!r} cannot run in {known.cwd}, which is no folder")
    found = {
        "exit_code": ran.code,
        "stdout": ran.stdout.decode("utf-8", "replace"),
        "stderr": ran.stderr.decode("utf-8", "replace"),
        "seconds": round(ran.seconds, 3),
    }
    if ran.errno:
        raise WorkFailed(f"command {name!r} could not be started: {os.strerror(ran.errno)}", details=found)
    if ran.ended == "timeout":
        raise WorkFailed(f"command {name!r} took longer than {known.timeout_s:g} s and was ended", details=found, retryable=True)
    if ran.ended == "output":
        raise WorkFailed(f"command {name!r} wrote more than {known.output_bytes_max:,} bytes and was ended", details=found)
    if ran.code != 0:
        how = "died" if ran.code is None else f"ended with {ran.code}"
        raise WorkFailed(f"command {name!r} {how}", details=found, exit_code=ran.code if ran.code and 0 < ran.code < 256 else 1)
    return found


def refused(reason: str) -> WorkFailed:
    """What is not allowed is the caller's mistake."""
    return WorkFailed(reason, code="invalid_request")
