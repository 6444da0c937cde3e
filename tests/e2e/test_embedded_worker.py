"""Celery's own embedded worker, a thread of the test as `celery.contrib.pytest` starts it, runs workflows; so people can test as they do now."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from orchestrator import activity, workflow
from orchestrator.celery import Orchestrator
from orchestrator.client import Client
from orchestrator.servers import Valkey
from orchestrator.settings import load
from schemas.settings import Settings
from tests.e2e.processes import WAIT_MAX_S, broker_of


@activity.defn(name="embedded.double")
def double(number: int) -> int:
    return 2 * number


@workflow.defn(name="embedded.sum")
async def total(numbers: list[int]) -> int:
    """Native activities, a timer, and a Celery task of the application."""
    doubled = [await workflow.execute_activity(double, number) for number in numbers]
    await workflow.sleep(timedelta(milliseconds=20))
    return int(await workflow.execute_activity("embedded.add_up", args=[doubled]))


@pytest.fixture
def settings(valkey: Valkey, sqlite_url: str, tmp_path: Path) -> Settings:
    return load({}, home=tmp_path, database_url=sqlite_url, broker_url=broker_of(valkey), default_queue="embedded", poll_s=0.2)


@pytest.fixture
def celery_config(settings: Settings) -> dict[str, Any]:
    return {"broker_url": settings.broker_url, "task_default_queue": settings.default_queue}


@pytest.fixture(params=["solo", "workers.pool:FleetPool"])
def celery_worker_pool(request: pytest.FixtureRequest) -> str:
    pool: str = request.param
    return pool


@pytest.fixture
def celery_worker_parameters(celery_app: Celery, settings: Settings) -> dict[str, Any]:
    """Adopts the application before its worker begins."""
    Orchestrator(celery_app, settings=settings)

    @celery_app.task(name="embedded.add_up")
    def add_up(numbers: list[int]) -> int:
        return sum(numbers)

    return {"concurrency": 2, "perform_ping_check": False}


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings=settings) as opened:
        yield opened


@pytest.mark.req("DC-31")
def test_a_workflow_runs_on_an_embedded_worker(celery_worker: Any, client: Client):
    handles = [client.start_workflow(total, list(range(number)), id=f"sum-{number}") for number in range(5)]
    assert [handle.result(timeout=WAIT_MAX_S) for handle in handles] == [0, 0, 2, 6, 12]
