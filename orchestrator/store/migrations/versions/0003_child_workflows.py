"""Child workflows."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table, and the index that finds the children of a run."""
    op.create_table(
        "child_workflows",
        sa.Column("run_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("workflow_id", sa.Text(), nullable=False),
        sa.Column("first_run_id", sa.Text(), nullable=False),
        sa.Column("parent_close", sa.Text(), nullable=False),
        sa.Column("orphaned_at", sa.Float(precision=53), nullable=True),
        sa.PrimaryKeyConstraint("run_id", "seq"),
        sqlite_with_rowid=False,
    )
    op.create_index("child_workflows_by_first_run", "child_workflows", ["first_run_id"], unique=True)
    op.create_index(
        "child_workflows_orphaned",
        "child_workflows",
        ["orphaned_at"],
        unique=False,
        sqlite_where=sa.text("orphaned_at IS NOT NULL"),
        postgresql_where=sa.text("orphaned_at IS NOT NULL"),
    )
    op.create_index(
        "runs_by_parent",
        "runs",
        ["parent_run_id", "started_at"],
        unique=False,
        sqlite_where=sa.text("parent_run_id IS NOT NULL"),
        postgresql_where=sa.text("parent_run_id IS NOT NULL"),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_index("runs_by_parent", "runs")
    op.drop_table("child_workflows")
