"""pytest-celery's fixtures, for this folder alone: elsewhere `celery_worker` is Celery's embedded one.

Its plugin makes clusters of containers. Here brokers and workers are processes of this machine; `test_containers.py` takes its brokers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery, current_app
from pytest_celery import *  # noqa: F403 - the fixtures of a plugin, which pytest finds here
from pytest_celery import CeleryBrokerCluster, CeleryTestBroker, CeleryTestSetup, CeleryTestWorker, CeleryWorkerCluster

from orchestrator.celery import Orchestrator
from tests.cluster.nodes import ServerBox, WorkerBox
from tests.e2e.processes import Shop, broker_of, numbers, site

WORKERS = 2


@pytest.fixture(params=["valkey", "rabbitmq"])
def celery_broker(request: pytest.FixtureRequest) -> CeleryTestBroker:
    """Each of our brokers, as a node."""
    server = request.getfixturevalue(request.param)
    return CeleryTestBroker(ServerBox(server, broker_of(server) if request.param == "valkey" else server.url))


@pytest.fixture
def celery_backend_cluster() -> None:
    """None: results of workflows are in the store."""


@pytest.fixture
def shop(celery_broker_cluster: CeleryBrokerCluster, sqlite_url: str, tmp_path: Path) -> Iterator[Shop]:
    """The processes of the cluster."""
    with site(Shop, tmp_path, sqlite_url, celery_broker_cluster[0].config()["host_url"]) as opened:
        yield opened


@pytest.fixture
def celery_worker_cluster(shop: Shop) -> CeleryWorkerCluster:
    """Two worker processes of an existing Celery application that has adopted us."""
    boxes = [WorkerBox(shop, f"c{next(numbers)}@cluster") for _ in range(WORKERS)]
    return CeleryWorkerCluster(*(CeleryTestWorker(box, app=None) for box in boxes))


@pytest.fixture
def celery_setup_app(
    celery_setup_cls: type[CeleryTestSetup], celery_setup_config: dict[str, object], celery_setup_name: str, shop: Shop
) -> Iterator[Celery]:
    """The test's own end of the cluster. It becomes Celery's current application, which no other test must find."""
    before = current_app._get_current_object()  # type: ignore[attr-defined] # the way behind Celery's proxy
    app: Celery = celery_setup_cls.create_setup_app(celery_setup_config, celery_setup_name)
    Orchestrator(app, settings=shop.settings)
    yield app
    app.close()
    before.set_current()
