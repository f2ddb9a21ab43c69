"""What retention needs: ended jobs by their end, when scripts were used last, and what is being removed."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("disk_mb", sa.Integer, nullable=False, server_default=sa.text("0")))
    op.execute(
        "UPDATE jobs SET disk_mb = coalesce(json_extract(asked, '$.resources.disk_mb'), 0) "
        "WHERE json_extract(asked, '$.resources.disk_mb') IS NOT NULL"
    )
    op.drop_index("ix_jobs_queue", "jobs")
    op.create_index(
        "ix_jobs_queue",
        "jobs",
        [sa.text("priority DESC"), "id", "vcpus", "memory_mb", "disk_mb", "image_digest", "status"],
        sqlite_where=sa.text("status = 'queued'"),
    )
    ended = sa.text("finished_at IS NOT NULL")
    op.create_index("ix_jobs_ended", "jobs", ["status", "finished_at"], sqlite_where=ended, postgresql_where=ended)
    op.add_column("scripts", sa.Column("used_at", sa.BigInteger))
    op.create_table(
        "removed_jobs",
        sa.Column("id", sa.String, nullable=False),
        sa.Column("removed_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_removed_jobs"),
    )
    op.create_table(
        "maintenance",
        sa.Column("service", sa.String, nullable=False),
        sa.Column("first_run_at", sa.BigInteger, nullable=False),
        sa.Column("last_run_at", sa.BigInteger, nullable=False),
        sa.Column("last_success_at", sa.BigInteger),
        sa.Column("removed_count", sa.BigInteger, nullable=False),
        sa.Column("removed_bytes", sa.BigInteger, nullable=False),
        sa.Column("failures", sa.BigInteger, nullable=False),
        sa.Column("error", sa.String),
        sa.Column("done_until", sa.BigInteger),
        sa.PrimaryKeyConstraint("service", name="pk_maintenance"),
    )
