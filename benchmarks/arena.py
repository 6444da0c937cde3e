"""Where the peers meet: one PostgreSQL for all in turn, a Valkey for each; law: started here, private, fsync on, gone at the end."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import psutil
import psycopg
from psycopg import sql

from benchmarks.driver import Driver
from benchmarks.peers import Env
from orchestrator.development_servers import Postgres
from orchestrator.errors import ServerUnavailable
from orchestrator.servers import Valkey

CONNECT_MAX_S = 10
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Seat:
    """A peer at its place, and the processes that work for it."""

    driver: Driver
    env: Env
    roots: tuple[int, ...]

    def cpu_s(self) -> float:
        """CPU seconds that all of its processes have used so far, those that have ended included, servers as well."""
        return sum(tree_cpu_s(pid) for pid in self.roots)


@dataclass(frozen=True)
class Place:
    """Where something can be measured, and the processes of its servers, as far as they are on this machine."""

    env: Env
    servers: Mapping[str, int]


class Arena:
    """A folder and a PostgreSQL; a context manager."""

    def __init__(self, postgres_url: str | None) -> None:
        self._given = postgres_url
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="orch-bench-"))
        self._folder.chmod(0o711)  # PostgreSQL runs under another account where we are root
        self._stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        try:
            if self._given:
                self.postgres_url = self._given
            else:
                server = self._stack.enter_context(Postgres(self._folder / "postgres", settings={"max_connections": "200"}))
                self.postgres_url = server.url
            # The first to connect, so the one to say that nobody answers at a given URL.
            self.postgres_settings = {
                name: self._show(name) for name in ("server_version", "fsync", "synchronous_commit", "shared_buffers")
            }
            self._postgres_pid = self._find_postgres()
        except psycopg.OperationalError as error:
            self._stack.close()
            raise ServerUnavailable(f"PostgreSQL does not answer. Check the URL, and that it may be used from here: {error}") from None
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def seat(self, peer: str) -> Iterator[Seat]:
        """A place of its own for the peer, and the peer itself."""
        with self.place(peer) as place:
            driver = Driver(peer, place.env)
            try:
                yield Seat(driver, place.env, (driver.pid, *place.servers.values()))
            finally:
                driver.close()

    @contextmanager
    def place(self, name: str) -> Iterator[Place]:
        """A fresh database and a fresh broker."""
        folder = self._folder / f"{name}-{uuid.uuid4().hex[:8]}"
        effects = folder / "effects"
        effects.mkdir(parents=True)
        with Valkey(folder / "valkey") as valkey, self._database(name) as database_url:
            assert valkey.pid is not None, "it runs"
            servers = {"Valkey": valkey.pid, **dict(zip(["PostgreSQL"], self._postgres_pid, strict=False))}
            yield Place(Env(folder, effects, database_url, valkey.url, valkey.results_url), servers)
        shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _database(self, peer: str) -> Iterator[str]:
        name = f"bench_{peer.replace('-', '_')}_{uuid.uuid4().hex[:8]}"
        self._command("CREATE DATABASE {}", name)
        try:
            yield self.postgres_url.rpartition("/")[0] + "/" + name
        finally:
            self._command("DROP DATABASE {} WITH (FORCE)", name)

    def _command(self, text: str, name: str) -> None:
        with psycopg.connect(self._plain_url, autocommit=True, connect_timeout=CONNECT_MAX_S) as connection:
            connection.execute(sql.SQL(text).format(sql.Identifier(name)))

    def _show(self, setting: str) -> str:
        with psycopg.connect(self._plain_url, connect_timeout=CONNECT_MAX_S) as connection:
            row = connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(setting))).fetchone()
        assert row is not None, "SHOW gives one row"
        return str(row[0])

    def _find_postgres(self) -> tuple[int, ...]:
        """The process of the server, if it is on this machine: its CPU seconds count."""
        if urlsplit(self.postgres_url).hostname not in LOOPBACK:
            return ()
        with psycopg.connect(self._plain_url, connect_timeout=CONNECT_MAX_S) as connection:
            return (psutil.Process(connection.info.backend_pid).ppid(),)

    @property
    def _plain_url(self) -> str:
        return self.postgres_url.replace("+psycopg", "")


def machine_cpu_s() -> float:
    """CPU seconds that all programs of this machine have used so far."""
    times = psutil.cpu_times()
    return float(times.user + times.system + times.nice + getattr(times, "irq", 0.0) + getattr(times, "softirq", 0.0))


def tree_cpu_s(pid: int) -> float:
    """Own time and that of ended children, over the living of the tree: what a process used moves to its parent when it ends."""
    total = 0.0
    root = psutil.Process(pid)
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue  # ended just now; it is counted at its parent from here on
        total += times.user + times.system + times.children_user + times.children_system
    return total
