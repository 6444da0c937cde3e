"""Two real beats on a real broker: one of them is killed, and nothing that time brings is lost or done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from celery import Celery

from orchestrator.clock import SYSTEM
from orchestrator.store import Store, control
from schemas.history import TimerFired, TimerStarted
from tests.store.conftest import Desk
from tests.workers.pool_app import wait_until

ROOT = Path(__file__).resolve().parents[2]
LEASE_S = 2.0
TAKE_OVER_MAX_S = LEASE_S + 3.0  # processes are slow to be scheduled on a busy machine


class Beat:
    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def active(self) -> bool:
        return b"this beat is active" in self.log.read_bytes()

    @property
    def waiting(self) -> bool:
        return b"ready to take over" in self.log.read_bytes()


@contextmanager
def beat(number: int, folder: Path, **settings: str) -> Iterator[Beat]:
    log = folder / f"beat-{number}.log"
    environment = {**os.environ, **{f"ORCHESTRATOR_{name.upper()}": value for name, value in settings.items()}}
    with log.open("wb") as out:
        argv = [sys.executable, "-m", "celery", "-A", "tests.beat.beat_app", "beat", "-l", "info"]
        process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        yield Beat(process, log)
    except BaseException:
        print(log.read_text())
        raise
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.req("DC-04")
def test_when_the_active_beat_is_killed_the_other_fires_the_next_timer_within_seconds(store, desk, database_url, valkey, tmp_path):
    queue = f"tocks-{SYSTEM.fresh_id()}"
    common = {
        "database_url": database_url,
        "broker_url": valkey.url,
        "home": str(tmp_path),
        "default_queue": queue,
        "beat_lease_s": str(LEASE_S),
    }
    with beat(1, tmp_path, **common) as one, beat(2, tmp_path, **common) as two:
        wait_until(lambda: (one.active and two.waiting) or (two.active and one.waiting), "one is active, the other waits")
        active, other = (one, two) if one.active else (two, one)
        desk.running(TimerStarted(1, SYSTEM.now() + 0.5))
        assert fired(desk) == [TimerFired(1)]
        wait_until(lambda: runs_recorded(store) >= 2, "the entry has run twice")

        active.process.kill()
        killed_at = SYSTEM.monotonic()
        desk.running(TimerStarted(1, SYSTEM.now() + 0.1))
        assert fired(desk) == [TimerFired(1)]
        assert SYSTEM.monotonic() - killed_at < TAKE_OVER_MAX_S
        before = runs_recorded(store)
        wait_until(lambda: runs_recorded(store) >= before + 2, "the other goes on with the entry")

        other.process.send_signal(signal.SIGTERM)
        assert other.process.wait(10) == 0
        with store.transaction() as tx:
            assert control.take_lease(tx, "beat", "somebody else", 1.0), "who leaves in good order gives the lease back"
        # The kill may have come between sending and recording: at least once.
        assert runs_recorded(store) <= tocks(valkey.url, queue) <= runs_recorded(store) + 1


def fired(desk: Desk) -> list[object]:
    claimed = wait_until(desk.claim, "the run of the timer is ready")
    return [entry.arrival for entry in claimed[0].inbox]


def runs_recorded(store: Store) -> int:
    with store.transaction(readonly=True) as tx:
        return control.load_beat_entries(tx).get("tock", (None, 0))[1]


def tocks(url: str, queue: str) -> int:
    app = Celery("counter", broker=url, set_as_current=False)
    found = 0
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as waiting, suppress(waiting.Empty):
        while True:
            found += waiting.get_nowait().headers["task"] == "tock"
    return found
