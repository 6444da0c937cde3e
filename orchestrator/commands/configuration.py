"""`orchestrator config`: what holds here and where it comes from, and what is wrong with a file; law: no secret is ever shown."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from orchestrator import configuration, discovery
from orchestrator import settings as settings_module
from orchestrator.commands.printing import AsJson, out, put_json, put_table
from orchestrator.configuration.keys import KEYS
from orchestrator.errors import SettingsError
from schemas.agents import AgentKind
from schemas.configuration import Configuration, Discovered, Problem
from schemas.settings import masked

DEFAULT = "default"
SECRET_WORDS = ("password", "passwd", "secret", "token", "api_key", "api-key", "apikey", "credential")
"""Whose key has one of these in it is not shown: metadata is what its author made of it."""

_OPTION = re.compile(rf"^(-[\w-]*(?:{'|'.join(SECRET_WORDS)})[\w-]*=).*", re.IGNORECASE | re.DOTALL)

app = typer.Typer(add_completion=False)


@app.command()
def show(
    *,
    wanted: Annotated[str, typer.Argument(metavar="[PART]", help="Only keys with this in them, as in `runtime` or `drain`.")] = "",
    as_json: AsJson = False,
) -> None:
    """Every setting with its value and where that comes from, and the agents of files and packages."""
    settings, origins = settings_module.current(), settings_module.origins()
    values = configuration.tree(settings)
    rows = [(key, _at(values, key), origins.get(name, DEFAULT)) for key, name in KEYS.items() if wanted in key]
    found = discovery.discover(settings)
    agents = [agent for agent in found.agents if not wanted or wanted in "agents" or wanted == agent.spec.id]
    if as_json:
        put_json(
            {
                "files": [str(path) for path in settings.config],
                "settings": {key: {"value": value, "from": origin} for key, value, origin in rows},
                "agents": [_as_json(agent) for agent in agents],
                "problems": [problem.sentence for problem in found.problems],
            }
        )
        return
    put_table(
        ("key", "value", "from"),
        [(key, "" if value is None else value, origin) for key, value, origin in rows],
        empty=f"no setting has {wanted!r} in it",
    )
    if agents:
        out.print()
        put_table(("agent", "type", "kind", "port", "enabled", "from"), [_row(agent) for agent in agents], empty="")
    for problem in found.problems:
        out.print(Text(f"broken: {problem.sentence}", style="red"))


@app.command()
def check(
    *,
    files: Annotated[list[Path] | None, typer.Argument(help="Files to check, instead of those that hold here.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what is wrong with configuration files, each in one sentence; exit code 1 if anything is."""
    paths = tuple(files or settings_module.files())
    told = configuration.read(paths)
    contradiction = "" if told.mistakes else _contradiction(paths)
    wrong = [problem.sentence for problem in (*told.mistakes, *told.problems)] + ([contradiction] if contradiction else [])
    warnings = [problem.sentence for problem in (*told.warnings, *_not_here(told))]
    if as_json:
        put_json(
            {
                "ok": not wrong,
                "files": list(told.files),
                "agents": [agent.spec.id for agent in told.agents],
                "wrong": wrong,
                "warnings": warnings,
            }
        )
    else:
        for sentence in wrong:
            out.print(Text.assemble(("wrong   ", "bold red"), sentence))
        for sentence in warnings:
            out.print(Text.assemble(("warning ", "yellow"), sentence))
        if not wrong:
            what = (
                f"{len(told.values)} settings and {len(told.agents)} agents in {', '.join(told.files)}"
                if told.files
                else "no configuration file"
            )
            out.print(Text.assemble(("ok      ", "green"), what))
    if wrong:
        raise typer.Exit(1)


def _contradiction(paths: tuple[Path, ...]) -> str:
    try:
        settings_module.read_with(paths)
    except SettingsError as error:
        return error.message
    return ""


def _not_here(told: Configuration) -> Iterator[Problem]:
    """Programs that this machine does not have; perhaps the one that runs them does."""
    for agent in told.agents:
        spec = agent.spec
        program = spec.executable
        if spec.enabled and program and program != "python" and shutil.which(program) is None:
            yield Problem(
                agent.origin, f"agent {spec.id!r}: the program {program!r} is not on this machine; whoever runs it needs it", spec.id
            )
        script = spec.entry_point if spec.kind is AgentKind.HTTP else spec.args[0] if program == "python" and spec.args else ""
        if spec.enabled and script.endswith(".py") and not Path(script).is_file():
            yield Problem(
                agent.origin,
                f"agent {spec.id!r}: there is no {script!r} here; it is looked for in the working directory of its host",
                spec.id,
            )


def _at(values: dict[str, Any], key: str) -> Any:  # noqa: ANN401 - any JSON value
    section, dot, name = key.partition(".")
    return values[section][name] if dot else values[section]


def _row(agent: Discovered) -> tuple[object, ...]:
    spec = agent.spec
    return spec.id, spec.type, spec.kind, spec.port or "", "yes" if spec.enabled else "no", agent.origin


def _as_json(agent: Discovered) -> dict[str, Any]:
    return {"from": str(agent.origin), "discovery": agent.discovery, **_without_secrets(agent.spec.model_dump(mode="json"))}


def _without_secrets(value: Any, key: str = "") -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, dict):
        return {name: _without_secrets(inner, name) for name, inner in value.items()}
    if key == "args":
        return [_OPTION.sub(r"\1***", masked(word)) for word in value]
    if isinstance(value, list):
        return [_without_secrets(inner, key) for inner in value]
    if isinstance(value, str) and any(word in key.lower() for word in SECRET_WORDS):
        return "***"
    return masked(value)
