"""The engine in thousands of small worlds, each from a seed; a seed that fails is a recording: `pytest tests/simulation --seed N`."""

from __future__ import annotations

import pytest

from tests.simulation.worlds import simulate


def test_every_seed_ends_well(request):
    only = request.config.getoption("--seed", default=None)
    seeds = range(request.config.getoption("--seeds", default=500)) if only is None else [only]
    for seed in seeds:
        simulate(seed)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_seed_is_a_recording(seed):
    assert simulate(seed).trace == simulate(seed).trace
