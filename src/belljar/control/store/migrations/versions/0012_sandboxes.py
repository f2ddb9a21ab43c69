"""Sandboxes and their labels."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

_HELD = sa.text("lease_until IS NOT NULL")
_WAITING = sa.text("status IN ('creating', 'resuming') AND lease_until IS NULL")
_LIVE = sa.text("ended_at IS NULL")
_ENDED = sa.text("ended_at IS NOT NULL")


def upgrade() -> None:
    op.create_table(
        "sandboxes",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("vcpus", sa.Integer, nullable=False),
        sa.Column("memory_mb", sa.Integer, nullable=False),
        sa.Column("disk_mb", sa.Integer, nullable=False),
        sa.Column("image_digest", sa.String),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
        sa.Column("paused_at", sa.BigInteger),
        sa.Column("ended_at", sa.BigInteger),
        sa.Column("waiting_since", sa.BigInteger),
        sa.Column("node", sa.String),
        sa.Column("incarnation", sa.String, nullable=False, server_default=sa.text("''")),
        sa.Column("fence", sa.Integer, nullable=False),
        sa.Column("lease_until", sa.BigInteger),
        sa.Column("end_requested", sa.String),
        sa.Column("idempotency_key", sa.String),
        sa.Column("spec", sa.JSON, nullable=False),
        sa.Column("result", sa.JSON, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sandboxes"),
        sa.UniqueConstraint("project", "idempotency_key", name="uq_sandboxes_project_idempotency_key"),
    )
    op.create_index("ix_sandboxes_held", "sandboxes", ["node", "id"], sqlite_where=_HELD)
    op.create_index("ix_sandboxes_waiting", "sandboxes", ["id"], sqlite_where=_WAITING)
    op.create_index("ix_sandboxes_live", "sandboxes", ["project", "expires_at"], sqlite_where=_LIVE)
    op.create_index("ix_sandboxes_project", "sandboxes", ["project", "id"])
    op.create_index("ix_sandboxes_status", "sandboxes", ["project", "status", "id"])
    op.create_index("ix_sandboxes_ended", "sandboxes", ["ended_at"], sqlite_where=_ENDED)
    op.create_table(
        "sandbox_labels",
        sa.Column("sandbox_id", sa.String, nullable=False),
        sa.Column("name", sa.String, nullable=False),
        sa.Column("value", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.PrimaryKeyConstraint("sandbox_id", "name", name="pk_sandbox_labels"),
    )
    op.create_index("ix_sandbox_labels_value", "sandbox_labels", ["project", "name", "value", "sandbox_id"])
    op.create_index("ix_sandbox_labels_name", "sandbox_labels", ["project", "name", "sandbox_id"])
