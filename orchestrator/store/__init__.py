"""The store: the one place that speaks SQL; law: the store is the truth, and rows never leave it, functions take and return schemas.

Each module asks the questions of one aggregate: `runs`, `turns`, `activities`, `due`, `workers`, `control`, `listing`. Their functions take
an open `Transaction` first. The store imports schemas, errors, clock and crash points, and is imported by everything above `core`.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self, cast

import psycopg
import sqlalchemy
from psycopg.pq import TransactionStatus
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection, QueuePool, StaticPool

from orchestrator.clock import SYSTEM, Clock
from orchestrator.crashpoints import crashpoint
from orchestrator.errors import DatabaseNotMigrated, DatabaseUnavailable
from orchestrator.store import schema
from orchestrator.store.hints import CLOSED, Ear
from orchestrator.store.transaction import PostgresTransaction, SqliteTransaction, Transaction, Unmet
from schemas.settings import Settings

__all__ = ["Store", "Transaction", "Unmet"]

BUSY_TIMEOUT_S = 30.0  # SQLite's waits are unfair: at saturation one writer may wait for seconds
CONNECT_TIMEOUT_S = 10
_POOL = Settings()  # how many connections, where nobody says

# What other programs call their way to PostgreSQL: we have one of our own.
POSTGRES_DRIVERS = {"postgres", "postgresql", "postgresql+asyncpg", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+psycopg_async"}
SQLITE_DRIVERS = {"sqlite", "sqlite+aiosqlite", "sqlite+pysqlite"}

# What the world does to a database; anything else is a mistake of ours and is raised as it is.
_SQLITE_WORLD = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
}


PLANNING = """
SET plan_cache_mode = force_generic_plan; SET jit = off; SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
SET enable_bitmapscan = off
"""
# Every sentence is written for an index and a few hundred rows, and is prepared once per connection: planning it anew costs more than
# running it, and a plan that was made while a table was empty must still be right when it is full. Bitmap scans are off because only plain
# index scans mark the entries of dead rows: a claim would step over every run that was ever ready since the last vacuum.


class Store:
    """A database by its URL; connections are made when the first transaction begins, and anew in a forked child."""

    def __init__(
        self,
        url: sqlalchemy.URL,
        *,
        clock: Clock,
        pool_size: int = _POOL.database_pool_size,
        max_overflow: int = _POOL.database_max_overflow,
    ) -> None:
        self.dialect = url.get_backend_name()
        self._pool = _pool_options(pool_size, max_overflow)
        self.clock = clock
        self._url = url
        self._pid = os.getpid()
        self._inherited: list[object] = []  # what a parent process has open; collecting it here might close it there
        self._open_pool()

    @classmethod
    def open(cls, url: str, *, clock: Clock = SYSTEM) -> Store:
        """The store at `sqlite:///path`, `sqlite://` (in memory) or `postgresql://…`; raises DatabaseUnavailable if it can name neither."""
        return cls(_parse(url), clock=clock)

    @classmethod
    def of(cls, settings: Settings, *, clock: Clock = SYSTEM) -> Store:
        """The store of a process: as `open`, with as many connections as the settings allow."""
        url = _parse(settings.database_url)
        return cls(url, clock=clock, pool_size=settings.database_pool_size, max_overflow=settings.database_max_overflow)

    @contextmanager
    def transaction(self, *, readonly: bool = False, single: bool = False, purpose: str = "transaction") -> Iterator[Transaction]:
        """An open transaction: committed at the end of the block, rolled back by an exception.

        A single one consists of one statement, or of one block of `together`, and costs PostgreSQL one round trip.

        A readonly one sees one moment and waits for nobody. `purpose` names the crash points around the commit. Raises DatabaseUnavailable
        when the database cannot be reached, has gone, or chose this transaction as the victim of a deadlock: nothing is written then, or,
        if the connection broke during the commit, perhaps all of it. Trying the whole block again is always right.
        """
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._engine.dispose(close=False)  # the connections are the parent's
            self._inherited += self._idle
            self._open_pool()
        with self._told(), self._connected() as connection:
            if self.dialect == "sqlite":
                yield from self._on_sqlite(cast("sqlite3.Connection", connection), readonly=readonly, purpose=purpose)
            else:
                postgres = cast("psycopg.Connection[Any]", connection)
                way = self._alone_on_postgres if single else self._on_postgres
                yield from way(postgres, readonly=readonly, purpose=purpose)

    def joined(self, connection: sqlalchemy.Connection) -> Transaction:
        """Our part of a caller's own transaction on the same database: it commits or rolls back when theirs does."""
        assert connection.dialect.name == self.dialect, f"the connection is {connection.dialect.name}, the store {self.dialect}"
        if not connection.in_transaction():
            connection.begin()
        driver: Any = connection.connection.driver_connection
        if self.dialect == "sqlite":
            _teach_time(driver, self.clock)
            return SqliteTransaction(driver)
        return PostgresTransaction(driver)

    def listen(self, channel: str = CLOSED) -> Ear | None:
        """An ear for hints on a connection of its own; None where processes cannot tell each other. Raises DatabaseUnavailable."""
        if self.dialect == "sqlite":
            return None
        with self._told():
            lent = self._lend()
            connection = cast("psycopg.Connection[Any]", lent.driver_connection)
            lent.detach()  # from now on it is not the pool's
            return Ear(connection, channel)

    def upgrade(self) -> None:
        """Create or migrate the schema; concurrent callers wait for each other, and finding nothing to do is fine."""
        self._give_back_idle()
        with self._told(), self._engine.begin() as connection:
            schema.upgrade(connection)

    def check_migrated(self) -> None:
        """Raise DatabaseNotMigrated unless the schema is at the revision that this code needs, or at one newer than this code knows."""
        needed = schema.head()
        current: str | None = None
        try:
            with self.transaction(readonly=True) as tx:
                rows = tx.run("SELECT version_num FROM alembic_version")
                current = rows[0][0] if rows else None
        except DatabaseNotMigrated:
            current = None
        if current is None or (current != needed and schema.knows(current)):
            raise DatabaseNotMigrated(
                f"the database {self} is at schema revision {current or 'none'}, this code needs {needed}. Run `orchestrator db upgrade`.",
            )

    def dispose(self) -> None:
        """Close the connections that are not in use; the store opens new ones when it is used again."""
        self._give_back_idle()
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dispose()

    def __repr__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def _open_pool(self) -> None:
        # Those returned last are used first: their statements are prepared, their servers' processes awake. And without the pool's ceremony.
        self._idle: list[PoolProxiedConnection] = []
        self._writer = threading.RLock()  # SQLite has one writer: threads of this process queue here, fairly, and not in its busy loop
        if self.dialect == "sqlite":
            self._engine = _sqlite_engine(self._url, self.clock, self._pool)
        else:
            self._engine = _postgres_engine(self._url, self._pool)

    @contextmanager
    def _connected(self) -> Iterator[object]:
        lent = self._lend()
        try:
            yield lent.driver_connection
        except BaseException as error:
            if _broken(lent, error):
                lent.invalidate(error if isinstance(error, Exception) else None)
                lent.close()
                self.dispose()  # the idle ones have met the same fate; do not let each of them cost a transaction
            else:
                self._keep(lent)
            raise
        self._keep(lent)

    def _lend(self) -> PoolProxiedConnection:
        with suppress(IndexError):
            return self._idle.pop()
        return self._engine.raw_connection()

    def _keep(self, lent: PoolProxiedConnection) -> None:
        if len(self._idle) < self._pool["pool_size"]:
            self._idle.append(lent)
        else:
            lent.invalidate()
            lent.close()

    def _give_back_idle(self) -> None:
        while self._idle:
            with suppress(IndexError):
                self._idle.pop().close()

    def _on_sqlite(self, connection: sqlite3.Connection, *, readonly: bool, purpose: str) -> Iterator[Transaction]:
        if not readonly and not self._writer.acquire(timeout=BUSY_TIMEOUT_S):
            raise DatabaseUnavailable(f"the database {self} was busy for {BUSY_TIMEOUT_S:.0f} s: another thread writes. Try again.")
        try:
            connection.execute("BEGIN" if readonly else "BEGIN IMMEDIATE")
            yield SqliteTransaction(connection)
            crashpoint(f"{purpose}:before_commit")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        finally:
            if not readonly:
                self._writer.release()
        crashpoint(f"{purpose}:after_commit")

    @staticmethod
    def _on_postgres(connection: psycopg.Connection[Any], *, readonly: bool, purpose: str) -> Iterator[Transaction]:
        commit = connection.cursor()
        try:
            with connection.pipeline():
                connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY" if readonly else "BEGIN")
                yield PostgresTransaction(connection)
                crashpoint(f"{purpose}:before_commit")
                commit.execute("COMMIT")
            assert commit.statusmessage == "COMMIT", "a failed statement was caught and the transaction went on: nothing was committed"
        except BaseException:
            if not connection.closed:
                connection.rollback()
            raise
        crashpoint(f"{purpose}:after_commit")

    @staticmethod
    def _alone_on_postgres(connection: psycopg.Connection[Any], *, readonly: bool, purpose: str) -> Iterator[Transaction]:
        if not readonly:
            crashpoint(f"{purpose}:before_commit")
        yield PostgresTransaction(connection, single=True)
        if not readonly:
            crashpoint(f"{purpose}:after_commit")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in one sentence what the world did; leave what we did wrong alone."""
        try:
            yield
        except (sqlite3.Error, psycopg.Error, SQLAlchemyError) as error:
            cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
            reason = " ".join(str(cause).split())
            if self._url.password:
                reason = reason.replace(str(self._url.password), "***")
            if _unknown_table(cause):
                raise DatabaseNotMigrated(f"the database {self} lacks a table ({reason}). Run `orchestrator db upgrade`.") from error
            if not _of_the_world(cause):
                raise
            raise DatabaseUnavailable(f"the database {self} cannot be used: {reason}. {_remedy(cause)}") from error


def _parse(text: str) -> sqlalchemy.URL:
    forms = "Use sqlite:///path/to/file or postgresql://user@host/name."
    try:
        url = sqlalchemy.make_url(text)
    except (ArgumentError, ValueError) as error:  # its message may hold the password
        raise DatabaseUnavailable(f"the database URL cannot be read. {forms}") from error
    if url.drivername in POSTGRES_DRIVERS:
        url = _for_psycopg(url)
    elif url.drivername in SQLITE_DRIVERS:
        url = url.set(drivername="sqlite")
    else:
        raise DatabaseUnavailable(f"the database driver {url.drivername!r} is not supported. {forms}")
    try:
        url.get_dialect()
    except (NoSuchModuleError, ImportError) as error:
        raise DatabaseUnavailable(f"the database driver {url.drivername!r} is not installed. {forms}") from error
    return url


def _for_psycopg(url: sqlalchemy.URL) -> sqlalchemy.URL:
    url = url.set(drivername="postgresql+psycopg")
    if "ssl" in url.query:  # asyncpg's word for it, with the same values
        url = url.difference_update_query(["ssl"]).update_query_pairs([("sslmode", str(url.query["ssl"]))])
    return url


def _sqlite_engine(url: sqlalchemy.URL, clock: Clock, pool: Mapping[str, Any]) -> sqlalchemy.Engine:
    in_memory = url.database in {None, "", ":memory:"}
    engine = sqlalchemy.create_engine(
        url,
        connect_args={"check_same_thread": False, "isolation_level": None, "timeout": BUSY_TIMEOUT_S, "cached_statements": 512},
        **({"poolclass": StaticPool} if in_memory else pool),
    )

    @sqlalchemy.event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_S * 1000:.0f}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # an acknowledged start outlives a power cut
        connection.execute("PRAGMA foreign_keys = ON")
        _teach_time(connection, clock)

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:  # migrations only: `transaction` speaks to the driver
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def session_name(pid: int, host: str) -> str:
    """What the sessions of a process are called in PostgreSQL's `pg_stat_activity`, cut as names are there."""
    return f"orchestrator {pid} {host}"[:63]


def _postgres_engine(url: sqlalchemy.URL, pool: Mapping[str, Any]) -> sqlalchemy.Engine:
    options: dict[str, Any] = {"autocommit": True, "prepare_threshold": 2}
    if "connect_timeout" not in url.query:
        options["connect_timeout"] = CONNECT_TIMEOUT_S
    engine = sqlalchemy.create_engine(url, connect_args=options, use_native_hstore=False, **pool)

    @sqlalchemy.event.listens_for(engine, "connect")
    def prepare(connection: psycopg.Connection[Any], _record: object) -> None:
        connection.execute(PLANNING)
        if "application_name" not in url.query:
            connection.execute("SELECT set_config('application_name', %s, false)", (session_name(os.getpid(), socket.gethostname()),))

    @sqlalchemy.event.listens_for(engine, "begin")
    def begin(connection: sqlalchemy.Connection) -> None:  # migrations only: `transaction` speaks to the driver
        connection.exec_driver_sql("BEGIN")

    return engine


def _pool_options(pool_size: int, max_overflow: int) -> dict[str, Any]:
    return {
        "poolclass": QueuePool,
        "pool_size": pool_size,
        "max_overflow": max_overflow,
        "pool_timeout": BUSY_TIMEOUT_S,
        "pool_reset_on_return": None,  # each transaction ends its own work
    }


def _teach_time(connection: sqlite3.Connection, clock: Clock) -> None:
    # "deterministic" makes it one value per statement, as statement_timestamp() is, and lets it bound an index scan.
    connection.create_function("db_now", 0, clock.now, deterministic=True)


def _broken(lent: PoolProxiedConnection, error: BaseException) -> bool:
    connection = lent.driver_connection
    if isinstance(connection, psycopg.Connection):
        return connection.closed or connection.info.transaction_status != TransactionStatus.IDLE
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", 0) & 0xFF in {
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOTADB,
    }


def _of_the_world(error: BaseException) -> bool:
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE_WORLD
    if isinstance(error, psycopg.errors.PipelineAborted):  # somebody caught the error before it and went on
        return False
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):  # a standby after a failover
        return True
    return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | sqlalchemy.exc.TimeoutError)


def _unknown_table(error: BaseException) -> bool:
    missing = isinstance(error, sqlite3.OperationalError) and "no such table" in str(error)
    return missing or isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn)


def _remedy(error: BaseException) -> str:
    if isinstance(error, psycopg.errors.DeadlockDetected | psycopg.errors.SerializationFailure):
        return "Try again."
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_CANTOPEN:
            return "Create its folder and make it writable."
        case sqlite3.SQLITE_READONLY:
            return "Make the file and its folder writable."
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "Another process writes for too long; try again."
        case sqlite3.SQLITE_FULL:
            return "Make room on the disk."
        case _:
            return "Check that it runs and that ORCHESTRATOR_DATABASE_URL names it."
