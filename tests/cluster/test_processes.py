"""pytest-celery's cluster, of real processes on each broker: kill and restart its nodes, and no workflow notices."""

from __future__ import annotations

import pytest
from pytest_celery import CeleryTestSetup

from tests.cluster.nodes import outlives_its_workers_and_its_broker
from tests.e2e.processes import Shop


@pytest.mark.req("DC-02")
@pytest.mark.req("DC-31")
def test_a_cluster_of_processes_outlives_its_workers_and_its_broker(celery_setup: CeleryTestSetup, shop: Shop):
    outlives_its_workers_and_its_broker(celery_setup, shop)
