"""Projects as records; keys with scopes, a role and an expiry."""

import time

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("name", sa.String, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("suspended_at", sa.BigInteger),
        sa.Column("removed_at", sa.BigInteger),
        sa.PrimaryKeyConstraint("name", name="pk_projects"),
    )
    # A project began with its first key, script or job; those of before have no better time than now.
    now_us = time.time_ns() // 1000
    for table in ("keys", "scripts", "jobs"):
        op.execute(
            f"INSERT OR IGNORE INTO projects (name, created_at) SELECT DISTINCT project, {now_us} FROM {table}"  # noqa: S608
        )
    op.execute(f"INSERT OR IGNORE INTO projects (name, created_at) VALUES ('default', {now_us})")  # noqa: S608
    op.add_column("keys", sa.Column("role", sa.String))
    op.add_column("keys", sa.Column("extra_scopes", sa.JSON, nullable=False, server_default=sa.text("'[]'")))
    op.add_column("keys", sa.Column("expires_at", sa.BigInteger))
    op.add_column("keys", sa.Column("replaces", sa.String))
    op.execute("""UPDATE keys SET extra_scopes = '["admin"]' WHERE admin""")
    # Keys of before could do everything in their project; an owner's key can create keys, too.
    op.execute("UPDATE keys SET role = 'owner' WHERE NOT admin")
    op.drop_column("keys", "admin")
    op.create_index("ix_keys_project", "keys", ["project", "id"])
