"""For tests of the language: the guard is on, as in a worker, every run leaves memory as it does there, and names are free again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.core import definitions, guard
from tests.core.twin import Twin


@pytest.fixture(autouse=True)
def runs_leave_memory() -> Iterator[None]:
    guard.install()
    workflows, activities = dict(definitions.WORKFLOWS), dict(definitions.ACTIVITIES)
    yield
    Twin.close_all()
    for known, before in ((definitions.WORKFLOWS, workflows), (definitions.ACTIVITIES, activities)):
        for name in known.keys() - before.keys():
            del known[name]
