"""Whatever goes wrong has a documented status, one shape of body, a sentence, ids, and no stack trace."""

from __future__ import annotations

import pytest

from orchestrator.api.errors import Problem
from orchestrator.api.permissions import RULES
from schemas.codes import HTTP_STATUS, ErrorCode

RUNS = "/api/v1/workflows"


def problem(answer):
    assert answer.headers["content-type"] == "application/json"
    found = Problem.model_validate_json(answer.content)
    assert found.error.message
    assert "Traceback" not in answer.text
    return found


@pytest.mark.req("S1-11", "S2-10")
@pytest.mark.parametrize(
    "method, path, status, code",
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/api/v1/workflows/", 404, "not_found"),
        ("PATCH", RUNS, 405, "invalid_request"),
        ("GET", f"{RUNS}?limit=0", 400, "invalid_request"),
        ("GET", f"{RUNS}?filter=nonsense", 400, "invalid_request"),
        ("GET", f"{RUNS}?page_after=nonsense", 400, "invalid_request"),
        ("GET", f"{RUNS}/%00", 400, "invalid_request"),
    ],
)
def test_a_wrong_call_is_told_in_one_shape(api, method, path, status, code):
    answer = api.http.request(method, path)
    assert (answer.status_code, problem(answer).error.code) == (status, code)


def test_a_body_over_the_limit_is_413_whether_its_length_is_told_or_not(api):
    large = b'{"type": "Order", "args": ["' + b"x" * 3_000_000 + b'"]}'
    headers = {"content-type": "application/json"}
    assert problem(api.http.post(RUNS, content=large, headers=headers)).error.code == "payload_too_large"
    chunked = api.http.post(RUNS, content=iter([large[:1000], large[1000:]]), headers=headers)
    assert (chunked.status_code, problem(chunked).error.code) == (413, "payload_too_large")


@pytest.mark.req("S1-04")
def test_a_payload_over_the_limit_is_413(open_api):
    api = open_api(payload_bytes_max=100)
    answer = api.http.post(RUNS, json={"type": "Order", "args": ["x" * 1000]})
    assert (answer.status_code, problem(answer).error.code) == (413, "payload_too_large")


def test_a_mistake_of_ours_is_told_without_its_details(api, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("s3cret detail")

    monkeypatch.setattr(api.app.state.services.client, "start_workflow", broken)
    answer = api.http.post(RUNS, json={"type": "Order"}, headers={"X-Request-Id": "r-1"})
    assert (answer.status_code, problem(answer).error.code) == (500, "internal_error")
    assert "s3cret" not in answer.text
    assert answer.headers["x-request-id"] == "r-1"
    assert "s3cret detail" in caplog.text
    assert api.audit()[0].outcome == "internal_error"


@pytest.mark.req("S1-30")
def test_ids_and_traces_are_continued_and_given(api):
    given = {"X-Request-Id": "my-request", "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    for path in (RUNS, "/nowhere", "/health"):
        answer = api.http.get(path, headers=given)
        assert answer.headers["x-request-id"] == "my-request"
        assert answer.headers["traceparent"].startswith("00-0af7651916cd43dd8448eb211c80319c-")
        assert "b7ad6b7169203331" not in answer.headers["traceparent"]
    fresh = api.http.get(RUNS, headers={"X-Request-Id": "bad id\twith blanks", "traceparent": "nonsense"})
    assert fresh.headers["x-request-id"] not in {"", "bad id\twith blanks"}
    assert fresh.headers["traceparent"].startswith("00-")


@pytest.mark.req("S1-27")
def test_each_request_is_one_line_in_the_log_with_its_trace(api, caplog):
    caplog.set_level("INFO", logger="orchestrator.api.access")
    api.http.get(f"{RUNS}/nobody", headers={"X-Request-Id": "r-1"})
    (line,) = [record for record in caplog.records if record.name == "orchestrator.api.access"]
    assert (line.path, line.status, line.request_id, line.actor) == (f"{RUNS}/nobody", 404, "r-1", "anonymous")


def test_nobody_else_may_read_answers_in_a_browser(api):
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = api.http.options(RUNS, headers=asked)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_too_many_requests_at_once_are_told_to_come_back(api, monkeypatch):
    monkeypatch.setattr("orchestrator.api.requests.REQUESTS_MAX", 0)
    answer = api.http.get("/health")
    assert (answer.status_code, problem(answer).error.code) == (503, "no_capacity")
    assert answer.headers["retry-after"]


def test_every_code_has_a_status_and_every_route_a_rule(api):
    assert set(HTTP_STATUS) == set(ErrorCode)
    described = {(method.upper(), path) for path, methods in api.app.openapi()["paths"].items() for method in methods}
    assert described == set(RULES)
