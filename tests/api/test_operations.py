"""Health, metrics, logs, settings: they answer whatever is broken, in the shape that is documented, and show no secret."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator.clock import SYSTEM
from orchestrator.store import Store, control
from schemas.runs import DeadLetter
from tests.api.conftest import SECRET, Api

RUNS = "/api/v1/workflows"


@pytest.mark.req("DC-35", "S2-14")
def test_health_says_what_is_broken_and_answers_all_the_same(api):
    answer = api.http.get("/health")
    assert answer.status_code == 200
    health = answer.json()
    assert (health["status"], health["name"]) == ("degraded", "orchestrator-api")
    assert health["checks"]["store"] == {"ok": True, "problem": ""}
    assert not health["checks"]["broker"]["ok"]
    assert "broker" in health["checks"]["broker"]["problem"]


def test_health_is_ok_when_store_and_broker_answer(open_api, valkey):
    assert open_api(broker_url=valkey.url).http.get("/health").json()["status"] == "ok"


@pytest.mark.req("DC-35")
def test_without_a_broker_reading_and_starting_go_on(api):
    assert api.http.post(RUNS, json={"type": "Order", "id": "a"}).status_code == 201
    assert [run["workflow_id"] for run in api.http.get(RUNS).json()["workflows"]] == ["a"]


def test_without_a_database_everything_else_is_503_with_a_sentence(tmp_path):
    url = f"sqlite:///{tmp_path / 'missing' / 'test.db'}"
    api = Api(url, Store.open(url))
    with api.http:
        answer = api.http.get("/api/v1/dead-letters")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unavailable")
        assert answer.headers["retry-after"] == "2"
        assert "cannot be used" in answer.json()["error"]["message"]
        assert api.http.delete("/api/v1/dead-letters/x").status_code == 503
        health = api.http.get("/health").json()
    assert (health["status"], health["checks"]["store"]["ok"]) == ("degraded", False)


@pytest.mark.req("S1-28")
def test_metrics_count_what_there_is(api):
    for id_ in ("a", "b"):
        api.http.post(RUNS, json={"type": "Order", "id": id_, "queue": "orders"})
    api.http.post(f"{RUNS}/a/terminate")
    with api.store.transaction() as tx:
        control.add_dead_letter(tx, DeadLetter("l1", "message", "unreadable", 0.0, None, None, {}))
    answer = api.http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert found["orchestrator_runs", "running"] == found["orchestrator_runs", "terminated"] == 1
    assert found["orchestrator_queue_ready", "orders"] == 1
    assert found["orchestrator_dead_letters", "message"] == 1
    assert found["orchestrator_workers",] == 0


@pytest.mark.req("S1-34")
def test_logs_of_several_agents_come_together_in_the_order_of_their_times(open_api, tmp_path):
    (tmp_path / "b.log").write_text("".join(json.dumps({"ts": f"2026-01-01T00:00:0{n}Z", "message": f"b{n}"}) + "\n" for n in (1, 3)))
    (tmp_path / "a.log").write_text('{"ts": "2026-01-01T00:00:02Z", "message": "a2"}\nno json at all\n')
    api = open_api(log_directory=tmp_path)
    lines = api.http.get("/api/v1/logs").json()["lines"]
    assert [line["message"] for line in lines] == ["no json at all", "b1", "a2", "b3"]
    assert [line["agent_id"] for line in lines] == ["a", "b", "a", "b"]
    assert [line["message"] for line in api.http.get("/api/v1/logs", params={"agent_id": "b", "lines": 1}).json()["lines"]] == ["b3"]
    assert api.http.get("/api/v1/logs", params={"agent_id": "nobody"}).json()["lines"] == []


def test_the_tail_of_a_large_log_is_exact_and_quick(open_api, tmp_path):
    with (tmp_path / "big.log").open("w") as file:
        file.writelines(f'{{"ts": "{number:08}", "message": "line {number} {"x" * 100}"}}\n' for number in range(100_000))
    api = open_api(log_directory=tmp_path)
    lines = api.http.get("/api/v1/logs", params={"lines": 1000}).json()["lines"]
    assert [int(line["ts"]) for line in lines] == list(range(99_000, 100_000))


@pytest.mark.parametrize("agent_id", ["../secret", "a/b", "..", "a\0"])
def test_a_log_is_found_by_an_id_and_no_other_file(open_api, tmp_path, agent_id):
    (tmp_path / "secret.log").write_text("s3cret\n")
    (tmp_path / "logs").mkdir()
    answer = open_api(log_directory=tmp_path / "logs").http.get("/api/v1/logs", params={"agent_id": agent_id})
    assert answer.status_code == 400


@pytest.mark.parametrize("lines", ["abc", "0", "-1", "10001"])
def test_a_number_of_lines_that_makes_no_sense_is_400(api, lines):
    assert api.http.get("/api/v1/logs", params={"lines": lines}).status_code == 400


def test_settings_are_shown_without_their_secrets(open_api):
    api = open_api(jwt_secret=SECRET, manager_token="t0p-s3cret", broker_url="redis://me:pass-word@127.0.0.1:1/0")
    shown = api.http.get("/api/v1/config")
    for secret in (SECRET, "t0p-s3cret", "pass-word"):
        assert secret not in shown.text
    assert shown.json()["settings"]["heartbeat_timeout_s"] == 60


def test_a_dead_letter_is_sent_back_or_says_why_it_stays(open_api, valkey):
    api = open_api(broker_url=valkey.url)
    whole = {"queue": f"letters-{SYSTEM.fresh_id()}", "body": "{}", "content_type": "application/json", "headers": {}}
    with api.store.transaction() as tx:
        control.add_dead_letter(tx, DeadLetter("whole", "message", "unreadable", 0.0, None, None, whole))
        control.add_dead_letter(tx, DeadLetter("line", "message", "no frame", 0.0, None, None, {"line": "oops"}))
    sent = api.http.post("/api/v1/dead-letters/whole/replay")
    assert (sent.status_code, sent.json()["told"]) == (202, f"sent to queue {whole['queue']}")
    stays = api.http.post("/api/v1/dead-letters/line/replay")
    assert (stays.status_code, stays.json()["error"]["code"]) == (409, "invalid_transition")
    assert api.http.post("/api/v1/dead-letters/whole/replay").status_code == 404
    assert [letter["id"] for letter in api.http.get("/api/v1/dead-letters").json()["dead_letters"]] == ["line"]


@pytest.mark.req("DC-35")
def test_without_a_broker_a_message_is_not_sent_back_and_stays(api):
    whole = {"queue": "letters", "body": "{}", "content_type": "application/json", "headers": {}}
    with api.store.transaction() as tx:
        control.add_dead_letter(tx, DeadLetter("whole", "message", "unreadable", 0.0, None, None, whole))
    answer = api.http.post("/api/v1/dead-letters/whole/replay")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "broker_unavailable")
    assert len(api.http.get("/api/v1/dead-letters").json()["dead_letters"]) == 1


def test_dead_letters_are_listed_and_dropped_for_good(api):
    with api.store.transaction() as tx:
        for number in range(3):
            control.add_dead_letter(tx, DeadLetter(f"l{number}", "message", "unreadable", 0.0, None, None, {"n": number}))
    first = api.http.get("/api/v1/dead-letters", params={"limit": 2}).json()
    rest = api.http.get("/api/v1/dead-letters", params={"limit": 2, "after": first["next_page"]}).json()
    assert sorted(letter["id"] for letter in first["dead_letters"] + rest["dead_letters"]) == ["l0", "l1", "l2"]
    assert api.http.delete("/api/v1/dead-letters/l1").json() == {"id": "l1", "dropped": True}
    gone = api.http.delete("/api/v1/dead-letters/l1")
    assert (gone.status_code, gone.json()["error"]["code"]) == (404, "not_found")
    assert [(entry.target, entry.outcome) for entry in api.audit()] == [("deadletter:l1", "not_found"), ("deadletter:l1", "ok")]
