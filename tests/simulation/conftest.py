"""How many seeds, or which one."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=500, help="how many worlds the simulation goes through")
    parser.addoption("--seed", type=int, default=None, help="only this one, with its trace")
