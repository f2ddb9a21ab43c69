"""A queue that is claimed from without looking at ended jobs; lists and counts that do not read them all."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_MORE = (
    "INSERT INTO job_counts (status, number) VALUES (new.status, 1) "
    "ON CONFLICT (status) DO UPDATE SET number = number + 1;"
)
_FEWER = "UPDATE job_counts SET number = number - 1 WHERE status = old.status;"
_TRIGGERS = (
    f"CREATE TRIGGER jobs_counted_new AFTER INSERT ON jobs BEGIN {_MORE} END",
    f"CREATE TRIGGER jobs_counted_gone AFTER DELETE ON jobs BEGIN {_FEWER} END",
    "CREATE TRIGGER jobs_counted_changed AFTER UPDATE OF status ON jobs WHEN old.status <> new.status "
    f"BEGIN {_FEWER} {_MORE} END",
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("image_digest", sa.String))
    op.execute(
        "UPDATE jobs SET image_digest = json_extract(asked, '$.image_digest') "
        "WHERE status IN ('queued', 'starting', 'running')"
    )
    for index in ("ix_jobs_queue", "ix_jobs_script"):
        op.drop_index(index, "jobs")
    op.create_index(
        "ix_jobs_queue",
        "jobs",
        [sa.text("priority DESC"), "id", "vcpus", "memory_mb", "image_digest", "status"],
        sqlite_where=sa.text("status = 'queued'"),
    )
    op.create_index("ix_jobs_held", "jobs", ["worker", "id"], sqlite_where=sa.text("status IN ('starting', 'running')"))
    op.create_index(
        "ix_jobs_awaited",
        "jobs",
        ["script_id", "status"],
        sqlite_where=sa.text("status IN ('queued', 'starting', 'running')"),
    )
    op.create_index("ix_jobs_status", "jobs", ["project", "status", "id"])
    op.create_index("ix_jobs_script", "jobs", ["script_id", "id"])
    op.create_index("ix_scripts_id", "scripts", ["id"])
    op.create_index("ix_scripts_newest", "scripts", ["project", "created_at", "id"])
    op.add_column("job_labels", sa.Column("project", sa.String, nullable=False, server_default=""))
    op.execute("UPDATE job_labels SET project = coalesce((SELECT project FROM jobs WHERE jobs.id = job_id), '')")
    op.drop_index("ix_job_labels_value", "job_labels")
    op.create_index("ix_job_labels_value", "job_labels", ["project", "name", "value", "job_id"])
    op.create_index("ix_job_labels_name", "job_labels", ["project", "name", "job_id"])
    op.create_table(
        "job_counts",
        sa.Column("status", sa.String, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("status", name="pk_job_counts"),
    )
    op.execute("INSERT INTO job_counts (status, number) SELECT status, count(*) FROM jobs GROUP BY status")
    for trigger in _TRIGGERS:
        op.execute(trigger)
