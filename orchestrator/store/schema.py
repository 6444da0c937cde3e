"""The version of the database schema and the way to it; law: migrations run online, one at a time, and in one transaction."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).parent / "migrations"
UPGRADE_LOCK = 0x6F726368  # names the advisory lock of PostgreSQL: "orch"


def upgrade(connection: Connection) -> None:
    """Bring the schema to the newest version inside the open transaction of `connection`; concurrent upgrades wait for each other."""
    if connection.dialect.name == "postgresql":  # SQLite's BEGIN IMMEDIATE is lock enough
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})")
    # Whoever only looks whether the schema fits, as every process does at its start, must not load what can change it.
    from alembic import command  # noqa: PLC0415 - see above

    command.upgrade(_config(connection), "head")


def head() -> str:
    """The revision that this code needs."""
    return _revisions()[-1]


def knows(revision: str) -> bool:
    """Is it a revision of this code? A newer one, from a version that is being rolled out, is not."""
    return revision in _revisions()


@cache
def _revisions() -> tuple[str, ...]:
    """The revisions of this code, oldest first: a migration is a file that begins with its number."""
    found = tuple(sorted(path.name.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*_*.py")))
    assert found, "the package ships at least one migration"
    return found


def _config(connection: Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415 - see `upgrade`

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
