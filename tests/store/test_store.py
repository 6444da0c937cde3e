"""The door to the database: transactions, errors that name a remedy, and migrations."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator

import psycopg
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlmodel import SQLModel

from orchestrator import crashpoints
from orchestrator.clock import SystemClock
from orchestrator.errors import DatabaseNotMigrated, DatabaseUnavailable
from orchestrator.store import Store, listing, runs, schema, tables, workers
from orchestrator.store.transaction import render
from schemas.runs import RunFilter, WorkerIdentity
from tests.store.conftest import Desk


class Stop(Exception):
    pass


def test_a_transaction_is_all_or_nothing(desk):
    def start_and_stop():
        with desk.store.transaction() as tx:
            runs.start(tx, [desk.new("order-1")])
            raise Stop

    with pytest.raises(Stop):
        start_and_stop()
    assert desk.count("runs") == desk.count("inbox") == 0
    desk.start("order-1")
    assert desk.count("runs") == 1


def test_a_reader_sees_one_moment_and_waits_for_nobody(desk, rival):
    with rival.store.transaction(readonly=True) as tx:
        assert listing.count_runs(tx, RunFilter()) == 0
        desk.start()
        assert listing.count_runs(tx, RunFilter()) == 0
    assert rival.count("runs") == 1


def test_a_failed_statement_takes_the_transaction_with_it_though_it_is_caught(desk):
    lease = "INSERT INTO leases (name, holder, expires_at, epoch) VALUES ('a', 'b', 0, 0)"

    def start_and_fail():
        with desk.store.transaction() as tx:
            runs.start(tx, [desk.new("order-1")])
            tx.run(lease)
            with pytest.raises((sqlite3.IntegrityError, psycopg.IntegrityError)):
                tx.run(lease + " RETURNING name")

    if desk.store.dialect == "postgresql":
        with pytest.raises(psycopg.errors.PipelineAborted):
            start_and_fail()
        assert desk.count("runs") == 0
    else:
        start_and_fail()  # SQLite undoes the statement and nothing else, and says so truthfully
        assert desk.count("runs") == 1


def test_each_commit_stands_between_two_crash_points(desk):
    passed: list[str] = []
    crashpoints.arm(passed.append)
    try:
        desk.commit()
    finally:
        crashpoints.arm(None)
    assert passed == ["turns.commit:before_commit", "turns.commit:after_commit"]


def test_the_clock_of_an_sqlite_store_can_be_moved():
    class Clock(SystemClock):
        time = 100.0

        def now(self):
            return self.time

    clock = Clock()
    store = Store.open("sqlite://", clock=clock)
    store.upgrade()
    with store.transaction() as tx:
        assert tx.now() == 100.0
        clock.time = 200.0
        assert tx.now() == 200.0
    store.dispose()


@pytest.mark.parametrize(
    "url, says",
    [
        ("nonsense", "cannot be read"),
        ("", "cannot be read"),
        ("mysql://root:hunter2@localhost/x", "not supported"),
        ("postgresql+pg8000://root:hunter2@localhost/x", "not supported"),
        ("postgresql://root:hunter2@localhost:port/x", "cannot be read"),
    ],
)
def test_a_url_that_names_no_database_is_refused_without_telling_the_password(url, says):
    with pytest.raises(DatabaseUnavailable, match=says) as caught:
        Store.open(url)
    assert "hunter2" not in str(caught.value)
    assert "postgresql://" in str(caught.value)


@pytest.mark.parametrize("url", ["postgresql://root:hunter2@127.0.0.1:1/x", "postgresql://root:hunter2@no-such-host.invalid/x"])
def test_an_unreachable_server_is_one_sentence_without_the_password(url):
    store = Store.open(url)
    for attempt in (store.upgrade, store.check_migrated, lambda: begin(store)):
        with pytest.raises(DatabaseUnavailable) as caught:
            attempt()
        assert "hunter2" not in str(caught.value)
        assert "\n" not in str(caught.value)
    store.dispose()


def test_a_missing_database_on_a_server_that_runs_is_told(postgres_url):
    store = Store.open(postgres_url + "_missing")
    with pytest.raises(DatabaseUnavailable, match="does not exist"):
        begin(store)
    store.dispose()


def test_a_missing_folder_is_told(tmp_path):
    store = Store.open(f"sqlite:///{tmp_path}/missing/test.db")
    with pytest.raises(DatabaseUnavailable, match="Create its folder"):
        begin(store)


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "test.db").write_text("Dear diary, " * 100)
    store = Store.open(f"sqlite:///{tmp_path}/test.db")
    with pytest.raises(DatabaseUnavailable, match="not a database"):
        begin(store)
    store.dispose()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everything")
def test_a_read_only_file_is_told(sqlite_url, tmp_path):
    store = Store.open(sqlite_url)
    store.upgrade()
    store.dispose()
    (tmp_path / "test.db").chmod(0o400)
    with pytest.raises(DatabaseUnavailable, match="writable"):
        begin(store)
    store.dispose()


def test_connections_that_the_server_has_closed_cost_one_transaction(postgres_url, postgres_server):
    store = Store.open(postgres_url)
    store.upgrade()
    name = sqlalchemy.make_url(postgres_url).database
    with store.transaction(), store.transaction():
        pass  # two pooled connections
    killer = sqlalchemy.create_engine(postgres_server)
    with killer.connect() as connection:
        connection.exec_driver_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
    killer.dispose()

    with pytest.raises(DatabaseUnavailable):
        begin(store)
    with store.transaction(), store.transaction() as tx:
        assert tx.run("SELECT 1") == [(1,)]
    store.dispose()


FROZEN = """
import os, socket, sys
from orchestrator import store
from orchestrator.errors import DatabaseUnavailable
with store.Store.open(sys.argv[1]) as opened:
    try:
        with opened.transaction() as tx:
            tx.run("LOCK TABLE runs IN EXCLUSIVE MODE")
            print(os.getpid(), socket.gethostname(), flush=True)
            sys.stdin.readline()
            tx.run("SELECT 1")
    except DatabaseUnavailable as error:
        print(error)
    with opened.transaction() as tx:
        print(tx.run("SELECT 1"))
"""


@pytest.fixture
def frozen(postgres_url) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """A process that stands still in the middle of a transaction, with a lock on all runs."""
    argv = [sys.executable, "-c", FROZEN, postgres_url]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        who = process.stdout.readline().split()
        process.send_signal(signal.SIGSTOP)
        yield process, who
        process.kill()


def test_who_is_frozen_in_the_middle_of_a_transaction_holds_nobody_up(postgres_url, frozen):
    with Store.open(postgres_url) as opened:
        with opened.transaction() as tx:
            assert workers.end_frozen(tx, 60.0) == 0, "it may yet go on"
            assert workers.end_frozen(tx, 0.0) == 1
        Desk(opened).start("another")  # waits for the lock
    process, _ = frozen
    process.send_signal(signal.SIGCONT)
    told, _ = process.communicate("\n", timeout=30)
    assert "cannot be used" in told
    assert told.splitlines()[-1] == "[(1,)]", "its next transaction has a new connection"


def test_a_worker_whose_lease_stands_may_take_its_time_in_a_transaction(postgres_url, frozen):
    _, (pid, host) = frozen
    identity = WorkerIdentity("w-1", "w@here", host, "boot", int(pid), 0.0, (), "")
    with Store.open(postgres_url) as opened:
        with opened.transaction() as tx:
            workers.register(tx, identity, 60.0)
        with opened.transaction() as tx:
            assert workers.end_frozen(tx, 0.0) == 0
            workers.extend(tx, "w-1", 0.0)
        with opened.transaction() as tx:
            assert workers.end_frozen(tx, 0.0) == 1


def test_a_deadlock_is_something_to_try_again(desk, rival):
    if desk.store.dialect == "sqlite":
        with rival.store.transaction(), pytest.raises(DatabaseUnavailable, match="Another process"):
            impatient(desk.store)
        return
    a, b = sorted([desk.start(), desk.start()])
    lock = "UPDATE runs SET priority = 1 WHERE run_id = :run_id"
    both = threading.Barrier(2)
    failed: list[DatabaseUnavailable] = []

    def work(engine, first, second):
        try:
            with engine.store.transaction() as tx:
                tx.run("SELECT 1 FROM runs WHERE run_id = :run_id FOR UPDATE", run_id=first)
                both.wait()
                tx.run(lock, run_id=second)
        except DatabaseUnavailable as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(desk, a, b)), threading.Thread(target=work, args=(rival, b, a))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [("deadlock" in str(error), "Try again" in str(error)) for error in failed] == [(True, True)]


def test_a_forked_child_makes_its_own_connections(desk):
    desk.start()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads around is what Celery's prefork pool does
        child = multiprocessing.get_context("fork").Process(target=desk.start)
        child.start()
    child.join()
    assert child.exitcode == 0
    assert desk.count("runs") == 2


def test_an_empty_database_is_told_from_a_migrated_one(empty_database_url):
    store = Store.open(empty_database_url)
    with pytest.raises(DatabaseNotMigrated, match=rf"none.*{schema.head()}.*db upgrade"):
        store.check_migrated()
    with pytest.raises(DatabaseNotMigrated, match="db upgrade"), store.transaction() as tx:
        tx.run("SELECT * FROM runs")
    store.upgrade()
    store.check_migrated()
    with store.transaction() as tx:
        tx.run("UPDATE alembic_version SET version_num = 'of tomorrow'")
    store.check_migrated()  # a rolling upgrade: the new version has migrated, this process goes on
    store.dispose()


def test_concurrent_upgrades_wait_for_each_other(empty_database_url):
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=upgrade, args=(empty_database_url,)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]


def test_the_migrations_make_what_the_tables_declare(store, database_url):
    engine = sqlalchemy.create_engine(database_url)
    with engine.connect() as connection:
        include = tables.comparable_on_sqlite if store.dialect == "sqlite" else None
        context = MigrationContext.configure(connection, opts={"compare_type": True, "include_object": include})
        assert "runs" in SQLModel.metadata.tables
        assert compare_metadata(context, SQLModel.metadata) == []
    engine.dispose()


def test_the_newest_revision_is_told_without_loading_what_migrates():
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS))
    assert schema.head() == ScriptDirectory.from_config(config).get_current_head()
    assert schema.knows("0001")
    assert not schema.knows("9999")
    look = (
        "import sys, orchestrator.celery, workers.agents; print([m for m in ('alembic', 'sqlalchemy.orm', 'fastapi') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_any_text_and_any_time_survives_a_row_source(store):
    texts = ["", "NULL", 'a "b" c', "back\\slash", "{x,y}", "line\nbreak", "ünï 😀", "%s :name {now}", None]
    times = [0.1, 1795257845.2937351, 4e9, None, 1e-300, 5, 7.0, -2.5, 1 / 3]
    rows = list(zip(range(len(texts)), texts, times, strict=True))
    with store.transaction() as tx:
        found = tx.run_rows("SELECT v.n, v.word, v.at FROM {rows n:int, word:text, at:float}", rows)
        listed = tx.run("SELECT count(*) FROM runs WHERE {in queue :words}", words=texts[:-1])
    assert sorted(found) == rows
    assert listed == [(0,)]


def test_sentences_are_rendered_for_both_databases():
    sentence = "UPDATE a SET x = v.x, n = :n, at = {now} FROM {rows id:text, x:float} WHERE a.id = v.id AND {in k :ks} AND y LIKE '%' RETURNING a.id"
    postgres, sqlite = render("postgresql", sentence), render("sqlite", sentence)
    assert postgres.text == (
        "UPDATE a SET x = v.x, n = %(n)s, at = extract(epoch from statement_timestamp())::float8 "
        "FROM unnest(%(v_0)s::text[], %(v_1)s::float8[]) AS v(id, x) WHERE a.id = v.id AND k = ANY(%(ks)s) AND y LIKE '%%' RETURNING a.id"
    )
    assert sqlite.text == (
        "UPDATE a SET x = v.x, n = ?3, at = db_now() FROM (SELECT CAST(?1 AS TEXT) AS id, CAST(?2 AS REAL) AS x) AS v "
        "WHERE a.id = v.id AND k IN (SELECT value FROM json_each(?4)) AND y LIKE '%' RETURNING a.id"
    )
    assert sqlite.names == ("n", "ks")
    assert postgres.answers
    assert not render("sqlite", "INSERT INTO a SELECT 1").answers


def begin(store):
    with store.transaction() as tx:
        tx.run("SELECT 1")


def impatient(store):
    with store.transaction(readonly=True) as tx:
        tx.run("PRAGMA busy_timeout = 50")
    begin(store)


def upgrade(url):
    store = Store.open(url)
    store.upgrade()
    store.check_migrated()
    store.dispose()
