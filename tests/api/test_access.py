"""Who is let in: keys that count, roles that suffice, and nobody else; keys can be exchanged while the old ones still work."""

from __future__ import annotations

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.clock import SYSTEM
from orchestrator.errors import SettingsError
from orchestrator.store import tokens
from schemas.access import MAY, Role
from tests.api.conftest import SECRET, bearer

RUNS = "/api/v1/workflows"
CONFIG = "/api/v1/config"


def manager(key):
    return {"X-Manager-Token": key}


@pytest.mark.req("S1-24", "S1-26")
def test_the_manager_token_and_the_one_before_it_count_and_no_other(guarded_api):
    assert guarded_api.http.get(RUNS, headers=manager("new-token")).status_code == 200
    assert guarded_api.http.get(RUNS, headers=manager("old-token")).status_code == 200
    for wrong in ("", "old", "new-token,old-token", "NEW-TOKEN", "new-token "):
        answer = guarded_api.http.get(RUNS, headers=manager(wrong))
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized"), wrong
    assert guarded_api.http.get(RUNS).status_code == 401
    assert guarded_api.http.get(RUNS).headers["www-authenticate"] == "Bearer"


@pytest.mark.req("S1-24")
def test_without_keys_in_the_settings_callers_on_this_machine_need_none(api):
    assert api.http.get(RUNS).status_code == 200
    assert api.http.get(RUNS, headers=manager("whatever")).status_code == 200
    assert api.http.get(RUNS, headers=bearer("whatever")).status_code == 401, "a wrong key is wrong however open the door"


@pytest.mark.req("S1-35")
@pytest.mark.parametrize(
    "peer, headers",
    [
        ("192.0.2.7", {}),
        ("::ffff:192.0.2.7", {}),
        ("127.0.0.1", {"Host": "evil.example"}),
        ("127.0.0.1", {"Origin": "http://evil.example"}),
        ("127.0.0.1", {"Origin": "null"}),
    ],
)
def test_without_keys_nobody_else_is_let_in_nor_a_web_page_from_elsewhere(open_api, peer, headers):
    api = open_api(peer=(peer, 50000), headers=headers)
    answer = api.http.get(RUNS)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert "asks for no key" in answer.json()["error"]["message"]
    assert api.http.get("/health").status_code == 200


@pytest.mark.req("S2-03")
@pytest.mark.parametrize("role", Role)
def test_a_role_may_what_the_table_says(guarded_api, role):
    headers = guarded_api.token(role)
    for path, method, needed in ((RUNS, "GET", Role.VIEWER), (RUNS, "POST", Role.OPERATOR), (CONFIG, "GET", Role.ADMIN)):
        answer = guarded_api.http.request(method, path, json={"type": "Order"} if method == "POST" else None, headers=headers)
        if role in MAY[needed]:
            assert answer.status_code in {200, 201}
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
            assert f"somebody is {role}" in answer.json()["error"]["message"]


def test_a_key_ends_when_it_expires_or_is_revoked(guarded_api):
    assert guarded_api.http.get(RUNS, headers=guarded_api.token(Role.VIEWER, ttl_s=-1)).status_code == 401
    headers = guarded_api.token(Role.VIEWER, "gone")
    assert guarded_api.http.get(RUNS, headers=headers).status_code == 200
    with guarded_api.store.transaction() as tx:
        (token, _) = tokens.listed(tx)
        assert token.last_used_at is not None
        tokens.revoke(tx, "gone")
    assert guarded_api.http.get(RUNS, headers=headers).status_code == 401


@pytest.mark.req("S1-25")
def test_a_web_token_has_the_role_of_the_key_it_was_made_from_and_ends_with_it(guarded_api):
    issued = guarded_api.http.post("/api/v1/auth/token", headers=guarded_api.token(Role.VIEWER, "browser")).json()
    assert (issued["token_type"], issued["expires_in"], issued["role"]) == ("bearer", 900.0, "viewer")
    web = bearer(issued["access_token"])
    assert guarded_api.http.get(RUNS, headers=web).status_code == 200
    assert guarded_api.http.post(RUNS, json={"type": "Order"}, headers=web).status_code == 403
    assert guarded_api.http.post("/api/v1/auth/token", headers=web).status_code == 401, "it does not prolong itself"
    with guarded_api.store.transaction() as tx:
        tokens.revoke(tx, "browser")
    assert guarded_api.http.get(RUNS, headers=web).status_code == 401


def forged(**claims):
    now = SYSTEM.now()
    return {"iss": "orchestrator", "sub": "token:x", "role": "admin", "tid": "", "iat": int(now), "exp": int(now + 60)} | claims


@pytest.mark.req("S1-25")
@pytest.mark.parametrize(
    "claims",
    [
        {"exp": int(SYSTEM.now()) - 10},
        {"iat": int(SYSTEM.now()) + 3600},
        {"iss": "somebody"},
        {"role": "root"},
        {"tid": "unknown"},
        {"tid": None},
        {"sub": None},
        {"exp": "soon"},
    ],
)
def test_a_web_token_that_has_expired_or_is_not_ours_is_refused(guarded_api, claims):
    assert guarded_api.http.get(RUNS, headers=bearer(jwt.encode(forged(), SECRET, algorithm="HS256"))).status_code == 200
    wrong = {key: value for key, value in forged(**claims).items() if value is not None}
    assert guarded_api.http.get(RUNS, headers=bearer(jwt.encode(wrong, SECRET, algorithm="HS256"))).status_code == 401


def test_a_web_token_with_another_key_or_algorithm_is_refused(guarded_api):
    for token in (
        jwt.encode(forged(), "another secret of more than thirty-two bytes", algorithm="HS256"),
        jwt.encode(forged(), None, algorithm="none"),
        jwt.encode(forged(), SECRET + SECRET, algorithm="HS512"),
    ):
        assert guarded_api.http.get(RUNS, headers=bearer(token)).status_code == 401


def test_where_people_show_web_tokens_the_manager_token_is_for_agents_only(open_api):
    api = open_api(auth_mode="jwt", manager_token="m", jwt_secret=SECRET, peer=("192.0.2.7", 50000))
    answer = api.http.get(RUNS, headers=manager("m"))
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
    assert api.http.get(RUNS).status_code == 401
    assert api.http.get(RUNS, headers=api.token(Role.VIEWER)).status_code == 200


@pytest.mark.parametrize("settings", [{"jwt_secret": "short"}, {"auth_mode": "jwt"}])
def test_settings_that_keep_nobody_out_are_refused(open_api, settings):
    with pytest.raises(SettingsError, match="jwt_secret"):
        open_api(**settings)


HEADERS = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=200)


@pytest.mark.req("S2-44")
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["Authorization", "X-Manager-Token"]),
        HEADERS | HEADERS.map(lambda text: f"Bearer {text}") | st.just("Bearer a.b.c"),
        min_size=1,
    )
)
def test_no_header_opens_the_door_and_none_breaks_it(guarded_api, headers):
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    answer = guarded_api.http.get(RUNS, headers=raw)
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
