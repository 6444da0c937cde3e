"""`orchestrator worker | beat | flower`: become the Celery command; law: every argument that Celery knows works here too."""

from __future__ import annotations

import os
import sys

import typer

from orchestrator.settings import environment
from schemas.settings import Settings

OURS = "orchestrator"
APP_OPTIONS = ("-A", "--app")


def become(command: str, arguments: list[str], *, settings: Settings | None = None, quiet: bool = False) -> None:
    """Replace this process by `celery -A … command …`; -A may name an application of yours that has an Orchestrator.

    With `settings` it runs with those. A quiet one prints no banner.
    """
    app, rest = _split_app(arguments)
    argv = [sys.executable, "-m", "celery", *(["-q"] if quiet else []), "-A", app, command, *rest]
    sys.stdout.flush()
    sys.stderr.flush()
    if settings is None:
        os.execv(argv[0], argv)  # noqa: S606 - no shell, and the interpreter is our own
    os.execve(argv[0], argv, environment(settings))  # noqa: S606 - as above


def worker(context: typer.Context) -> None:
    """Answer doorbells: take turns, run activities. All options of `celery worker`, for example -Q, -c, -n."""
    become("worker", list(context.args))


def beat(context: typer.Context) -> None:
    """Fire what is due: timers, timeouts, schedules. Several may run, one acts. All options of `celery beat`."""
    become("beat", list(context.args))


def flower(context: typer.Context) -> None:
    """Celery's own dashboard. All options of `celery flower`."""
    become("flower", list(context.args))


def _split_app(arguments: list[str]) -> tuple[str, list[str]]:
    rest = list(arguments)
    for at, word in enumerate(rest):
        option, equals, name = word.partition("=")
        if option in APP_OPTIONS and equals:
            return name, rest[:at] + rest[at + 1 :]
        if word in APP_OPTIONS and at + 1 < len(rest):
            return rest[at + 1], rest[:at] + rest[at + 2 :]
    return OURS, rest


# --help is for Celery to answer.
_PASS = {"ignore_unknown_options": True, "allow_extra_args": True, "allow_interspersed_args": False, "help_option_names": []}

worker_app, beat_app, flower_app = (typer.Typer(add_completion=False) for _ in range(3))
worker_app.command("worker", context_settings=_PASS)(worker)
beat_app.command("beat", context_settings=_PASS)(beat)
flower_app.command("flower", context_settings=_PASS)(flower)
