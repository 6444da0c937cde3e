"""Every act is in the audit exactly once: done or refused, with who, what, on what, and without secrets."""

from __future__ import annotations

import pytest

from orchestrator.api.permissions import RULES
from schemas.access import Role

RUNS = "/api/v1/workflows"
ACTS = [(method, path, rule) for (method, path), rule in RULES.items() if rule.action]


def address(path):
    for name in ("workflow_id", "letter_id", "agent_id", "name", "request_id"):
        path = path.replace("{" + name + "}", "nobody")
    return path


@pytest.mark.req("S2-42")
def test_what_was_done_is_there_once(api):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body = {"type": "Order", "id": "order-1", "memo": {"note": "x", "password": "s3cret"}}
    assert api.http.post(RUNS, json=body, headers={"traceparent": trace}).status_code == 201
    (entry,) = api.audit()
    assert (entry.actor, entry.action, entry.target, entry.outcome) == ("anonymous", "workflow.start", "workflow:order-1", "ok")
    assert entry.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert entry.params["memo"] == {"note": "x", "password": "***"}
    assert api.http.get(RUNS).status_code == 200
    assert len(api.audit()) == 1, "looking is no act"


@pytest.mark.req("S2-42")
@pytest.mark.parametrize("method, path, rule", ACTS, ids=[f"{method} {path}" for method, path, _ in ACTS])
def test_every_act_is_audited_when_it_is_refused(guarded_api, method, path, rule):
    assert guarded_api.http.request(method, address(path)).status_code == 401
    (entry,) = guarded_api.audit()
    assert (entry.actor, entry.action, entry.outcome) == ("unknown", rule.action, "unauthorized")
    if rule.role is Role.VIEWER:
        return
    assert guarded_api.http.request(method, address(path), headers=guarded_api.token(Role.VIEWER, "nosy")).status_code == 403
    entry, _ = guarded_api.audit()
    assert (entry.actor, entry.action, entry.outcome) == ("token:nosy", rule.action, "forbidden")


@pytest.mark.req("S2-42")
def test_what_was_not_valid_or_not_possible_is_there_as_well(api):
    api.http.post(RUNS, json={"type": 5, "token": "s3cret"})
    api.http.post(RUNS, json={"type": "Order", "id": "a"})
    api.http.post(RUNS, json={"type": "Order", "id": "a"})
    api.http.post(RUNS, content=b"{", headers={"content-type": "application/json"})
    api.http.post(RUNS, content=b"x" * 3_000_000, headers={"content-type": "application/json"})
    entries = api.audit()[::-1]
    assert [entry.outcome for entry in entries] == ["invalid_request", "ok", "workflow_exists", "invalid_request", "payload_too_large"]
    assert entries[0].params == {"type": 5, "token": "***"}


def test_the_audit_is_read_by_filters_and_pages(guarded_api):
    headers = {"X-Manager-Token": "new-token"}
    for number in range(3):
        guarded_api.http.post(RUNS, json={"type": "Order", "id": f"order-{number}"}, headers=headers)
    guarded_api.http.post(RUNS)
    first = guarded_api.http.get("/api/v1/audit", params={"actor": "manager", "limit": 2}, headers=headers).json()
    assert [entry["target"] for entry in first["entries"]] == ["workflow:order-2", "workflow:order-1"]
    more = {"actor": "manager", "limit": 2, "before": first["next_page"]}
    rest = guarded_api.http.get("/api/v1/audit", params=more, headers=headers).json()
    assert [entry["target"] for entry in rest["entries"]] == ["workflow:order-0"]
    assert rest["next_page"] is None
    refused = guarded_api.http.get("/api/v1/audit", params={"outcome": "unauthorized"}, headers=headers).json()["entries"]
    assert [entry["action"] for entry in refused] == ["workflow.start"]
    since = {"since": first["entries"][0]["at"], "until": "2999-01-01T00:00:00Z"}
    assert len(guarded_api.http.get("/api/v1/audit", params=since, headers=headers).json()["entries"]) >= 1
    assert guarded_api.http.get("/api/v1/audit", headers=guarded_api.token(Role.OPERATOR)).status_code == 403
