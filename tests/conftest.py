"""Servers and databases for all tests; law: started once a session, a fresh database for each test, nothing left behind, no sleeping.

`valkey` is always there. `rabbitmq` is a private instance that tests may kill; `rabbitmq_url` settles for one that listens already.
`database_url` runs a test once for each database; `sqlite_url` and `postgres_url` are its halves.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg import sql
from sqlmodel import SQLModel

from orchestrator.development_servers import Postgres, RabbitMQ
from orchestrator.servers import Valkey, ask_tcp
from orchestrator.store import Store
from tests.reqs import pytest_addoption, pytest_collection_finish, pytest_collection_modifyitems

__all__ = ["pytest_addoption", "pytest_collection_finish", "pytest_collection_modifyitems"]  # hooks that pytest finds here

RUNNING_POSTGRES_URL = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
RUNNING_RABBITMQ_URL = "amqp://guest:guest@127.0.0.1:5672//"
CONNECT_MAX_S = 3
PROFILE = "TEST_PROFILE"
"""In the environment: `fast` leaves out what starts processes or takes long, anything else runs all."""
SLOW_FOLDERS = {"e2e", "cluster"}
SLOW_FIXTURES = {"start_worker", "rabbitmq"}
MIGRATED_DATABASES = 4  # a test that leaves something running must not meet the next one

# Time limits belong to pytest-timeout: an example that is slow on a busy machine is no counterexample.
hypothesis.settings.register_profile("house", deadline=None, print_blob=True)
hypothesis.settings.load_profile("house")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Whatever starts worker processes is slow, and nobody must remember to say so."""
    if SLOW_FOLDERS & set(item.path.parts) or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.slow)
    if os.environ.get(PROFILE) == "fast" and item.get_closest_marker("slow"):
        item.add_marker(pytest.mark.skip(reason="TEST_PROFILE=fast leaves out what is slow"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged travels between processes as UTF-8, whatever it was: one lone surrogate would end the whole session."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


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


@pytest.fixture(scope="session")
def migrated_databases(postgres_server: str) -> Iterator[Iterator[str]]:
    """URLs of a few migrated databases, in turn: making and dropping one for each test costs a second of checkpoints."""
    made = [made_database(postgres_server) for _ in range(MIGRATED_DATABASES)]
    urls = [postgres_server.rpartition("/")[0] + "/" + name for name in made]
    for url in urls:
        opened = Store.open(url)
        opened.upgrade()
        opened.dispose()
    yield cycle(urls)
    for name in made:
        command(postgres_server, "DROP DATABASE {} WITH (FORCE)", name)


@pytest.fixture
def postgres_url(migrated_databases: Iterator[str]) -> str:
    """A migrated database without rows, and without anybody in it."""
    url = next(migrated_databases)
    name = url.rpartition("/")[2]
    command(url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()")
    command(url, "; ".join(f"DELETE FROM {table}" for table in SQLModel.metadata.tables))
    return url


@pytest.fixture
def empty_postgres_url(postgres_server: str) -> Iterator[str]:
    """A database that nobody has migrated."""
    name = made_database(postgres_server)
    yield postgres_server.rpartition("/")[0] + "/" + name
    command(postgres_server, "DROP DATABASE {} WITH (FORCE)", name)


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A folder for a server that a test starts by itself."""
    with private_home() as home:
        yield home


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "test.db"
    opened = Store.open(f"sqlite:///{path}")
    opened.upgrade()
    opened.dispose()
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_file: Path) -> str:
    """A migrated database file without rows."""
    return f"sqlite:///{shutil.copy(migrated_file, tmp_path / 'test.db')}"


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """A database file that does not exist yet."""
    return f"sqlite:///{tmp_path / 'empty.db'}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """One body for both databases, migrated and without rows; `-k sqlite` or `-k postgresql` takes one."""
    url: str = request.getfixturevalue({"sqlite": "sqlite_url", "postgresql": "postgres_url"}[request.param])
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest) -> str:
    """The same, not migrated."""
    url: str = request.getfixturevalue({"sqlite": "empty_sqlite_url", "postgresql": "empty_postgres_url"}[request.param])
    return url


def made_database(server: str) -> str:
    """A new database on the server; returns its name."""
    name = f"orch_test_{uuid.uuid4().hex}"
    command(server, "CREATE DATABASE {}", name)
    return name


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
