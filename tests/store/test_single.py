"""Single transactions: one statement on PostgreSQL, all or nothing; and the hints that come with them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.store import Unmet, runs, turns
from tests.store.conftest import QUEUE

HEARD_MAX_S = 5.0


def test_a_single_commit_with_a_broken_fence_writes_nothing(store, desk):
    desk.start("w")
    (claimed,) = desk.claim()
    stale = replace(desk.closing(claimed), epoch=claimed.epoch - 1)
    try:
        with store.transaction(single=True) as tx:
            assert turns.commit(tx, [stale], worker=desk.worker, build="").lost == {claimed.run_id}
            assert store.dialect == "sqlite", "PostgreSQL cannot say which turn was lost"
    except Unmet:
        assert store.dialect == "postgresql"
    assert desk.count("turns") == 0
    assert not desk.commit(desk.closing(claimed))


def test_a_plain_start_of_an_id_in_use_writes_nothing_of_its_batch(store, desk):
    desk.start("taken")
    new = [desk.new("free", queue=QUEUE), desk.new("taken", queue=QUEUE)]
    assert runs.is_plain(new)
    with pytest.raises(Unmet), store.transaction(single=True) as tx:
        runs.start_plain(tx, new)
    assert desk.count("runs") == desk.count("inbox") == 1


def test_whoever_listens_is_told_that_a_run_has_closed(store, desk):
    ear = store.listen()
    if ear is None:
        assert store.dialect == "sqlite"
        return
    desk.start("w")
    (claimed,) = desk.claim()
    assert not desk.commit(desk.closing(claimed))
    assert ear.hears(HEARD_MAX_S)
    ear.close()
