# ruff: noqa: S608 (statements of constants)
"""Counters and quotas of projects, and a queue that each project has its own part of."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_NOW = "(CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000)"
_DAY_US = 86_400_000_000
_MINUTE_US = 60_000_000
_MAX_COUNTED_US = 300_000_000

_HELD = "('starting', 'running')"


def _job_counters(row: str) -> str:
    return f"{row}.status = 'queued', {row}.status IN {_HELD}, ({row}.status IN {_HELD}) * {row}.vcpus"


_NEW_JOB = (
    "INSERT INTO project_counters (project, queued_jobs, held_jobs, held_vcpus, job_bytes, waiting_since, minute, "
    f"minute_jobs) VALUES (new.project, {_job_counters('new')}, new.stored_bytes, {_NOW}, {_NOW} / {_MINUTE_US}, 1) "
    "ON CONFLICT (project) DO UPDATE SET "
    "waiting_since = CASE WHEN queued_jobs = 0 THEN excluded.waiting_since ELSE waiting_since END, "
    "queued_jobs = queued_jobs + excluded.queued_jobs, held_jobs = held_jobs + excluded.held_jobs, "
    "held_vcpus = held_vcpus + excluded.held_vcpus, job_bytes = job_bytes + excluded.job_bytes, "
    "minute_jobs = CASE WHEN minute = excluded.minute THEN minute_jobs ELSE 0 END + 1, minute = excluded.minute; "
    f"INSERT INTO project_usage (project, day, jobs) VALUES (new.project, {_NOW} / {_DAY_US}, 1) "
    "ON CONFLICT (project, day) DO UPDATE SET jobs = jobs + 1;"
)
_OLD_JOB = (
    "UPDATE project_counters SET queued_jobs = queued_jobs - (old.status = 'queued'), "
    f"held_jobs = held_jobs - (old.status IN {_HELD}), "
    f"held_vcpus = held_vcpus - (old.status IN {_HELD}) * old.vcpus, job_bytes = job_bytes - old.stored_bytes "
    "WHERE project = old.project;"
)
_CHANGED_JOB = (
    "UPDATE project_counters SET "
    f"waiting_since = CASE WHEN new.status = 'queued' AND queued_jobs = 0 THEN {_NOW} ELSE waiting_since END, "
    "queued_jobs = queued_jobs + (new.status = 'queued') - (old.status = 'queued'), "
    f"held_jobs = held_jobs + (new.status IN {_HELD}) - (old.status IN {_HELD}), "
    f"held_vcpus = held_vcpus + (new.status IN {_HELD}) * new.vcpus - (old.status IN {_HELD}) * old.vcpus "
    "WHERE project = new.project;"
)
_HELD_HERE = (
    "INSERT INTO node_counters (worker, project, held_vcpus, changed_at) "
    f"VALUES (new.worker, new.project, new.vcpus, {_NOW}) "
    "ON CONFLICT (worker, project) DO UPDATE SET held_vcpus = held_vcpus + excluded.held_vcpus, "
    "changed_at = excluded.changed_at;"
)
_RELEASED_HERE = (
    f"UPDATE node_counters SET held_vcpus = held_vcpus - old.vcpus, changed_at = {_NOW} "
    "WHERE worker = old.worker AND project = old.project;"
)


def _used(until: str) -> str:
    end = f"min({until}, coalesce(old.lease_until, {until}), old.metered_until + {_MAX_COUNTED_US})"
    milliseconds = f"max(0, coalesce({end} - old.metered_until, 0)) / 1000"
    return (
        "INSERT INTO project_usage (project, day, vcpu_ms, memory_mb_ms) "
        f"VALUES (old.project, {_NOW} / {_DAY_US}, {milliseconds} * old.vcpus, {milliseconds} * old.memory_mb) "
        "ON CONFLICT (project, day) DO UPDATE SET vcpu_ms = vcpu_ms + excluded.vcpu_ms, "
        "memory_mb_ms = memory_mb_ms + excluded.memory_mb_ms;"
    )


_NEW_SCRIPT = (
    "INSERT INTO project_counters (project, script_bytes, waiting_since) VALUES (new.project, new.size_bytes, 0) "
    "ON CONFLICT (project) DO UPDATE SET script_bytes = script_bytes + excluded.script_bytes;"
)


def _script_bytes(row: str, change: str) -> str:
    return f"UPDATE project_counters SET script_bytes = script_bytes + {change} WHERE project = {row}.project;"


_TRIGGERS = (
    f"CREATE TRIGGER project_counters_job_new AFTER INSERT ON jobs BEGIN {_NEW_JOB} END",
    f"CREATE TRIGGER project_counters_job_gone AFTER DELETE ON jobs BEGIN {_OLD_JOB} END",
    "CREATE TRIGGER project_counters_job_changed AFTER UPDATE OF status ON jobs WHEN old.status <> new.status "
    f"BEGIN {_CHANGED_JOB} END",
    "CREATE TRIGGER project_counters_bytes AFTER UPDATE OF stored_bytes ON jobs "
    "WHEN old.stored_bytes <> new.stored_bytes BEGIN UPDATE project_counters "
    "SET job_bytes = job_bytes + new.stored_bytes - old.stored_bytes WHERE project = new.project; END",
    "CREATE TRIGGER node_counters_held AFTER UPDATE OF status ON jobs "
    f"WHEN old.status NOT IN {_HELD} AND new.status IN {_HELD} BEGIN {_HELD_HERE} END",
    "CREATE TRIGGER node_counters_released AFTER UPDATE OF status ON jobs "
    f"WHEN old.status IN {_HELD} AND new.status NOT IN {_HELD} BEGIN {_RELEASED_HERE} {_used(_NOW)} END",
    f"CREATE TRIGGER node_counters_job_gone AFTER DELETE ON jobs WHEN old.status IN {_HELD} BEGIN {_RELEASED_HERE} END",
    "CREATE TRIGGER project_usage_metered AFTER UPDATE OF metered_until ON jobs "
    f"WHEN old.status IN {_HELD} AND new.status IN {_HELD} AND old.metered_until IS NOT NULL "
    f"BEGIN {_used('new.metered_until')} END",
    f"CREATE TRIGGER project_counters_script_new AFTER INSERT ON scripts BEGIN {_NEW_SCRIPT} END",
    f"CREATE TRIGGER project_counters_script_gone AFTER DELETE ON scripts "
    f"BEGIN {_script_bytes('old', '-old.size_bytes')} END",
    "CREATE TRIGGER project_counters_script_changed AFTER UPDATE OF size_bytes ON scripts "
    f"BEGIN {_script_bytes('new', 'new.size_bytes - old.size_bytes')} END",
)

_WHOLE = (
    "max_running_jobs",
    "max_queued_jobs",
    "max_jobs_per_minute",
    "max_jobs_per_day",
    "max_vcpu_seconds_per_day",
    "max_memory_mb_seconds_per_day",
    "max_storage_mb",
    "max_vcpus",
    "max_memory_mb",
    "max_disk_mb",
)
# Jobs without output and artifacts keep their rows as they are.
_STORED_BYTES = """
UPDATE jobs SET stored_bytes =
    coalesce(json_extract(result, '$.logs.stdout_bytes'), 0) + coalesce(json_extract(result, '$.logs.stderr_bytes'), 0)
    + (SELECT coalesce(sum(json_extract(each.value, '$.size_bytes')), 0)
       FROM json_each(jobs.result, '$.kept_artifacts') AS each)
WHERE finished_at IS NOT NULL AND (instr(result, '"logs"') > 0 OR instr(result, '"kept_artifacts"') > 0)
"""
_FIRST_COUNTS = (
    "INSERT INTO project_counters (project, queued_jobs, held_jobs, held_vcpus, job_bytes, waiting_since) "
    f"SELECT project, sum(status = 'queued'), sum(status IN {_HELD}), sum((status IN {_HELD}) * vcpus), "
    f"sum(stored_bytes), {_NOW} FROM jobs GROUP BY project",
    "INSERT INTO project_counters (project, script_bytes, waiting_since) "
    "SELECT project, sum(size_bytes), 0 FROM scripts WHERE true GROUP BY project "
    "ON CONFLICT (project) DO UPDATE SET script_bytes = excluded.script_bytes",
    "INSERT INTO node_counters (worker, project, held_vcpus, changed_at) "
    f"SELECT worker, project, sum(vcpus), {_NOW} FROM jobs WHERE status IN {_HELD} AND worker IS NOT NULL "
    "GROUP BY worker, project",
)


_QUEUED = sa.text("status = 'queued'")
_ZERO = sa.text("0")


def upgrade() -> None:
    op.add_column("jobs", sa.Column("metered_until", sa.BigInteger))
    op.add_column("jobs", sa.Column("stored_bytes", sa.BigInteger, nullable=False, server_default=_ZERO))
    op.execute(sa.text(_STORED_BYTES))
    op.drop_index("ix_jobs_queue", "jobs")
    op.create_index(
        "ix_jobs_queue",
        "jobs",
        ["project", sa.text("priority DESC"), "id", "vcpus", "memory_mb", "disk_mb", "image_digest", "status"],
        sqlite_where=_QUEUED,
    )
    _create_tables()
    for statement in _FIRST_COUNTS:
        op.execute(sa.text(statement))
    for trigger in _TRIGGERS:
        op.execute(sa.text(trigger))


def _counter(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, server_default=_ZERO)


def _create_tables() -> None:
    op.create_table(
        "project_counters",
        sa.Column("project", sa.String, nullable=False),
        *map(_counter, ("queued_jobs", "held_jobs", "held_vcpus", "script_bytes", "job_bytes")),
        sa.Column("waiting_since", sa.BigInteger, nullable=False),
        *map(_counter, ("minute", "minute_jobs")),
        sa.PrimaryKeyConstraint("project", name="pk_project_counters"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_project_counters_queued",
        "project_counters",
        ["project", "waiting_since", "held_jobs", "queued_jobs"],
        sqlite_where=sa.text("queued_jobs > 0"),
    )
    op.create_table(
        "node_counters",
        sa.Column("worker", sa.String, nullable=False),
        sa.Column("project", sa.String, nullable=False),
        sa.Column("held_vcpus", sa.BigInteger, nullable=False),
        sa.Column("changed_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("worker", "project", name="pk_node_counters"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_node_counters_project", "node_counters", ["project"])
    op.create_table(
        "project_usage",
        sa.Column("project", sa.String, nullable=False),
        sa.Column("day", sa.Integer, nullable=False),
        *map(_counter, ("jobs", "vcpu_ms", "memory_mb_ms")),
        sa.PrimaryKeyConstraint("project", "day", name="pk_project_usage"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_project_usage_day", "project_usage", ["day"])
    op.create_table(
        "project_quotas",
        sa.Column("project", sa.String, nullable=False),
        *(sa.Column(name, sa.BigInteger) for name in _WHOLE),
        sa.Column("max_timeout_seconds", sa.Float),
        sa.Column("keep_jobs_days", sa.Float),
        sa.Column("max_egress", sa.String),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("project", name="pk_project_quotas"),
        sqlite_with_rowid=False,
    )
