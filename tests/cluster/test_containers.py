"""pytest-celery's cluster with brokers in Docker containers, where there is an engine; the workers are processes of this machine."""

from __future__ import annotations

import gc
import warnings

import docker
import pytest
from docker.errors import DockerException
from pytest_celery import CeleryTestBroker, CeleryTestSetup

from tests.cluster.nodes import outlives_its_workers_and_its_broker
from tests.e2e.processes import Shop


@pytest.fixture(scope="session", autouse=True)
def docker_engine() -> None:
    """Skips where no Docker engine answers; before any other fixture asks it for images."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # a client that finds nobody forgets its socket
        refusal = refused()
        gc.collect()
    if refusal:
        pytest.skip(f"no Docker engine answers: {refusal}")


def refused() -> str:
    """Why there is no engine; empty if there is one."""
    try:
        with docker.from_env() as client:
            client.ping()
    except DockerException as error:
        return str(error)
    return ""


@pytest.fixture(params=["celery_redis_broker", "celery_rabbitmq_broker"])
def celery_broker(request: pytest.FixtureRequest) -> CeleryTestBroker:
    """Each of the brokers that pytest-celery has containers for."""
    return request.getfixturevalue(request.param)


@pytest.mark.docker
@pytest.mark.req("DC-31")
def test_a_cluster_with_a_broker_in_a_container_outlives_its_workers_and_its_broker(celery_setup: CeleryTestSetup, shop: Shop):
    outlives_its_workers_and_its_broker(celery_setup, shop)
