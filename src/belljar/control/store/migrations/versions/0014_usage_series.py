"""What machines used over their lives."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "usage_series",
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("owner", name="pk_usage_series"),
    )
    op.create_index("ix_usage_series_project", "usage_series", ["project"])
