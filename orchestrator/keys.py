"""Keys to the management API, made and recognised; law: who has the hash has no key."""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "orch_"  # so that scanners of repositories find keys that were committed
BYTES = 32


def fresh() -> str:
    """A new key."""
    return PREFIX + secrets.token_urlsafe(BYTES)


def hashed(key: str) -> str:
    """What the store keeps of a key: it is long and random, so that a plain hash cannot be guessed back."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
