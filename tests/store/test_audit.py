"""The audit is appended to, listed newest first, and knows no secrets."""

from __future__ import annotations

import pytest

from orchestrator.store import audit
from schemas.access import AuditFilter


def filled(store, count=5):
    with store.transaction() as tx:
        for number in range(count):
            audit.append(
                tx, actor=f"token:{number % 2}", action="agent.pause", target=f"agent:a{number}", outcome="ok" if number else "forbidden"
            )


def listed(store, **wanted):
    with store.transaction(readonly=True) as tx:
        return audit.entries(tx, AuditFilter(**wanted))


@pytest.mark.req("S2-42")
def test_entries_come_newest_first_and_page_by_page(store):
    filled(store)
    first = listed(store, limit=2)
    assert [entry.target for entry in first] == ["agent:a4", "agent:a3"]
    assert [entry.target for entry in listed(store, before=int(first[-1].id))] == ["agent:a2", "agent:a1", "agent:a0"]


def test_a_filter_narrows_by_actor_action_target_outcome_and_time(store):
    filled(store)
    assert [entry.target for entry in listed(store, outcome="forbidden")] == ["agent:a0"]
    assert [entry.target for entry in listed(store, actor="token:1")] == ["agent:a3", "agent:a1"]
    assert [entry.actor for entry in listed(store, target="agent:a2", action="agent.pause")] == ["token:0"]
    at = listed(store)[2].at
    assert listed(store, until=at - 3600) == listed(store, since=at + 3600) == []
    assert len(listed(store, since=at - 3600, until=at + 3600)) == 5


@pytest.mark.req("S2-42")
def test_secrets_are_masked_however_deep_and_long_values_are_cut(store):
    params = {
        "name": "x" * 600,
        "X-Manager-Token": "s3cret",
        "nested": [{"password": "s3cret", "broker_url": "redis://me:s3cret@host/0"}],
        "apiKey": {"deep": "s3cret"},
        "many": list(range(100)),
    }
    with store.transaction() as tx:
        audit.append(tx, actor="a", action="b", target="c", params=params)
    (entry,) = listed(store)
    assert "s3cret" not in str(entry)
    assert entry.params["nested"][0] == {"password": "***", "broker_url": "redis://me:***@host/0"}
    assert len(entry.params["name"]) < 600
    assert len(entry.params["many"]) == 51


def test_an_entry_takes_whatever_a_refused_caller_has_written(store):
    with store.transaction() as tx:
        audit.append(tx, actor="\0\ud800", action="b", target="x" * 10_000, params={"\0": "a\0b\ud800"})
    (entry,) = listed(store)
    assert "\0" not in entry.actor
    assert len(entry.target) == 500
