"""What machines talked to, one row for each job or sandbox."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"


def upgrade() -> None:
    op.create_table(
        "flows",
        sa.Column("owner", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("report", sa.LargeBinary, nullable=False),
        sa.Column("earlier", sa.LargeBinary),
        sa.PrimaryKeyConstraint("owner", name="pk_flows"),
    )
    op.create_index("ix_flows_project", "flows", ["project", "owner"])
