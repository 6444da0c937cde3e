"""The command line; law: what a user can do wrong is one sentence on stderr, and asking for help costs nothing.

A command lives in a module of `orchestrator.commands` and is imported when it is called. This module knows only the table below: the name of
each command, where it is, and the line that `--help` shows. So help needs neither Celery nor SQLAlchemy, and takes a tenth of a second.

Exit codes: 0 done, 1 it failed (or, for `doctor`, something is not in order), 2 the command was not understood, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from orchestrator.errors import OrchestratorError

FAILED = 1
INTERRUPTED = 130


@dataclass(frozen=True)
class Place:
    """Where a command is: a module of `orchestrator.commands`, the Typer in it, and its line in the help."""

    module: str
    help: str
    name: str = "app"


COMMANDS: Mapping[str, Place] = {
    "demo": Place("demonstration", "Watch a workflow survive the death of its worker."),
    "dev": Place("development", "The whole stack on this machine: broker, store, workers, beat, flower, API."),
    "worker": Place("running", "Run a worker (celery worker).", "worker_app"),
    "beat": Place("running", "Run beat: timers, timeouts, schedules (celery beat).", "beat_app"),
    "flower": Place("running", "Run Celery's dashboard (celery flower).", "flower_app"),
    "api": Place("serving", "Serve the management API."),
    "token": Place("tokens", "Keys to the management API: create, list, rotate, revoke."),
    "workflow": Place("workflows", "Start, list, inspect, signal, query and end workflows."),
    "agent": Place("agents", "The fleet: run, list, show, pause, resume, stop, restart, rolling-restart, flush, scale, logs."),
    "deadletter": Place("deadletters", "What was set aside because it could not be processed."),
    "db": Place("database", "The schema of the database: status, upgrade."),
    "config": Place("configuration", "What holds here and where it comes from; check configuration files."),
    "doctor": Place("doctor", "Check everything that is needed, and say how to mend it."),
    "version": Place("version", "The versions of this program and what it stands on."),
}


class Commands(TyperGroup):
    """The commands of the table: lines for the help, and the real ones when they are called."""

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - Typer's options, handed on
        super().__init__(**options)
        self.commands.update({name: TyperCommand(name, help=place.help) for name, place in COMMANDS.items()})

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - a click.Context; newer versions of Typer bring their own
        """The real command, imported now."""
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None and command is not None:
            place = COMMANDS[name]
            command = typer.main.get_command(getattr(import_module(f"orchestrator.commands.{place.module}"), place.name))
            command.name = name
        return name, command, rest


app = typer.Typer(cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback(context_settings={"help_option_names": ["-h", "--help"]})
def orchestrator() -> None:
    """Durable workflows and agent fleets on Celery.

    Settings come from the environment (ORCHESTRATOR_DATABASE_URL, ORCHESTRATOR_BROKER_URL, …) and from fleet.yaml, .toml or .json in this folder or the one
    that ORCHESTRATOR_CONFIG names. `orchestrator config show` lists them.
    Without them everything lives in the folder .orchestrator, and `orchestrator dev` starts it.
    """


def main() -> None:
    """The entry of the `orchestrator` script."""
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - a text, as Python itself puts it there; modules of --include are found here
    try:
        app(prog_name="orchestrator")
    except OrchestratorError as error:
        sys.stderr.write(f"error: {error.message}\n")
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
