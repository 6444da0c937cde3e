"""Garbage collections in a worker: fewer, unless that is not ours to decide."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from schemas.settings import Settings
from workers import garbage

PROGRAM = """
import gc
from schemas.settings import Settings
from workers.garbage import calm
{before}
print(calm(Settings(calm_collector={switch})), gc.get_threshold()[0], gc.get_freeze_count() > 10_000)
"""


@pytest.mark.parametrize(
    "before, switch, said",
    [
        ("gc.set_threshold(700, 10, 10)", True, "True 10000 True"),
        ("gc.set_threshold(700, 10, 10)", False, "False 700 False"),
        ("gc.set_threshold(50_000)", True, "False 50000 False"),
        ("gc.set_threshold(0)", True, "False 0 False"),
        ("gc.set_threshold(700); gc.disable()", True, "False 700 False"),
    ],
    ids=["as a rule", "switched off", "raised by others", "never by threshold", "disabled"],
)
def test_a_worker_collects_less_often_unless_somebody_has_decided_otherwise(before, switch, said):
    program = PROGRAM.format(before=before, switch=switch)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said


def test_a_worker_inside_somebodys_program_leaves_its_collector_alone():
    calmed = []
    thread = threading.Thread(target=lambda: calmed.append(garbage.calm(Settings())))
    thread.start()
    thread.join()
    assert calmed == [False]
