"""The engine in hundreds of small worlds, each from a seed; a seed that fails is a recording: `pytest tests/simulation --seed N`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation import scenarios
from tests.simulation.faults import Faults
from tests.simulation.points import ROOT
from tests.simulation.worlds import simulate

CALM = Faults(until_s=1.0)
SCENARIOS = [maker.__name__ for maker in scenarios.ALL]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_seed_ends_well(request):
    only = request.config.getoption("--seed", default=None)
    seeds = range(request.config.getoption("--seeds", default=500)) if only is None else [only]
    for seed in seeds:
        simulate(seed)


@pytest.mark.parametrize("seed", [1, 2, 3, 269, 1048])
def test_a_seed_is_a_recording(seed):
    assert simulate(seed).trace == simulate(seed).trace


@pytest.mark.slow
def test_a_seed_is_a_recording_for_every_process():
    def trace(hash_seed: str) -> str:
        code = "from tests.simulation.worlds import simulate; print(*simulate(7).trace, sep='\\n')"
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    assert trace("1") == trace("2") != ""


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_history_does_not_depend_on_what_is_kept_in_memory(name):
    kept = simulate(5, faults=CALM, only=(name,), changed={"cache": True, "instances_max": 10_000})
    replayed = simulate(5, faults=CALM, only=(name,), changed={"cache": False, "instances_max": 10_000})
    assert [run.turns for run in kept.runs] == [run.turns for run in replayed.runs]


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_ends_well_without_faults(name):
    world = simulate(11, faults=CALM, only=(name,))
    assert world.deaths == 0 or name == "poisoned"
