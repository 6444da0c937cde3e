"""`orchestrator agent run`, beside what `commands.fleet` and `commands.rolling` have; law: an agent's worker is a Celery worker like any other, and takes all of its options."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import ValidationError

from orchestrator.commands.fleet import app
from orchestrator.commands.rolling import rolling_restart
from orchestrator.commands.running import become
from orchestrator.errors import AgentNotFound, DatabaseNotMigrated, DatabaseUnavailable, InvalidArgument
from orchestrator.fleet import Fleet
from orchestrator.settings import current
from orchestrator.works import agent_queue, type_queue
from schemas.agents import AgentSpec
from schemas.settings import Settings

__all__ = ["app"]

app.command("rolling-restart")(rolling_restart)

_PASS = {"ignore_unknown_options": True, "allow_extra_args": True}


@app.command("run", context_settings=_PASS)
def run(
    context: typer.Context,
    type_: Annotated[
        str, typer.Argument(metavar="TYPE", help="Class of work: an agent package, or a class of a module of ORCHESTRATOR_INCLUDE.")
    ],
    id_: Annotated[str, typer.Option("--id", help="Its id in the fleet; the type if none is given.")] = "",
    port: Annotated[int | None, typer.Option("--port", min=0, max=65535, help="Answer HTTP there; 0: on any free port.")] = None,
    concurrency: Annotated[int, typer.Option("--concurrency", "-c", min=0, help="Works at once; 0: as its spec says.")] = 0,
) -> None:
    """Run an agent in this process: a Celery worker that consumes work.TYPE and agent.ID. Other options go to `celery worker`."""
    try:
        wanted = AgentSpec(id=id_ or type_, type=type_)
    except ValidationError as error:
        raise InvalidArgument(f"{error.errors()[0]['loc'][0]} of an agent: {error.errors()[0]['msg']}") from None
    settings = current().model_copy(
        update={"agent_id": wanted.id, "agent_type": wanted.type, **({} if port is None else {"agent_port": port})}
    )
    at_once = concurrency or _known(settings, wanted).concurrency
    queues = f"{type_queue(wanted.type)},{agent_queue(wanted.id)}"
    alone = ["--without-mingle", "--without-gossip"]  # the store knows who is there: no second of the start goes into asking all others
    arguments = ["-Q", queues, "-n", f"{wanted.id}@%h", "-c", str(at_once), "-l", settings.log_level, *alone, *context.args]
    become("worker", arguments, settings=settings, quiet=True)


def _known(settings: Settings, wanted: AgentSpec) -> AgentSpec:
    """The spec that the fleet has; the plain one if it has none, or cannot say: the worker will tell what is wrong."""
    try:
        with Fleet(settings) as fleet:
            return fleet.get(wanted.id).spec
    except (AgentNotFound, DatabaseUnavailable, DatabaseNotMigrated):
        return wanted
