"""`orchestrator token …`: keys to the management API; law: a key is shown once, when it is made, and never again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator import keys, settings
from orchestrator.auditing import audited
from orchestrator.clock import SYSTEM
from orchestrator.commands.printing import AsJson, actor, moment, notes, put, put_json, put_table
from orchestrator.errors import InvalidArgument
from orchestrator.store import Store, Transaction, tokens
from schemas.access import ApiToken, Role

DAY_S = 86_400.0
DAYS_MAX = 3650
OVERLAP_S = 3600.0
NAME_CHARACTERS_MAX = 100

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Keys to the management API: create, list, rotate, revoke.")

Name = Annotated[str, typer.Argument(help="Whose key it is; the audit says token:NAME.")]
Days = Annotated[float | None, typer.Option(help="Days until it expires; never if not given.", min=0.0001, max=DAYS_MAX)]


@app.command()
def create(
    name: Name,
    *,
    role: Annotated[Role, typer.Option(help="What its bearer may do.")] = Role.VIEWER,
    days: Days = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is shown now and never again: the store keeps its hash."""
    if not name.isprintable() or not name.strip() or len(name) > NAME_CHARACTERS_MAX:
        raise InvalidArgument(f"a name has from 1 to {NAME_CHARACTERS_MAX} printable characters, not {name!r}")
    with _acting("token.create", name, {"role": str(role), "days": days}) as store, store.transaction(purpose="tokens.create") as tx:
        if tokens.named(tx, name) is not None:
            raise InvalidArgument(f"{name!r} has a key; `orchestrator token rotate {name}` makes another one, `revoke` ends it")
        key, _ = _added(tx, name, role, days)
    _show(key, name, role, as_json=as_json)


@app.command()
def rotate(
    name: Name,
    *,
    overlap: Annotated[float, typer.Option(help="Seconds for which the keys before it still count.", min=0, max=30 * DAY_S)] = OVERLAP_S,
    days: Days = None,
    as_json: AsJson = False,
) -> None:
    """Make another key of the same name and role; the one before ends after the overlap."""
    with _acting("token.rotate", name, {"overlap": overlap, "days": days}) as store, store.transaction(purpose="tokens.rotate") as tx:
        known = tokens.named(tx, name)
        if known is None:
            raise InvalidArgument(f"{name!r} has no valid key; `orchestrator token create` makes one")
        key, token_id = _added(tx, name, known.role, days)
        tokens.expire_others(tx, name, keep=token_id, left_s=overlap)
    _show(key, name, known.role, as_json=as_json)


@app.command()
def revoke(
    which: Annotated[str, typer.Argument(metavar="NAME|ID", help="The key, or all keys of a name.")], *, as_json: AsJson = False
) -> None:
    """End keys at once."""
    with _acting("token.revoke", which, {}) as store, store.transaction(purpose="tokens.revoke") as tx:
        count = tokens.revoke(tx, which)
        if not count:
            raise InvalidArgument(f"no valid key is called {which!r}; `orchestrator token list` shows those there are")
    if as_json:
        put_json({"revoked": count})
    else:
        put(f"{count} revoked")


@app.command("list")
def list_(*, as_json: AsJson = False) -> None:
    """List keys, newest first, without the keys."""
    with Store.of(settings.current()) as store, store.transaction(readonly=True) as tx:
        found = tokens.listed(tx)
    if as_json:
        put_json([asdict(token) for token in found])
    else:
        put_table(("id", "name", "role", "created", "expires", "last used", ""), map(_row, found), empty="no tokens")


@contextmanager
def _acting(action: str, target: str, params: dict[str, object]) -> Iterator[Store]:
    with Store.of(settings.current()) as store, audited(store, actor=actor(), action=action, target=f"token:{target}", params=params):
        yield store


def _added(tx: Transaction, name: str, role: Role, days: float | None) -> tuple[str, str]:
    """A new key, and its id."""
    key, token_id = keys.fresh(), SYSTEM.fresh_id()
    tokens.add(tx, id=token_id, name=name, role=role, hash=keys.hashed(key), ttl_s=None if days is None else days * DAY_S)
    return key, token_id


def _show(key: str, name: str, role: Role, *, as_json: bool) -> None:
    if as_json:
        put_json({"token": key, "name": name, "role": str(role)})
    else:
        put(key)
        notes.print(f"This is the key of {name} ({role}). Keep it: it is not shown again.", markup=False)


def _row(token: ApiToken) -> tuple[str, ...]:
    state = "" if token.valid else "revoked" if token.revoked_at is not None else "expired"
    return token.id, token.name, str(token.role), moment(token.created_at), moment(token.expires_at), moment(token.last_used_at), state
