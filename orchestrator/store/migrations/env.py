"""Run by Alembic: takes the connection that `store.schema` gives; law: views stand aside while tables change, and come back as they are today."""

from pathlib import Path

from alembic import context
from sqlalchemy import Connection
from sqlmodel import SQLModel

from orchestrator.store import fleet_tables, tables
from orchestrator.store.transaction import render

VIEWS = Path(__file__).parent.parent / "views.sql"


def migrate(connection: Connection) -> None:
    """Run the migrations, then create the views."""
    views = [view.strip() for view in VIEWS.read_text(encoding="utf-8").split(";") if view.strip()]
    for view in reversed(views):
        connection.exec_driver_sql(f"DROP VIEW IF EXISTS {view.split()[2]}")
    context.configure(
        connection=connection,
        target_metadata=METADATA,
        render_as_batch=True,
        transactional_ddl=True,
        include_object=tables.comparable_on_sqlite if connection.dialect.name == "sqlite" else None,
    )
    context.run_migrations()
    for view in views:
        connection.exec_driver_sql(render(connection.dialect.name, view).text)


METADATA = SQLModel.metadata
for table in (tables.RunTable, fleet_tables.AgentTable):
    assert table.__tablename__ in METADATA.tables, "importing the tables declares them"

migrate(context.config.attributes["connection"])
