"""`orchestrator token …`: keys are shown once, listed without themselves, exchanged with an overlap, ended at once; all of it audited."""

from __future__ import annotations

import pytest

from orchestrator.store import Store, audit
from schemas.access import AuditFilter
from tests.test_cli import DEAD_BROKER, Shell


@pytest.fixture
def shell(tmp_path, sqlite_url, capsys, monkeypatch):
    return Shell(tmp_path, capsys, monkeypatch, database_url=sqlite_url, broker_url=DEAD_BROKER)


def entries(url):
    with Store.open(url).transaction(readonly=True) as tx:
        return audit.entries(tx, AuditFilter())


@pytest.mark.req("S1-26")
def test_a_key_lives_from_create_over_rotate_to_revoke(shell, sqlite_url):
    made = shell("token", "create", "ci", "--role", "operator", "--days", "30")
    key = made.stdout.strip()
    assert made.returncode == 0
    assert key.startswith("orch_")
    assert "not shown again" in made.stderr
    again = shell("token", "create", "ci")
    assert again.returncode == 1
    assert "token rotate ci" in again.stderr
    other = shell.json("token", "rotate", "ci", "--overlap", "60")
    assert (other["role"], other["token"] != key) == ("operator", True)
    listed = shell.json("token", "list")
    assert [token["valid"] for token in listed] == [True, True]
    assert key not in str(listed) + str(other)
    assert shell.json("token", "revoke", "ci") == {"revoked": 2}
    gone = shell("token", "revoke", "ci")
    assert gone.returncode == 1
    assert "'ci'" in gone.stderr
    assert shell("token", "list").stdout.count("revoked") == 2
    acts = [(entry.action, entry.outcome) for entry in entries(sqlite_url)][::-1]
    assert acts == [
        ("token.create", "ok"),
        ("token.create", "invalid_request"),
        ("token.rotate", "ok"),
        ("token.revoke", "ok"),
        ("token.revoke", "invalid_request"),
    ]
    assert all(entry.actor.startswith("cli:") for entry in entries(sqlite_url))


@pytest.mark.parametrize("words", [("create", "a\nb"), ("rotate", "nobody")])
def test_what_makes_no_sense_is_told_in_one_sentence(shell, words):
    done = shell("token", *words)
    assert done.returncode in {1, 2}
    assert done.stderr
    assert "Traceback" not in done.stderr
    assert shell.json("token", "list") == []
