"""For tests of the language: the guard is on, as in a worker, and every run leaves memory as it does there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator.core import guard
from tests.core.twin import Twin


@pytest.fixture(autouse=True)
def runs_leave_memory() -> Iterator[None]:
    guard.install()
    yield
    Twin.close_all()
