"""Which agents there are: those of the configuration files and those of folders with agent packages; law: a broken one is told and stops no other.

An agent package is a folder with an `agent.toml`, `agent.yaml` or `agent.json` in it, which says what an entry of `agents` says. Its id and type are the
folder's name unless it says otherwise, and files that it names are taken from the folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from orchestrator import configuration
from orchestrator.configuration.dialects import agent_values
from orchestrator.configuration.documents import ENDINGS, Unreadable
from orchestrator.configuration.documents import read as read_document
from schemas.agents import AgentSpec
from schemas.configuration import Discovered, Origin, Problem
from schemas.settings import Settings

PACKAGES_MAX = 1_000
"""Packages in one folder; what is beyond is not looked at, and told."""
SHIPPED = "workers.packages"
PORT_MAX = 65_535


@dataclass(frozen=True)
class Discovery:
    """What was found, and what was not right."""

    agents: tuple[Discovered, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def discover(settings: Settings) -> Discovery:
    """The agents of the files and folders that `settings` name, read anew, each with the restart mode and the port that it is to have.

    Who is in a configuration file wins over a package of the same id, and a package of your own over one that came with us; those are only enabled if
    `package_enabled` names them. Raises nothing: what is wrong with a file is among the problems.
    """
    told = configuration.read(settings.config)
    own = in_folders(settings.package_folders, skip=settings.package_skip)
    shipped = in_folders([shipped_folder()], skip=settings.package_skip)
    offers = [_as_offer(found, settings) for found in shipped.agents]
    chosen: dict[str, Discovered] = {}
    for found in (*told.agents, *own.agents, *offers):
        chosen.setdefault(found.spec.id, found)
    agents = tuple(_with_restart_mode(found, settings) for found in chosen.values())
    placed = with_ports(agents, settings) if settings.deterministic_ports else Discovery(agents)
    return Discovery(
        placed.agents,
        (*told.mistakes, *told.problems, *own.problems, *shipped.problems, *placed.problems),
        (*told.warnings, *_same_ports(placed.agents)),
    )


def in_folders(folders: Iterable[Path], *, skip: Sequence[str]) -> Discovery:
    """The agent packages in these folders, one level deep, by name; folders called as in `skip` are none. The first of two with one id counts."""
    found: dict[str, Discovered] = {}
    problems: list[Problem] = []
    for folder in folders:
        try:
            packages = sorted(
                path for path in folder.iterdir() if path.is_dir() and path.name not in skip and not path.name.startswith(".")
            )
        except OSError as error:
            problems.append(Problem(Origin(str(folder)), f"cannot be looked through for agent packages: {error.strerror}"))
            continue
        if len(packages) > PACKAGES_MAX:
            problems.append(Problem(Origin(str(folder)), f"has {len(packages):,} folders; only {PACKAGES_MAX:,} are looked at"))
        for package in packages[:PACKAGES_MAX]:
            read = _package(package)
            if isinstance(read, Discovered) and read.spec.id in found:
                other = found[read.spec.id].origin
                read = [
                    Problem(read.origin, f"agent {read.spec.id!r} is there already, in {other}; give one of them another id", read.spec.id)
                ]
            if isinstance(read, Discovered):
                found[read.spec.id] = read
            else:
                problems += read
    return Discovery(tuple(found.values()), tuple(problems))


def shipped_folder() -> Path:
    """The folder of the agent packages that came with us; looking for it imports none of them."""
    spec = find_spec(SHIPPED)
    assert spec is not None, f"{SHIPPED} is part of the installation"
    assert spec.submodule_search_locations, f"{SHIPPED} is a package"
    return Path(spec.submodule_search_locations[0])


def with_ports(agents: Sequence[Discovered], settings: Settings) -> Discovery:
    """Give each agent that has no port and no URL the one of its place among all agents, from agent_port_base on; a port that another one names is left out."""
    taken = {found.spec.port for found in agents if found.spec.port}
    placed: list[Discovered] = []
    problems: list[Problem] = []
    for place, found in enumerate(agents):
        spec, port = found.spec, settings.agent_port_base + place
        if spec.port or spec.service_url:
            placed.append(found)
        elif port > PORT_MAX or port in taken:
            why = "is the port of another agent" if port in taken else "is beyond the last port"
            problems.append(
                Problem(found.origin, f"agent {spec.id!r} has no port of its own, and that of its place, {port}, {why}", spec.id)
            )
            placed.append(found)
        else:
            placed.append(replace(found, spec=spec.model_copy(update={"port": port})))
    return Discovery(tuple(placed), tuple(problems))


def _package(folder: Path) -> Discovered | list[Problem]:
    files = [path for ending in ENDINGS if (path := folder / f"agent{ending}").is_file()]
    if not files:
        return [
            Problem(
                Origin(str(folder)),
                "has no agent.toml, agent.yaml or agent.json, so it is no agent package; add one, or put its name in package_skip",
            )
        ]
    if len(files) > 1:
        return [Problem(Origin(str(folder)), f"has {' and '.join(path.name for path in files)}; remove one")]
    (file,) = files
    try:
        document = read_document(file)
    except Unreadable as error:
        return [Problem(Origin(str(file), error.line), error.message)]
    named = {"id", "agent_id"} & set(document.content)
    made = agent_values(document.content if named else {"id": folder.name, **document.content})
    wrong = [Problem(Origin(str(file)), text, folder.name) for text in made.problems]
    spec = configuration.spec_of({**made.values, **_own_files(folder, made.values)})
    if isinstance(spec, AgentSpec) and not wrong:
        return Discovered(spec, Origin(str(file)), "package")
    for name, text in spec if isinstance(spec, list) else ():
        key = made.keys.get(name, name)
        wrong.append(Problem(Origin(str(file), document.line((key,)), key), text, folder.name))
    return wrong


def _own_files(folder: Path, values: dict[str, Any]) -> dict[str, Any]:
    """What names files of the package, made absolute: whoever runs it works elsewhere."""

    def own(value: Any) -> Any:  # noqa: ANN401 - whatever the file says
        if not isinstance(value, str):
            return value
        path, colon, name = value.partition(":")  # the entry point of a class: file.py:Class
        inside = path != "" and not Path(path).is_absolute() and (folder / path).is_file()
        return f"{(folder / path).absolute()}{colon}{name}" if inside else value

    made: dict[str, Any] = {name: own(values[name]) for name in ("executable", "entry_point") if name in values}
    if isinstance(values.get("args"), list):
        made["args"] = [own(value) for value in values["args"]]
    return made


def _as_offer(found: Discovered, settings: Settings) -> Discovered:
    return replace(found, discovery="shipped", spec=found.spec.model_copy(update={"enabled": found.spec.id in settings.package_enabled}))


def _with_restart_mode(found: Discovered, settings: Settings) -> Discovered:
    if "restart_mode" in found.spec.model_fields_set:
        return found
    return replace(found, spec=found.spec.model_copy(update={"restart_mode": settings.restart_mode}))


def _same_ports(agents: Iterable[Discovered]) -> list[Problem]:
    warnings: list[Problem] = []
    first: dict[tuple[str, int], str] = {}
    for found in agents:
        spec = found.spec
        if spec.port and (owner := first.setdefault((spec.host, spec.port), spec.id)) != spec.id:
            warnings.append(
                Problem(
                    found.origin,
                    f"agent {spec.id!r} has port {spec.port}, as {owner!r} has: only one of them can have it on one machine",
                    spec.id,
                )
            )
    return warnings
