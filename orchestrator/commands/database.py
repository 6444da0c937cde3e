"""`orchestrator db …`: the schema of the database; law: looking changes nothing, and an upgrade may be repeated."""

from __future__ import annotations

from pathlib import Path

import typer

from orchestrator import settings
from orchestrator.commands.printing import AsJson, put, put_json
from orchestrator.errors import DatabaseUnavailable
from orchestrator.store import Store, health

app = typer.Typer(add_completion=False, no_args_is_help=True, help="The schema of the database: status, upgrade.")


@app.command()
def upgrade(*, as_json: AsJson = False) -> None:
    """Create or migrate the schema; workers of the version before go on working meanwhile."""
    with _store(make_home=True) as store:
        before = health.schema_state(store).current
        store.upgrade()
        after = health.schema_state(store).current
    if as_json:
        put_json({"database": str(store), "before": before, "after": after})
    else:
        put(f"{store}: " + (f"is at {after} already" if before == after else f"upgraded from {before or 'nothing'} to {after}"))


@app.command()
def status(*, as_json: AsJson = False) -> None:
    """Whether the schema is what this version needs; exit code 1 if not."""
    with _store(make_home=False) as store:
        state = health.schema_state(store)
    if as_json:
        put_json({"database": str(store), "current": state.current, "needed": state.needed, "ok": state.usable})
    else:
        verdict = "ok" if state.usable else "run `orchestrator db upgrade`"
        put(f"{store}: at {state.current or 'nothing'}, this version needs {state.needed}: {verdict}")
    if not state.usable:
        raise typer.Exit(1)


def _store(*, make_home: bool) -> Store:
    found = settings.current()
    if settings.embedded_database(found):
        if make_home:
            try:
                found.home.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseUnavailable(f"the folder {found.home.absolute()} cannot be made: {error.strerror}") from error
        elif not Path(found.home).is_dir():
            raise DatabaseUnavailable(
                f"there is no database yet in {found.home.absolute()}. `orchestrator dev` makes one; ORCHESTRATOR_DATABASE_URL names another."
            )
    return Store.of(found)
