"""Servers and databases for all tests; law: started once a session, a fresh database for each test, nothing left behind, no sleeping.

`valkey` is always there. `rabbitmq` is a private instance that tests may kill; `rabbitmq_url` settles for one that listens already.
`database_url` runs a test once for each database; `sqlite_url` and `postgres_url` are its halves.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg import sql

from orchestrator.development_servers import Postgres, RabbitMQ
from orchestrator.servers import Valkey, ask_tcp

RUNNING_POSTGRES_URL = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
RUNNING_RABBITMQ_URL = "amqp://guest:guest@127.0.0.1:5672//"
CONNECT_MAX_S = 3

# Time limits belong to pytest-timeout: an example that is slow on a busy machine is no counterexample.
hypothesis.settings.register_profile("house", deadline=None, print_blob=True)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="session")
def valkey() -> Iterator[Valkey]:
    """The embedded broker; tests may kill and flush it, and leave it running."""
    with private_home() as home, Valkey(home / "valkey") as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A private RabbitMQ; tests may kill and purge it, and leave it running."""
    if not RabbitMQ.installed():
        pytest.skip("rabbitmq-server is not installed; on Debian: apt-get install rabbitmq-server")
    with private_home() as home, RabbitMQ(home / "rabbitmq") as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq_url(request: pytest.FixtureRequest) -> str:
    """Any RabbitMQ, not to be killed."""
    if not RabbitMQ.installed() and (ask_tcp(5672, b"AMQP\x00\x00\x09\x01") or b"").startswith(b"\x01"):
        return RUNNING_RABBITMQ_URL
    server: RabbitMQ = request.getfixturevalue("rabbitmq")
    return server.url


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server where we may create databases: the one that runs on this machine, else a private one."""
    if accepts(RUNNING_POSTGRES_URL):
        yield RUNNING_POSTGRES_URL
        return
    with private_home() as home, Postgres(home / "postgres", settings={"fsync": "off", "max_connections": "200"}) as server:
        yield server.url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A fresh database."""
    name = f"orch_test_{uuid.uuid4().hex}"
    command(postgres_server, "CREATE DATABASE {}", name)
    yield postgres_server.rpartition("/")[0] + "/" + name
    command(postgres_server, "DROP DATABASE {} WITH (FORCE)", name)


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A folder for a server that a test starts by itself."""
    with private_home() as home:
        yield home


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A fresh database file."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """One body for both databases; `-k sqlite` or `-k postgresql` takes one."""
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param])
    return url


def accepts(url: str) -> bool:
    try:
        command(url, "SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def command(url: str, text: str, *names: str) -> None:
    """Outside any transaction, as CREATE and DROP DATABASE want it."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True, connect_timeout=CONNECT_MAX_S) as connection:
        connection.execute(sql.SQL(text).format(*map(sql.Identifier, names)))


@contextmanager
def private_home() -> Iterator[Path]:
    """A short-pathed temporary folder that another account may enter, as PostgreSQL needs it under root."""
    path = Path(tempfile.mkdtemp(prefix="orch-"))
    path.chmod(0o711)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
