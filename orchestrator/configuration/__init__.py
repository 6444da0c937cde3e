"""Configuration files as one frozen snapshot; law: every mistake is a sentence with file, line and key, and a broken agent stops no other.

    found = read([Path("fleet.yaml")])
    found.values       # for `orchestrator.settings`, which puts the environment above them
    found.agents       # specs, each with the place where it was written down

Later files win over earlier ones, setting by setting; an id may be used once in all of them. Which words a file may use stands in `keys`, what the worlds
of other systems say instead in `dialects`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.configuration.dialects import Draft, Entry, translate
from orchestrator.configuration.documents import ENDINGS, Unreadable
from orchestrator.configuration.documents import read as read_document
from orchestrator.configuration.keys import KEYS
from orchestrator.configuration.sentences import say
from schemas.agents import AgentSpec
from schemas.configuration import Configuration, Discovered, Origin, Problem
from schemas.settings import Settings, masked

__all__ = ["find", "read", "spec_of", "tree"]

FILES_MAX = 100
PLACES = ("", "config")
"""Folders below the working directory in which `find` looks."""


def find(folder: Path) -> tuple[Path, ...]:
    """The configuration file that is used when none is named: `fleet.*`, else `agents.config.json`, in `folder` or its `config`; raises Unreadable if two compete."""
    for place in PLACES:
        fleets = [path for ending in ENDINGS if (path := folder / place / f"fleet{ending}").is_file()]
        if len(fleets) > 1:
            names = " and ".join(str(path.relative_to(folder)) for path in fleets)
            raise Unreadable(f"{names} compete; remove one, or name the files in ORCHESTRATOR_CONFIG")
        other = folder / place / "agents.config.json"
        if fleets or other.is_file():
            return (*fleets,) or (other,)
    return ()


def read(paths: Iterable[Path]) -> Configuration:
    """What these files say together. A file that cannot be read is a mistake, like any other in `mistakes`."""
    named = list(dict.fromkeys(paths))
    files = named[:FILES_MAX]
    mistakes = [Problem(Origin(str(path)), f"is one file too many; at most {FILES_MAX} are read") for path in named[FILES_MAX:][:1]]
    drafts = []
    for path in files:
        try:
            drafts.append(translate(read_document(path), str(path)))
        except Unreadable as error:
            mistakes.append(Problem(Origin(str(path), error.line), error.message))
    values, origins = _settings(drafts)
    mistakes += [problem for draft in drafts for problem in draft.mistakes]
    mistakes += _wrong_values(values, origins)
    agents, problems = _agents(drafts)
    return Configuration(
        files=tuple(map(str, files)),
        values=values,
        origins=origins,
        agents=agents,
        mistakes=tuple(mistakes),
        problems=problems,
        warnings=tuple(problem for draft in drafts for problem in draft.warnings),
    )


def spec_of(values: dict[str, Any]) -> AgentSpec | list[tuple[str, str]]:
    """The spec, or what is wrong with it: pairs of a field ("" for the whole) and a sentence without its subject."""
    untrue = [(name, f"{name} must not be {str(value).lower()}") for name, value in values.items() if _no_bool(AgentSpec, name, value)]
    if untrue:
        return untrue
    try:
        return AgentSpec(**values)
    except ValidationError as error:
        return [(_name(found), _told(found)) for found in error.errors()]


def tree(settings: Settings) -> dict[str, Any]:
    """All settings by section and name, as JSON values; secrets are stars."""
    shown = settings.model_dump(mode="json")
    grown: dict[str, Any] = {}
    for key, name in KEYS.items():
        section, dot, leaf = key.partition(".")
        (grown.setdefault(section, {}) if dot else grown)[leaf or section] = masked(shown[name])
    return grown


def _settings(drafts: list[Draft]) -> tuple[dict[str, Any], dict[str, Origin]]:
    given = [setting for draft in drafts for setting in draft.settings]
    given.sort(key=lambda setting: not setting.weak)  # stable: among equals the later file wins
    return {each.field: each.value for each in given}, {each.field: each.origin for each in given}


def _wrong_values(values: dict[str, Any], origins: dict[str, Origin]) -> Iterator[Problem]:
    for name, value in values.items():
        if _no_bool(Settings, name, value):
            yield Problem(origins[name], f"{origins[name].key} must not be {str(value).lower()}")
    try:
        Settings(**values)
    except ValidationError as error:
        for found in error.errors():
            if found["loc"]:  # what contradicts itself is judged when the environment has had its say
                origin = origins[str(found["loc"][0])]
                yield Problem(origin, f"{origin.key} {say(found, secret=_secret(str(found['loc'][0])))}")


def _agents(drafts: list[Draft]) -> tuple[tuple[Discovered, ...], tuple[Problem, ...]]:
    found: dict[str, Discovered] = {}
    problems: list[Problem] = []
    for entry in (entry for draft in drafts for entry in draft.agents):
        wrong = list(_wrong_agent(entry, found))
        problems += wrong
        if not wrong:
            spec = spec_of(entry.values)
            assert isinstance(spec, AgentSpec), "an entry without anything wrong makes a spec"
            found[spec.id] = Discovered(spec, entry.origin)
    return tuple(found.values()), tuple(problems)


def _wrong_agent(entry: Entry, found: dict[str, Discovered]) -> Iterator[Problem]:
    if entry.problems:
        yield from (Problem(entry.origin, text, entry.id) for text in entry.problems)
        return
    subject = f"agent {entry.id!r}" if entry.id else entry.origin.key
    spec = spec_of(entry.values)
    if isinstance(spec, AgentSpec):
        if spec.id in found:
            yield Problem(
                entry.origin, f"agent {spec.id!r} is there already, in {found[spec.id].origin}; give one of them another id", spec.id
            )
        return
    for name, text in spec:
        # A sentence about the whole agent names it itself.
        yield Problem(entry.places.get(name, entry.origin), f"{subject}: {text}" if name else text, entry.id)


def _name(error: ErrorDetails) -> str:
    return str(error["loc"][0]) if error["loc"] else ""


def _told(error: ErrorDetails) -> str:
    name = ".".join(map(str, error["loc"]))
    # Arguments and metadata are the operator's, and may hold a password.
    return f"{name} {say(error, secret=_name(error) in {'args', 'metadata'})}".strip()


def _no_bool(model: type[BaseModel], name: str, value: object) -> bool:
    """Pydantic takes true for 1."""
    field = model.model_fields.get(name)
    return isinstance(value, bool) and field is not None and field.annotation in {int, float, int | None, float | None}


def _secret(name: str) -> bool:
    return isinstance(Settings.model_fields[name].default, SecretStr)
