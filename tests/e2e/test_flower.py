"""Flower shows every activity as a task, eager ones included, as long as task events are on."""

from __future__ import annotations

import base64
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.e2e.processes import WAIT_MAX_S, Shop, broker_of, site, wait_until


@pytest.fixture(scope="module", params=["fleet", "prefork"])
def watched(request, valkey, tmp_path_factory):
    """Flower, and a shop whose worker it knows."""
    folder = tmp_path_factory.mktemp(request.param)
    with site(Shop, folder, f"sqlite:///{folder / 'test.db'}", broker_of(valkey)) as shop:
        shop.beat()
        flower = shop.flower()
        shop.worker(request.param, "-E", node="watched@test")
        wait_until(lambda: "watched@test" in flower.json("/api/workers?refresh=1"), "flower knows the worker")
        yield shop, flower


def shown(flower, name, state):
    return [task for task in flower.json("/api/tasks").values() if (task["name"], task["state"]) == (name, state)]


@pytest.mark.req("DC-21")
def test_flower_answers_and_knows_the_workers_and_what_they_do(watched):
    shop, flower = watched
    assert shop.client.start_workflow("steps", args=[1, 1]).result(timeout=WAIT_MAX_S) == 1
    workers = flower.json("/api/workers?refresh=1")
    assert next(queue["name"] for queue in workers["watched@test"]["active_queues"]) == shop.settings.default_queue
    wait_until(lambda: 'flower_worker_online{worker="watched@test"} 1.0' in flower.page("/metrics"), "its metrics say that it is there")


@pytest.mark.req("DC-22")
def test_flower_lets_nobody_look_who_has_not_said_who_they_are(shop):
    def status(path: str, **headers: str) -> int:
        try:
            with urlopen(Request(f"http://127.0.0.1:{flower.port}{path}", headers=headers), timeout=WAIT_MAX_S) as answer:
                return int(answer.status)
        except HTTPError as refused:
            refused.close()
            return refused.code

    flower = shop.flower(FLOWER_UNAUTHENTICATED_API="false")
    assert [status("/api/workers"), status("/api/tasks")] == [401, 401]
    flower = shop.flower(FLOWER_UNAUTHENTICATED_API="false", FLOWER_BASIC_AUTH="ada:secret", options=("--read-only",))
    key = "Basic " + base64.b64encode(b"ada:secret").decode()
    assert [status("/workers"), status("/workers", Authorization=key), status("/api/workers", Authorization=key)] == [401, 200, 200]


def test_eager_activities_show_with_name_arguments_runtime_and_worker(watched):
    shop, flower = watched
    handle = shop.client.start_workflow("steps", args=[7, 6])
    assert handle.result(timeout=WAIT_MAX_S) == 7
    run_id = handle.describe().run_id

    def of_this_run(name):
        return [task for task in shown(flower, name, "SUCCESS") if task["uuid"].startswith(run_id)]

    wait_until(lambda: len(of_this_run("quick")) == len(of_this_run("count")) == 3, "all are shown")
    task = next(task for task in shown(flower, "quick", "SUCCESS") if task["args"] == "(7001,)")
    assert task["uuid"] == f"{run_id}--2-1"
    assert task["result"] == "7001"
    assert 0 < task["runtime"] < 5
    assert task["worker"] == "watched@test"
    assert task["received"] <= task["started"] <= task["succeeded"]
    page = flower.page(f"/task/{task['uuid']}")
    assert all(word in page for word in ("quick", "(7001,)", "SUCCESS", "watched@test"))


def test_failures_show_with_their_reason_and_cancelled_ones_as_revoked(watched):
    shop, flower = watched
    assert shop.call("not_today", maximum_attempts=1)[0] == "failed"
    wait_until(lambda: shown(flower, "not_today", "FAILURE"), "it is shown")
    (task,) = shown(flower, "not_today", "FAILURE")
    assert "not today" in task["exception"]
    assert "tasks_app.py" in task["traceback"]
    sleeper = shop.start("patient")
    shop.await_note("patient", "started")
    sleeper.cancel()
    wait_until(lambda: shown(flower, "patient", "REVOKED"), "it is shown")


def test_nothing_is_shown_until_somebody_asks(shop):
    worker = shop.worker()
    flower = shop.flower()
    assert shop.call("quick", 1) == 1
    assert shown(flower, "quick", "SUCCESS") == []
    wait_until(lambda: "Events of group {task} enabled by remote" in worker.text, "flower asks the worker")
    assert shop.call("quick", 2) == 2
    wait_until(lambda: [task["args"] for task in shown(flower, "quick", "SUCCESS")] == ["(2,)"], "what came later is shown")
