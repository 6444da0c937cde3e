"""Opening a store: every way in which people write a URL of ours, and no other."""

from __future__ import annotations

import pytest
from sqlalchemy.pool import QueuePool

from orchestrator.errors import DatabaseUnavailable
from orchestrator.store import Store
from schemas.settings import Settings


@pytest.mark.req("S2-15")
@pytest.mark.parametrize(
    "given, ours",
    [
        ("postgresql+asyncpg://user:pass@localhost/opmas", "postgresql+psycopg://user:***@localhost/opmas"),
        ("postgresql+asyncpg://user@localhost/opmas?ssl=require", "postgresql+psycopg://user@localhost/opmas?sslmode=require"),
        ("postgresql+psycopg2://localhost/x", "postgresql+psycopg://localhost/x"),
        ("postgres://localhost/x", "postgresql+psycopg://localhost/x"),
        ("postgresql://localhost/x", "postgresql+psycopg://localhost/x"),
        ("sqlite+aiosqlite:///x.db", "sqlite:///x.db"),
    ],
)
def test_urls_of_asynchronous_and_older_drivers_are_read_as_ours(given, ours):
    assert repr(Store.open(given)) == ours


@pytest.mark.parametrize("url", ["mysql://localhost/x", "postgresql+pg8000://localhost/x"])
def test_other_drivers_are_refused_in_one_sentence(url):
    with pytest.raises(DatabaseUnavailable, match=r"is not supported\. Use sqlite:///path/to/file or postgresql://"):
        Store.open(url)


@pytest.mark.req("S2-15")
def test_a_process_has_as_many_connections_as_its_settings_allow(postgres_url):
    store = Store.of(Settings(database_url=postgres_url, database_pool_size=2, database_max_overflow=1))
    with store.transaction(readonly=True), store.transaction(readonly=True), store.transaction(readonly=True):
        pool = store._engine.pool
        assert isinstance(pool, QueuePool)
        assert (pool.size(), pool.overflow(), pool.checkedout()) == (2, 1, 3)
    with store.transaction(readonly=True) as tx:
        open_now = tx.run("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    assert open_now == [(2,)], "the third was closed"
    store.dispose()
