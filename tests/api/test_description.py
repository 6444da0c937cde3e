"""The server is what its description says: schemathesis tries all of it, valid and not, with keys and without, and finds no fault."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.conftest import DEAD_BROKER, SECRET
from tests.api.serving import served

BUDGET_S = 25
SEED = ("--seed", "20261125")
CONFIG = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.slow
@pytest.mark.req("S1-11", "S2-44")
@pytest.mark.timeout(240)
def test_schemathesis_finds_no_fault(tmp_path, sqlite_url):
    settings = {"auth_mode": "token", "manager_token": "m", "jwt_secret": SECRET, "remote_control_s": 0.05, "execute_wait_s": 0.05}
    with served(tmp_path, database_url=sqlite_url, broker_url=DEAD_BROKER, home=tmp_path, **settings) as server:
        argv = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "run", f"{server.url}/openapi.json"]
        argv += [
            "--header",
            "X-Manager-Token: m",
            "--max-time",
            str(BUDGET_S),
            "--workers",
            "2",
            "--request-timeout",
            "30",
            "--no-color",
            "--warnings",
            "off",
            *SEED,
        ]
        done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "Tested: 5" in done.stdout, done.stdout[-2_000:]
