"""Keys are found by their hash, end at their time, and go when they are revoked."""

from __future__ import annotations

import pytest

from orchestrator.store import tokens
from schemas.access import Role


def added(store, id_, name="ci", role=Role.VIEWER, ttl_s=None):
    with store.transaction() as tx:
        tokens.add(tx, id=id_, name=name, role=role, hash=f"hash of {id_}", ttl_s=ttl_s)


def found(store, id_):
    with store.transaction(readonly=True) as tx:
        token = tokens.by_hash(tx, f"hash of {id_}")
        assert token == tokens.by_id(tx, id_)
    return token


def test_a_key_is_valid_until_it_is_revoked(store):
    added(store, "t1", role=Role.OPERATOR)
    assert found(store, "t1").valid
    assert found(store, "t1").role is Role.OPERATOR
    with store.transaction() as tx:
        assert tokens.revoke(tx, "t1") == 1
        assert tokens.revoke(tx, "t1") == 0
    assert not found(store, "t1").valid
    assert found(store, "other") is None


def test_a_key_ends_at_its_time(store):
    added(store, "t1", ttl_s=-1)
    added(store, "t2", ttl_s=3600)
    assert not found(store, "t1").valid
    assert found(store, "t2").valid


@pytest.mark.req("S1-26")
def test_the_key_before_goes_on_for_the_overlap_and_no_longer(store):
    added(store, "old")
    added(store, "short", ttl_s=60)
    added(store, "new")
    with store.transaction() as tx:
        assert tokens.expire_others(tx, "ci", keep="new", left_s=3600) == 1
        newest = tokens.named(tx, "ci")
    assert newest is not None
    assert newest.id == "new"
    assert found(store, "old").valid
    assert found(store, "old").expires_at is not None
    assert found(store, "new").expires_at is None
    with store.transaction() as tx:
        assert tokens.expire_others(tx, "ci", keep="new", left_s=0) == 2
    assert not found(store, "old").valid
    assert not found(store, "short").valid


def test_the_last_use_is_known_to_the_minute(store):
    added(store, "t1")
    with store.transaction() as tx:
        tokens.used(tx, "t1")
    first = found(store, "t1").last_used_at
    assert first is not None
    with store.transaction() as tx:
        tokens.used(tx, "t1")
    assert found(store, "t1").last_used_at == first
