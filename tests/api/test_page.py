"""The page about the API shows what works: its calls run, in their order, against a server."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from orchestrator import keys
from orchestrator.api.permissions import RULES
from orchestrator.clock import SYSTEM
from orchestrator.store import Store, tokens
from schemas.access import Role
from schemas.codes import HTTP_STATUS, ErrorCode
from tests.api.conftest import DEAD_BROKER
from tests.api.serving import served

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text()


def test_its_calls_run_as_they_stand(tmp_path, sqlite_url):
    script = "\n".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    assert script.count("\nask ") > 20
    key = keys.fresh()
    store = Store.open(sqlite_url)
    with store.transaction() as tx:
        tokens.add(tx, id=SYSTEM.fresh_id(), name="me", role=Role.ADMIN, hash=keys.hashed(key))
    store.dispose()
    with served(tmp_path, database_url=sqlite_url, broker_url=DEAD_BROKER, auth_mode="token", manager_token="m") as server:
        environment = {**os.environ, "API": server.url, "TOKEN": key, "no_proxy": "*"}
        done = subprocess.run(["sh", "-ex", "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_it_names_every_code_with_its_status():
    table = PAGE.partition("## Errors")[2].partition("\n## ")[0]
    of_the_bus = {ErrorCode.INVALID_ENVELOPE}
    of_starting = {ErrorCode.START_FAILED}
    missing = [code for code in ErrorCode if f"`{code}`" not in table and code not in of_the_bus | of_starting]
    assert missing == []
    for line in table.splitlines():
        statuses = {int(text) for text in re.findall(r"\b[45]\d\d\b", line.partition("|")[2].partition("|")[0])}
        for code in re.findall(r"`(\w+)`", line) if statuses else ():
            if code in set(ErrorCode) and 415 not in statuses:
                assert HTTP_STATUS[ErrorCode(code)] in statuses, line


def test_what_it_shows_of_addresses_is_there():
    shown = set(re.findall(r"\$API(/[\w/.-]+)", PAGE))
    patterns = [re.compile(re.sub(r"\{\w+\}", "[^/]+", path)) for _, path in RULES]
    assert [address for address in shown if not any(pattern.fullmatch(address) for pattern in patterns)] == []
