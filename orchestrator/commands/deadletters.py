"""`orchestrator deadletter …`: look at what was set aside, and drop it; law: nothing is dropped that was not named."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator import settings
from orchestrator.commands.printing import AsJson, moment, put, put_json, put_table
from orchestrator.errors import InvalidArgument
from orchestrator.store import Store, control
from schemas.runs import DeadLetter

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What was set aside because it could not be processed.")


@app.command("list")
def list_(
    *,
    limit: Annotated[int, typer.Option(help="At most this many, newest first.", min=1, max=control.DEAD_LETTERS_PAGE_MAX)] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first."""
    with Store.open(settings.current().database_url).transaction(readonly=True) as tx:
        letters = control.dead_letters(tx, limit=limit)
    if as_json:
        put_json([asdict(letter) for letter in letters])
    else:
        put_table(("id", "at", "kind", "of run", "reason"), map(_row, letters), empty="no dead letters")


@app.command()
def drop(
    letter_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="The letters to drop for good.")], *, as_json: AsJson = False
) -> None:
    """Drop dead letters for good."""
    with Store.open(settings.current().database_url).transaction(purpose="deadletters.drop") as tx:
        unknown = [letter_id for letter_id in letter_ids if not control.remove_dead_letter(tx, letter_id)]
        if unknown:
            raise InvalidArgument(f"there is no dead letter {', '.join(unknown)}; nothing was dropped")
    if as_json:
        put_json({"dropped": len(letter_ids)})
    else:
        put(f"{len(letter_ids)} dropped")


def _row(letter: DeadLetter) -> tuple[str, str, str, str, str]:
    return letter.id, moment(letter.at), letter.kind, letter.run_id or "", letter.reason
