"""The model of larger deployments: never above what its parts carry, close to it when one of them is busy, and twice as much with twice the databases."""

from __future__ import annotations

import pytest

from benchmarks.scale.model import Costs, Deployment, bounds, capacity, simulate

COSTS = Costs(worker_s=0.25e-3, store_s=0.18e-3, client_s=0.1e-3, broker_s=0.01e-3, batch=100.0, flush_s=0.4e-3)
APART = [Deployment(workers, store_cores=8) for workers in (1, 2, 4, 8, 16, 32)]
TOGETHER = [Deployment(workers, shared_cores=2) for workers in (1, 2, 3, 4)]


@pytest.mark.parametrize("deployment", [*APART, *TOGETHER], ids=lambda one: f"{one.workers}-{one.shared_cores or 'apart'}")
def test_no_deployment_carries_more_than_its_busiest_part(deployment):
    found = simulate(COSTS, deployment)
    assert found <= capacity(COSTS, deployment)[0] * 1.03, "chance may favour a short run by a little"
    assert found >= capacity(COSTS, deployment)[0] * 0.75


def test_throughput_grows_with_workers_until_the_database_is_busy_and_no_further():
    found = [simulate(COSTS, deployment) for deployment in APART]
    assert [capacity(COSTS, deployment)[1] for deployment in APART] == ["worker processes"] * 4 + ["database"] * 2
    assert found[1] == pytest.approx(2 * found[0], rel=0.1)
    assert found[3] == pytest.approx(8 * found[0], rel=0.15)
    assert found[5] == pytest.approx(found[4], rel=0.1)
    assert found[5] == pytest.approx(bounds(COSTS, APART[5])["database"], rel=0.1)


def test_two_databases_carry_twice_as_much():
    one, two = (simulate(COSTS, Deployment(64, store_cores=8, shards=shards)) for shards in (1, 2))
    assert two == pytest.approx(2 * one, rel=0.1)


def test_a_slow_disk_costs_latency_and_only_lone_workers_throughput():
    slow = Costs(**{**COSTS.__dict__, "flush_s": 40e-3})
    lone, many = Deployment(1, store_cores=8), Deployment(32, store_cores=8)
    assert simulate(slow, lone) < simulate(COSTS, lone) * 0.95
    assert simulate(slow, many) > simulate(COSTS, many) * 0.8


def test_more_processes_than_cores_bring_nothing_on_one_machine():
    found = [simulate(COSTS, deployment) for deployment in TOGETHER]
    assert found[3] == pytest.approx(found[1], rel=0.1)
    assert capacity(COSTS, TOGETHER[3])[1] == "cores of the one machine"
