"""`orchestrator deadletter …`: look at what was set aside, send it back, or drop it; law: nothing is dropped that was not named."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator import dispatch, settings
from orchestrator.auditing import audited
from orchestrator.commands.printing import AsJson, actor, moment, put, put_json, put_table
from orchestrator.dispatch import CeleryBroker, celery_for
from orchestrator.errors import InvalidArgument
from orchestrator.store import Store, control
from schemas.runs import DeadLetter

LETTERS_MAX = 100_000  # replayed by one --all

app = typer.Typer(add_completion=False, no_args_is_help=True, help="What was set aside because it could not be processed.")


@app.command("list")
def list_(
    *,
    limit: Annotated[int, typer.Option(help="At most this many, newest first.", min=1, max=control.DEAD_LETTERS_PAGE_MAX)] = 100,
    as_json: AsJson = False,
) -> None:
    """List dead letters, newest first."""
    with Store.of(settings.current()) as store, store.transaction(readonly=True) as tx:
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
    with Store.of(settings.current()) as store, _acting(store, "drop", letter_ids), store.transaction(purpose="deadletters.drop") as tx:
        unknown = [letter_id for letter_id in letter_ids if not control.remove_dead_letter(tx, letter_id)]
        if unknown:
            raise InvalidArgument(f"there is no dead letter {', '.join(unknown)}; nothing was dropped")
    if as_json:
        put_json({"dropped": len(letter_ids)})
    else:
        put(f"{len(letter_ids)} dropped")


@app.command()
def replay(
    letter_ids: Annotated[list[str] | None, typer.Argument(metavar="ID...", help="The letters to send back.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    as_json: AsJson = False,
) -> None:
    """Send dead letters back to where they came from: an activity gets a fresh attempt in its run, a message goes to its queue.

    A run that is closed, or has taken its failure and gone on, is left alone, and its letter stays. Exit code 1 if any letter stays.
    """
    if everything == bool(letter_ids):
        raise InvalidArgument("name the letters to replay, or say --all.")
    found = settings.current()
    with Store.of(found) as store, _acting(store, "replay", letter_ids or ["--all"]):
        broker = CeleryBroker(celery_for(found), window_s=0.0)
        replayed = [dispatch.replay_letter(store, broker, letter_id) for letter_id in letter_ids or _all_ids(store)]
        broker.flush()
    done = sum(one.done for one in replayed)
    if as_json:
        letters = [{"id": one.letter_id, "replayed": one.done, "told": one.told} for one in replayed]
        put_json({"replayed": done, "stay": len(replayed) - done, "letters": letters})
    else:
        rows = [(one.letter_id, "replayed" if one.done else "stays", one.told) for one in replayed]
        put_table(("id", "", ""), rows, empty="no dead letters")
    raise typer.Exit(0 if done == len(replayed) else 1)


def _all_ids(store: Store) -> list[str]:
    ids: list[str] = []
    while len(ids) < LETTERS_MAX:
        with store.transaction(readonly=True) as tx:
            page = control.dead_letters(tx, limit=control.DEAD_LETTERS_PAGE_MAX, after_id=ids[-1] if ids else None)
        ids += [letter.id for letter in page]
        if len(page) < control.DEAD_LETTERS_PAGE_MAX:
            break
    return ids


def _acting(store: Store, what: str, letter_ids: Sequence[str]) -> AbstractContextManager[None]:
    target = letter_ids[0] if len(letter_ids) == 1 else f"{len(letter_ids)} letters"
    return audited(store, actor=actor(), action=f"deadletter.{what}", target=f"deadletter:{target}", params={"ids": list(letter_ids)})


def _row(letter: DeadLetter) -> tuple[str, str, str, str, str]:
    return letter.id, moment(letter.at), letter.kind, letter.run_id or "", letter.reason
