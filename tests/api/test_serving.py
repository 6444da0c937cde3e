"""`orchestrator api` as a process: it serves, logs JSON, ends in order, and refuses to be open to the world in production."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess

import httpx2 as httpx
import pytest

from tests.api.conftest import DEAD_BROKER
from tests.api.serving import launched, served

RUNS = "/api/v1/workflows"

pytestmark = pytest.mark.slow  # each starts the API as a process


def test_it_serves_logs_json_and_ends_in_order(tmp_path, database_url):
    with served(tmp_path, "--workers", "2", database_url=database_url, broker_url=DEAD_BROKER) as server:
        trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
        assert server.http.post(RUNS, json={"type": "Order", "id": "a"}, headers=trace).status_code == 201
        assert server.http.get(f"{RUNS}/a").json()["status"] == "running"
        assert server.http.get("/docs").status_code == 200
        assert "server" not in server.http.get("/health").headers
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(20)
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert {"ts", "level", "logger", "message", "service", "trace_id"} <= lines[-1].keys()
    (start,) = [line for line in lines if line.get("method") == "POST"]
    assert (start["path"], start["status"], start["trace_id"]) == (RUNS, 201, "0af7651916cd43dd8448eb211c80319c")


@pytest.mark.req("S1-35")
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_in_production_it_refuses_to_be_open_to_others(tmp_path, sqlite_url, host):
    process = launched(
        tmp_path, tmp_path / "log", "--host", host, database_url=sqlite_url, broker_url=DEAD_BROKER, environment="production"
    )
    assert process.wait(30) == 1
    told = (tmp_path / "log").read_text()
    assert told.startswith("error: in production the API is not served to others without authentication")
    assert "ORCHESTRATOR_AUTH_MODE" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"auth_mode": "jwt"}, "no jwt_secret"),
        ({"jwt_secret": "short"}, "jwt_secret is too short"),
        ({"database_url": "sqlite:///not-migrated.db"}, "orchestrator db upgrade"),
    ],
)
def test_settings_that_cannot_work_are_told_in_one_sentence(tmp_path, sqlite_url, settings, words):
    process = launched(tmp_path, tmp_path / "log", **{"database_url": sqlite_url, "broker_url": DEAD_BROKER, **settings})
    assert process.wait(30) == 1
    assert words in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


def openssl(folder, *words):
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def certificates(tmp_path):
    """An authority, and certificates of a server and a client that it has signed."""
    folder = tmp_path / "tls"
    folder.mkdir()
    openssl(
        folder,
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        "-subj",
        "/CN=test authority",
        "-days",
        "2",
    )
    for name in ("server", "client"):
        openssl(folder, "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (folder / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
        signing = (
            "x509",
            "-req",
            "-in",
            f"{name}.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "ext",
        )
        openssl(folder, *signing, "-out", f"{name}.pem")
    return folder


@pytest.mark.req("S1-25")
def test_with_an_authority_callers_need_a_certificate_of_it(tmp_path, sqlite_url, certificates):
    words = [f"--tls-{name}={certificates / file}" for name, file in (("cert", "server.pem"), ("key", "server.key"), ("ca", "ca.pem"))]
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    with served(tmp_path, *words, scheme="https", tls=context, database_url=sqlite_url, broker_url=DEAD_BROKER) as server:
        assert server.http.get(RUNS).status_code == 200
        nobody = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        with httpx.Client(base_url=server.url, verify=nobody) as other, pytest.raises(httpx.TransportError):
            other.get(RUNS)
