"""Workflows over HTTP: what is answered is stored, errors are documented bodies, pages go on where the one before ended."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.store import turns
from schemas.history import FLAGS_NOW, RunCompleted
from schemas.runs import Status, TurnCommit

RUNS = "/api/v1/workflows"


def started(api, id_, **more):
    answer = api.http.post(RUNS, json={"type": "Order", "id": id_, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()


def complete(api, result):
    """A worker's part."""
    with api.store.transaction() as tx:
        (run,) = turns.claim(tx, worker="hand", queues=["default"], types=["Order"], batch_max=100, inbox_max=100)
        commit = TurnCommit(
            run.run_id,
            run.epoch,
            run.turn + 1,
            at=tx.now(),
            flags=int(FLAGS_NOW),
            arrivals=tuple(entry.arrival for entry in run.inbox),
            commands=(RunCompleted(result),),
            consumed=tuple(entry.id for entry in run.inbox),
            status=Status.COMPLETED,
            result=result,
        )
        assert not turns.commit(tx, [commit], worker="hand", build="").lost


@pytest.mark.req("DC-23")
def test_a_workflow_is_started_shown_and_its_history_read(api):
    answer = api.http.post(RUNS, json={"type": "Order", "id": "order-1", "args": [{"n": 1}, None], "memo": {"who": "Ada"}})
    assert answer.status_code == 201
    assert answer.headers["location"] == f"{RUNS}/order-1"
    assert answer.json()["created"]
    complete(api, {"paid": True})
    shown = api.http.get(f"{RUNS}/order-1").json()
    assert (shown["type"], shown["status"], shown["result"], shown["memo"]) == ("Order", "completed", {"paid": True}, {"who": "Ada"})
    assert shown["started_at"].endswith("Z")
    history = api.http.get(f"{RUNS}/order-1/history").json()
    (turn,) = history["turns"]
    assert [event["kind"] for event in turn["arrivals"] + turn["commands"]] == ["run_started", "run_completed"]
    assert turn["arrivals"][0]["args"] == [{"n": 1}, None]
    assert history["next_turn"] is None


def test_a_result_is_waited_for_and_its_status_is_about_the_question(api):
    started(api, "order-1")
    waiting = api.http.get(f"{RUNS}/order-1/result", params={"wait": 0.05})
    assert (waiting.status_code, waiting.json()["status"]) == (202, "running")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(api.http.get, f"{RUNS}/order-1/result", params={"wait": 20})
        complete(api, [1, 2])
        answer = asked.result()
    assert (answer.status_code, answer.json()["status"], answer.json()["result"]) == (200, "completed", [1, 2])


def test_a_run_that_was_ended_tells_how(api):
    started(api, "order-1")
    assert api.http.post(f"{RUNS}/order-1/terminate", json={"reason": "withdrawn"}).status_code == 200
    answer = api.http.get(f"{RUNS}/order-1/result")
    assert (answer.status_code, answer.json()["status"]) == (200, "terminated")
    assert answer.json()["failure"]["message"] == "withdrawn"


@pytest.mark.req("DC-28")
def test_the_same_id_makes_one_run_however_many_ask_at_once(api):
    with ThreadPoolExecutor(10) as pool:
        body = {"type": "Order", "id": "order-1", "id_conflict_policy": "use_existing"}
        answers = list(pool.map(lambda _: api.http.post(RUNS, json=body), range(10)))
    assert sorted(answer.status_code for answer in answers) == [200] * 9 + [201]
    assert len({answer.json()["run_id"] for answer in answers}) == 1
    refused = api.http.post(RUNS, json={"type": "Order", "id": "order-1"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "workflow_exists")
    assert refused.json()["error"]["details"]["run_id"] == answers[0].json()["run_id"]


@pytest.mark.req("DC-27")
def test_signals_and_cancellation_are_stored_when_they_are_answered(api):
    started(api, "order-1")
    for _ in range(2):
        answer = api.http.post(f"{RUNS}/order-1/signal/approve", json={"args": [True]}, headers={"Idempotency-Key": "once"})
        assert answer.status_code == 202
    assert api.http.post(f"{RUNS}/order-1/cancel").status_code == 202
    complete(api, None)
    (turn,) = api.http.get(f"{RUNS}/order-1/history").json()["turns"]
    assert [event["kind"] for event in turn["arrivals"]] == ["run_started", "signal_received", "cancel_requested"]
    refused = api.http.post(f"{RUNS}/order-1/signal/approve")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "invalid_transition")


@pytest.mark.req("DC-27")
def test_a_query_that_no_worker_answers_says_so(api):
    started(api, "order-1")
    answer = api.http.get(f"{RUNS}/order-1/query/status", params={"wait": 0.05, "arg": ["1", "plain text"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_capacity")
    assert answer.headers["retry-after"]


def test_lists_are_filtered_as_on_the_command_line_and_go_on_page_by_page(api):
    for number in range(5):
        started(api, f"order-{number}", queue="even" if number % 2 == 0 else "odd")
    first = api.http.get(RUNS, params={"filter": "queue=even id^=order-", "limit": 2}).json()
    second = api.http.get(RUNS, params={"filter": "queue=even", "limit": 2, "page_after": first["next_page"]}).json()
    assert [run["workflow_id"] for run in first["workflows"] + second["workflows"]] == ["order-4", "order-2", "order-0"]
    assert second["next_page"] is None
    wrong = api.http.get(RUNS, params={"filter": "staus=failed"})
    assert wrong.status_code == 400
    assert "did you mean 'status'" in wrong.json()["error"]["message"]


def test_history_goes_on_page_by_page(api):
    started(api, "order-1")
    complete(api, None)
    page = api.http.get(f"{RUNS}/order-1/history", params={"limit": 1}).json()
    assert page["next_turn"] == 1
    assert api.http.get(f"{RUNS}/order-1/history", params={"after_turn": page["next_turn"]}).json()["turns"] == []


@pytest.mark.parametrize("path", ["", "/history", "/result", "/query/q"])
def test_an_unknown_workflow_is_404(api, path):
    answer = api.http.get(f"{RUNS}/nobody{path}")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert "'nobody'" in answer.json()["error"]["message"]


@pytest.mark.parametrize("act", ["signal/s", "cancel", "terminate"])
def test_an_act_on_an_unknown_workflow_is_404_and_audited(api, act):
    assert api.http.post(f"{RUNS}/nobody/{act}").status_code == 404
    (entry,) = api.audit()
    assert (entry.action, entry.target, entry.outcome) == (f"workflow.{act.partition('/')[0]}", "workflow:nobody", "not_found")


@pytest.mark.parametrize(
    "body, place",
    [
        ({}, "type"),
        ({"type": ""}, "type"),
        ({"type": "Order", "args": "abc"}, "args"),
        ({"type": "Order", "priority": "1"}, "priority"),
        ({"type": "Order", "colour": "red"}, "colour"),
        ({"type": "Order", "id": "two\nlines"}, "id"),
        ({"type": "Order", "id_reuse_policy": "whatever"}, "id_reuse_policy"),
        ({"type": "Order", "run_timeout_s": 0}, "run_timeout_s"),
        ([], ""),
    ],
)
def test_a_body_that_does_not_fit_is_400_and_names_the_place(api, body, place):
    answer = api.http.post(RUNS, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")
    assert place in answer.json()["error"]["message"]
    assert api.http.get(RUNS).json()["workflows"] == []


@pytest.mark.parametrize("text", ["{", '{"type": "Order", "args": [NaN]}', '{"type": "\\ud800"}', "\xff", "[" * 100_000])
def test_a_body_that_is_no_json_is_400(api, text):
    answer = api.http.post(RUNS, content=text.encode("latin-1"), headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_request")


def test_a_form_is_not_taken_for_json(api):
    answer = api.http.post(RUNS, content='{"type": "Order"}', headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "invalid_request")
