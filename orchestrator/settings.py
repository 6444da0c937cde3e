"""Settings from the environment into one frozen snapshot; law: nobody else reads the environment.

`ORCHESTRATOR_DATABASE_URL`, `ORCHESTRATOR_BROKER_URL` and so on, one per field of `schemas.settings.Settings`; a misspelt name is an error.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import SettingsError
from orchestrator.servers import valkey_url
from schemas.settings import Settings

PREFIX = "ORCHESTRATOR_"


@lru_cache(maxsize=1)
def current() -> Settings:
    """The settings of this process, read once."""
    return load(os.environ)


def load(environment: Mapping[str, str], **given: Any) -> Settings:  # noqa: ANN401 - pydantic validates them
    """Settings from `environment`; `given` values win. Raises SettingsError that names the variable."""
    values: dict[str, Any] = {}
    for key, text in environment.items():
        if key.startswith(PREFIX):
            values[_field(key)] = _split(key, text)
    values.update({key: value for key, value in given.items() if value is not None})
    try:
        settings = Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        message = f"setting {name} ({PREFIX}{name.upper()}) is not valid: {first['msg']} (got {first['input']!r})"
        raise SettingsError(message) from None
    return _with_urls(settings)


def environment(settings: Settings) -> dict[str, str]:
    """The environment for a child process: ours, and in it what makes the child load these very settings."""
    inherited = {key: text for key, text in os.environ.items() if not key.startswith(PREFIX)}
    chosen = settings.model_copy(update={"home": settings.home.absolute()}).model_dump(exclude_defaults=True)
    texts = {key: ",".join(value) if isinstance(value, tuple) else str(value) for key, value in chosen.items()}
    return inherited | {f"{PREFIX}{key.upper()}": text for key, text in texts.items()}


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


def _split(key: str, text: str) -> str | tuple[str, ...] | Path:
    if _field(key) == "include":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text
