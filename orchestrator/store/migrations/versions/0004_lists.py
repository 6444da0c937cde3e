"""Lists of many runs: those that ended badly, and those whose ids begin alike."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ENDED_BADLY = sa.text("status NOT IN ('running', 'completed', 'continued_as_new')")


def upgrade() -> None:
    """Create the index of the few that ended badly; let the one of ids find beginnings as well."""
    op.create_index(
        "runs_ended_badly", "runs", ["started_at", "run_id"], unique=False, sqlite_where=ENDED_BADLY, postgresql_where=ENDED_BADLY
    )
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("runs_by_workflow", "runs")
        op.create_index("runs_by_workflow", "runs", ["workflow_id", "started_at"], postgresql_ops={"workflow_id": "text_pattern_ops"})


def downgrade() -> None:
    """Back to what there was."""
    if op.get_bind().dialect.name == "postgresql":
        op.drop_index("runs_by_workflow", "runs")
        op.create_index("runs_by_workflow", "runs", ["workflow_id", "started_at"])
    op.drop_index("runs_ended_badly", "runs")
