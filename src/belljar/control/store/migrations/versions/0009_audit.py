"""The audit log and where it begins."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer, "sqlite"), autoincrement=False, nullable=False),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("actor_kind", sa.String, nullable=False),
        sa.Column("actor_id", sa.String),
        sa.Column("actor_name", sa.String),
        sa.Column("project", sa.String),
        sa.Column("action", sa.String, nullable=False),
        sa.Column("object", sa.String),
        sa.Column("address", sa.String),
        sa.Column("request_id", sa.String),
        sa.Column("outcome", sa.String, nullable=False),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("previous", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("seq", name="pk_audit"),
    )
    for name in ("project", "actor_id", "action"):
        op.create_index(f"ix_audit_{name}", "audit", [name, "seq"])
    op.create_index("ix_audit_at_us", "audit", ["at_us"])
    op.create_table(
        "audit_anchor",
        sa.Column("through_seq", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("through_seq", name="pk_audit_anchor"),
    )
