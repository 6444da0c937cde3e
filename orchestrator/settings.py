"""Settings from the environment into one frozen snapshot; law: nobody else reads the environment.

`ORCHESTRATOR_DATABASE_URL`, `ORCHESTRATOR_BROKER_URL` and so on, one per field of `schemas.settings.Settings`; a misspelt name is an error.
Lists are separated by commas, lists of paths as in PATH.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from pydantic import SecretStr, ValidationError

from orchestrator.errors import SettingsError
from orchestrator.servers import valkey_url
from schemas.settings import Settings, masked

PREFIX = "ORCHESTRATOR_"
OTHER_NAMES: Mapping[str, str] = {"MANAGER_TOKEN": "manager_token", "DRAIN_TIMEOUT_SECONDS": "drain_override_s"}
"""Variables that agents of other systems know already; ours win over them."""

_TUPLES = {name for name, field in Settings.model_fields.items() if isinstance(field.default, tuple)}
_PATHS = {"config", "package_folders"}


@lru_cache(maxsize=1)
def current() -> Settings:
    """The settings of this process, read once."""
    return load(os.environ)


def load(environment: Mapping[str, str], /, **given: Any) -> Settings:  # noqa: ANN401 - pydantic validates them
    """Settings from `environment`; `given` values win. Raises SettingsError that names the variable."""
    values: dict[str, Any] = {name: environment[key] for key, name in OTHER_NAMES.items() if environment.get(key)}
    for key, text in environment.items():
        if key.startswith(PREFIX):
            name = _field(key)
            values[name] = _split(name, text) if name in _TUPLES else text
    values.update({key: value for key, value in given.items() if value is not None})
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(_sentence(error, environment)) from None
    return _with_urls(settings)


def environment(settings: Settings) -> dict[str, str]:
    """The environment for a child process: ours, and in it what makes the child load these very settings."""
    inherited = {key: text for key, text in os.environ.items() if not key.startswith(PREFIX) and key not in OTHER_NAMES}
    absolute = {"home": settings.home.absolute(), **{name: tuple(p.absolute() for p in getattr(settings, name)) for name in _PATHS}}
    chosen = settings.model_copy(update=absolute)
    # Also what was set to its default: a configuration file may say something else.
    texts = {name: _text(name, getattr(chosen, name)) for name in chosen.model_fields_set if getattr(chosen, name) is not None}
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


def _split(name: str, text: str) -> tuple[str, ...]:
    parts = text.split(os.pathsep if name in _PATHS else ",")
    return tuple(part.strip() for part in parts if part.strip())


def _text(name: str, value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return (os.pathsep if name in _PATHS else ",").join(map(str, value))
    return str(value)


def _sentence(error: ValidationError, environment: Mapping[str, str]) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return f"the settings contradict each other: {first['msg'].removeprefix('Value error, ')}"
    name = str(first["loc"][0])
    variable = f"{PREFIX}{name.upper()}"
    variable = next(
        (key for key, field in OTHER_NAMES.items() if field == name and key in environment and variable not in environment), variable
    )
    got = "" if isinstance(Settings.model_fields[name].default, SecretStr) else f" (got {masked(first['input'])!r})"
    return f"setting {name} ({variable}) is not valid: {first['msg']}{got}"
