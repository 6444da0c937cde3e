"""Settings from the environment and from configuration files into one frozen snapshot; law: nobody else reads the environment.

`ORCHESTRATOR_DATABASE_URL`, `ORCHESTRATOR_BROKER_URL` and so on, one per field of `schemas.settings.Settings`; a misspelt name is an error.
Lists are separated by commas, lists of paths as in PATH. `ORCHESTRATOR_CONFIG` names configuration files; the environment wins over what they say.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import SecretStr, ValidationError

from orchestrator import configuration
from orchestrator.configuration.documents import Unreadable
from orchestrator.configuration.sentences import say
from orchestrator.errors import SettingsError
from orchestrator.servers import valkey_url
from schemas.configuration import Configuration
from schemas.settings import Settings

log = logging.getLogger("orchestrator.settings")

PREFIX = "ORCHESTRATOR_"
CONFIG = f"{PREFIX}CONFIG"
OTHER_NAMES: Mapping[str, str] = {"MANAGER_TOKEN": "manager_token", "DRAIN_TIMEOUT_SECONDS": "drain_override_s"}
"""Variables that agents of other systems know already; ours win over them."""

_TUPLES = {name for name, field in Settings.model_fields.items() if isinstance(field.default, tuple)}
_PATHS = {"config", "package_folders"}


@lru_cache(maxsize=1)
def current() -> Settings:
    """The settings of this process, read once; what is doubtful or broken in its configuration files is logged."""
    settings = read_anew()
    told = configuration.read(settings.config)
    for problem in (*told.warnings, *told.problems):
        log.warning("%s", problem.sentence)
    return settings


def read_anew(**given: Any) -> Settings:  # noqa: ANN401 - pydantic validates them
    """Settings from the environment of this process, and from the configuration file of its working directory unless it names another."""
    return load(_with_found_file(os.environ), **given)


def read_with(files: Iterable[Path]) -> Settings:
    """Settings from the environment of this process and these files, whatever else it names."""
    return load({**os.environ, CONFIG: os.pathsep.join(map(str, files))})


def load(environment: Mapping[str, str], /, **given: Any) -> Settings:  # noqa: ANN401 - pydantic validates them
    """Settings from `environment` and the files that it names; `given` values win. Raises SettingsError that names the variable, or file and key."""
    found = configuration.read(_files(environment))
    if found.mistakes:
        raise SettingsError(_all_of(found))
    values = {**found.values, **{name: text for name, (_, text) in _variables(environment).items()}}
    values.update({key: value for key, value in given.items() if value is not None})
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(_sentence(error, environment)) from None
    return _with_urls(settings)


def files() -> tuple[Path, ...]:
    """The configuration files that hold for this process; raises SettingsError if two in the working directory compete."""
    return _files(_with_found_file(os.environ))


def origins() -> Mapping[str, str]:
    """Where the settings of this process that are not at their default come from: field -> variable, or file and line."""
    environment = _with_found_file(os.environ)
    files = {name: str(origin) for name, origin in configuration.read(_files(environment)).origins.items()}
    return {**files, **{name: variable for name, (variable, _) in _variables(environment).items()}}


def environment(settings: Settings) -> dict[str, str]:
    """The environment for a child process: ours, and in it what makes the child load these very settings."""
    inherited = {key: text for key, text in os.environ.items() if not key.startswith(PREFIX) and key not in OTHER_NAMES}
    # Also what was set to its default, and that there is no file: the child may find one that says something else.
    chosen = {name: value for name in settings.model_fields_set | {"home", "config"} if (value := getattr(settings, name)) is not None}
    texts = {name: _text(name, value) for name, value in chosen.items()}
    return inherited | {f"{PREFIX}{name.upper()}": text for name, text in texts.items()}


def embedded_broker(settings: Settings) -> bool:
    """Whether the broker is the one that `orchestrator dev` starts in the home folder."""
    return settings.broker_url == valkey_url(settings.home.absolute() / "valkey")


def embedded_database(settings: Settings) -> bool:
    """Whether the database is the SQLite file of the home folder, which is nobody else's."""
    return settings.database_url == load({}, home=settings.home).database_url


def _with_urls(settings: Settings) -> Settings:
    home = settings.home.absolute()
    urls = {}
    if not settings.database_url:
        urls["database_url"] = f"sqlite:///{home / 'orchestrator.db'}"
    if not settings.broker_url:
        urls["broker_url"] = valkey_url(home / "valkey")
    return settings.model_copy(update=urls) if urls else settings


def _field(key: str) -> str:
    name = key.removeprefix(PREFIX).lower()
    if name not in Settings.model_fields:
        close = difflib.get_close_matches(name, Settings.model_fields, n=1)
        hint = f"; did you mean {PREFIX}{close[0].upper()}?" if close else ""
        message = f"the environment variable {key} is no setting of ours{hint}"
        raise SettingsError(message)
    return name


def _with_found_file(environment: Mapping[str, str]) -> Mapping[str, str]:
    if CONFIG in environment:
        return environment
    try:
        found = configuration.find(Path.cwd())
    except Unreadable as error:
        raise SettingsError(error.message) from None
    return {**environment, CONFIG: os.pathsep.join(str(path.relative_to(Path.cwd())) for path in found)} if found else environment


def _files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    return tuple(map(Path, _split("config", environment.get(CONFIG, ""))))


def _variables(environment: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    """Field -> the variable that says it, and what it says."""
    found: dict[str, tuple[str, Any]] = {name: (key, environment[key]) for key, name in OTHER_NAMES.items() if environment.get(key)}
    for key, text in environment.items():
        if key.startswith(PREFIX):
            name = _field(key)
            found[name] = (key, _split(name, text) if name in _TUPLES else text)
    return found


def _all_of(found: Configuration) -> str:
    first, *others = found.mistakes
    more = f" ({len(others)} more: `orchestrator config check` shows them)" if others else ""
    return f"{first.sentence}{more}"


def _split(name: str, text: str) -> tuple[str, ...]:
    parts = text.split(os.pathsep if name in _PATHS else ",")
    return tuple(part.strip() for part in parts if part.strip())


def _text(name: str, value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, Path):
        return str(value.absolute())
    if name in _PATHS and isinstance(value, tuple):
        return os.pathsep.join(str(path.absolute()) for path in value)
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value)


def _sentence(error: ValidationError, environment: Mapping[str, str]) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return f"the settings contradict each other: {first['msg'].removeprefix('Value error, ')}"
    name = str(first["loc"][0])
    secret = name in Settings.model_fields and isinstance(Settings.model_fields[name].default, SecretStr)
    variable, _ = _variables(environment).get(name, (f"{PREFIX}{name.upper()}", ""))
    return f"setting {name} ({variable}) {say(first, secret=secret)}"
