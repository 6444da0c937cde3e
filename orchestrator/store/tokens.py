"""Keys to the API; law: the store keeps hashes, so that who reads the database cannot use a key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.store.transaction import Transaction
from schemas.access import ApiToken, Role

LIST_MAX = 1000
USED_EVERY_S = 60.0  # how exactly the last use is known

_COLUMNS = (
    "id, name, role, created_at, expires_at, revoked_at, last_used_at,"
    " revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {now}) AS valid"
)
_ADD = """
INSERT INTO api_tokens (id, name, role, hash, created_at, expires_at, revoked_at, last_used_at)
VALUES (:id, :name, :role, :hash, {now}, {now} + :ttl_s, NULL, NULL)
"""
_EXPIRE = """
UPDATE api_tokens SET expires_at = {now} + :left_s
WHERE name = :name AND id <> :keep AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {now} + :left_s) RETURNING id
"""
_REVOKE = """
UPDATE api_tokens SET revoked_at = {now}
WHERE (id = :which OR name = :which) AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > {now}) RETURNING id
"""
_USED = "UPDATE api_tokens SET last_used_at = {now} WHERE id = :id AND (last_used_at IS NULL OR last_used_at < {now} - :every_s)"


def add(tx: Transaction, *, id: str, name: str, role: Role, hash: str, ttl_s: float | None = None) -> None:  # noqa: A002 - the columns' names
    """Enter a key by its hash; it is good for `ttl_s`, or until it is revoked."""
    tx.run(_ADD, id=id, name=name, role=str(role), hash=hash, ttl_s=None if ttl_s is None else float(ttl_s))


def by_hash(tx: Transaction, hash: str) -> ApiToken | None:  # noqa: A002 - the column's name
    """The key with this hash, valid or not."""
    return _first(tx.run(f"SELECT {_COLUMNS} FROM api_tokens WHERE hash = :hash", hash=hash))  # noqa: S608 - columns of our own


def by_id(tx: Transaction, token_id: str) -> ApiToken | None:
    """The key with this id, valid or not."""
    return _first(tx.run(f"SELECT {_COLUMNS} FROM api_tokens WHERE id = :id", id=token_id))  # noqa: S608 - columns of our own


def listed(tx: Transaction) -> list[ApiToken]:
    """All keys, the newest first."""
    sentence = f"SELECT {_COLUMNS} FROM api_tokens ORDER BY created_at DESC, id DESC LIMIT :most"  # noqa: S608 - columns of our own
    return [_token(row) for row in tx.run(sentence, most=LIST_MAX)]


def named(tx: Transaction, name: str) -> ApiToken | None:
    """The newest valid key of that name."""
    return next((token for token in listed(tx) if token.name == name and token.valid), None)


def expire_others(tx: Transaction, name: str, *, keep: str, left_s: float) -> int:
    """Let the other keys of a name end in `left_s` at the latest; return how many."""
    return len(tx.run(_EXPIRE, name=name, keep=keep, left_s=float(left_s)))


def revoke(tx: Transaction, which: str) -> int:
    """End the keys with this id or name at once; return how many were valid."""
    return len(tx.run(_REVOKE, which=which))


def used(tx: Transaction, token_id: str) -> None:
    """Remember that a key was used, to the minute."""
    tx.run(_USED, id=token_id, every_s=USED_EVERY_S)


def _first(rows: Sequence[Sequence[Any]]) -> ApiToken | None:
    return _token(rows[0]) if rows else None


def _token(row: Sequence[Any]) -> ApiToken:
    id_, name, role, created_at, expires_at, revoked_at, last_used_at, valid = row
    return ApiToken(id_, name, Role(role), created_at, expires_at, revoked_at, last_used_at, bool(valid))
