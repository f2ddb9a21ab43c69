"""Paused sandboxes, and snapshots of sandboxes."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

_FROZEN = sa.text("frozen_id IS NOT NULL AND ended_at IS NULL")


def upgrade() -> None:
    op.add_column("sandboxes", sa.Column("frozen_id", sa.String))
    op.add_column("sandboxes", sa.Column("frozen_node", sa.String))
    op.create_index("ix_sandboxes_frozen", "sandboxes", ["frozen_id"], sqlite_where=_FROZEN, postgresql_where=_FROZEN)
    op.create_table(
        "sandbox_snapshots",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("sandbox_id", sa.String, nullable=False),
        sa.Column("node", sa.String, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("stored_bytes", sa.BigInteger, nullable=False),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sandbox_snapshots"),
    )
    op.create_index("ix_sandbox_snapshots_project", "sandbox_snapshots", ["project", "id"])
    op.create_index("ix_sandbox_snapshots_created", "sandbox_snapshots", ["created_at"])
