# ruff: noqa: S608 (statements of constants)
"""How many jobs ended in each minute, counted by a trigger."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"

_NOW = "(CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000)"
_MINUTE_US = 60_000_000
_ENDED = "('succeeded', 'failed', 'timed_out', 'cancelled', 'lost')"


def _start_ms(row: str) -> str:
    waited = f"({row}started_at - {row}created_at) / 1000"
    return (
        f"CASE WHEN {row}started_at IS NULL THEN -1 WHEN {waited} < 0 THEN 0 "
        + "".join(
            f"WHEN {waited} < {step * 20} THEN {waited} / {step} * {step} "
            for step in (1, 5, 50, 500, 5000, 50_000, 500_000)
        )
        + "ELSE 10000000 END"
    )


_JOB_END = (
    "INSERT INTO job_ends (project, minute, status, start_ms, jobs) "
    f"VALUES (new.project, {_NOW} / {_MINUTE_US}, new.status, {_start_ms('new.')}, 1) "
    "ON CONFLICT (project, minute, status, start_ms) DO UPDATE SET jobs = jobs + 1;"
)
_TRIGGER = (
    "CREATE TRIGGER job_ends_counted AFTER UPDATE OF status ON jobs "
    f"WHEN old.status NOT IN {_ENDED} AND new.status IN {_ENDED} BEGIN {_JOB_END} END"
)
_DAYS = 8
#: The jobs that have ended on the last days, read by their end.
_FIRST_COUNTS = (
    "INSERT INTO job_ends (project, minute, status, start_ms, jobs) "
    f"SELECT project, finished_at / {_MINUTE_US}, status, {_start_ms('')}, count(*) FROM jobs "
    f"WHERE finished_at IS NOT NULL AND status IN {_ENDED} AND finished_at > {_NOW} - {_DAYS * 86_400_000_000} "
    "GROUP BY 1, 2, 3, 4"
)


def upgrade() -> None:
    op.create_table(
        "job_ends",
        sa.Column("project", sa.String, nullable=False),
        sa.Column("minute", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String, nullable=False),
        sa.Column("start_ms", sa.BigInteger, nullable=False),
        sa.Column("jobs", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", "minute", "status", "start_ms", name="pk_job_ends"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_job_ends_minute", "job_ends", ["minute"])
    op.execute(sa.text(_FIRST_COUNTS))
    op.execute(sa.text(_TRIGGER))
