"""The tables. Migrations create them (migrations/versions); a test holds both equal."""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    UniqueConstraint,
    event,
    literal_column,
    text,
)

from belljar.control.store.counting import NOW, TRIGGERS
from belljar.control.store.metadata import UtcTime
from belljar.control.store.metadata import metadata as metadata

#: The newest migration; a database at this version is opened without loading Alembic.
HEAD = "0017"


# The conditions of the partial indexes. A query uses such an index only with the same text: no bound values.
QUEUED = text("status = 'queued'")
HELD = text("status IN ('starting', 'running')")
AWAITED = text("status IN ('queued', 'starting', 'running')")
HAS_QUEUED = text("queued_jobs > 0")

#: The database's clock in the format of UtcTime. Leases are written and compared with this clock only.
NOW_US = literal_column(NOW, BigInteger)

scripts = Table(
    "scripts",
    metadata,
    Column("project", String, primary_key=True),
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("language", String, nullable=False),
    Column("entrypoint", String, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("file_count", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("dependencies", JSON(none_as_null=True)),
    #: When it was last uploaded again, or its newest removed job was submitted. None: not since created_at.
    Column("used_at", UtcTime),
    Index("ix_scripts_id", "id"),
    Index("ix_scripts_newest", "project", "created_at", "id"),
)

_ENDED = text("finished_at IS NOT NULL")

jobs = Table(
    "jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("project", String, nullable=False),
    Column("script_id", String, nullable=False),
    Column("status", String, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    #: Size of the scratch disk; 0: none.
    Column("disk_mb", Integer, nullable=False, server_default=text("0")),
    Column("created_at", UtcTime, nullable=False),
    Column("started_at", UtcTime),
    Column("finished_at", UtcTime),
    Column("worker", String),
    #: The process of that worker which holds the job; empty when the worker sends none.
    Column("incarnation", String, nullable=False, server_default=text("''")),
    Column("lease_until", UtcTime),
    #: Until when the use of the current attempt is counted in `project_usage`; the time of its claim at first.
    Column("metered_until", UtcTime),
    #: Size of its log and artifacts, as far as they are known.
    Column("stored_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("cancel_requested", Boolean(create_constraint=False), nullable=False),
    Column("idempotency_key", String),
    #: Copied from `spec`, for the claim: a worker takes jobs whose image it has. None in jobs that ended long ago.
    Column("image_digest", String),
    #: What was requested; does not change.
    Column("spec", JSON, nullable=False),
    #: The results so far.
    Column("result", JSON, nullable=False),
    UniqueConstraint("project", "idempotency_key"),
    # A claim reads only this index, for each project from its start until a job fits; it has no ended jobs.
    Index(
        "ix_jobs_queue",
        "project",
        text("priority DESC"),
        "id",
        "vcpus",
        "memory_mb",
        "disk_mb",
        "image_digest",
        "status",
        sqlite_where=QUEUED,
    ),
    # Recovery, leases and cancellation read the few jobs that workers hold.
    Index("ix_jobs_held", "worker", "id", sqlite_where=HELD),
    # Whether jobs that have not ended need a script.
    Index("ix_jobs_awaited", "script_id", "status", sqlite_where=AWAITED),
    # Lists: the newest first.
    Index("ix_jobs_project", "project", "id"),
    Index("ix_jobs_status", "project", "status", "id"),
    Index("ix_jobs_script", "script_id", "id"),
    # Retention reads the ended jobs of one status, by their end.
    Index("ix_jobs_ended", "status", "finished_at", sqlite_where=_ENDED, postgresql_where=_ENDED),
)

job_labels = Table(
    "job_labels",
    metadata,
    Column("job_id", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),
    Column("project", String, nullable=False, server_default=""),
    Index("ix_job_labels_value", "project", "name", "value", "job_id"),
    Index("ix_job_labels_name", "project", "name", "job_id"),
)

#: The number of jobs by status. Triggers on `jobs` update it, so that no query counts rows.
job_counts = Table(
    "job_counts",
    metadata,
    Column("status", String, primary_key=True),
    Column("number", BigInteger, nullable=False),
)

_MORE = (
    "INSERT INTO job_counts (status, number) VALUES (new.status, 1) "
    "ON CONFLICT (status) DO UPDATE SET number = number + 1;"
)
_FEWER = "UPDATE job_counts SET number = number - 1 WHERE status = old.status;"
COUNTING = (
    f"CREATE TRIGGER jobs_counted_new AFTER INSERT ON jobs BEGIN {_MORE} END",
    f"CREATE TRIGGER jobs_counted_gone AFTER DELETE ON jobs BEGIN {_FEWER} END",
    "CREATE TRIGGER jobs_counted_changed AFTER UPDATE OF status ON jobs WHEN old.status <> new.status "
    f"BEGIN {_FEWER} {_MORE} END",
)
for _trigger in COUNTING:
    event.listen(metadata, "after_create", DDL(_trigger))  # type: ignore[no-untyped-call]

#: What each project has and does now. Triggers update it (counting.py).
project_counters = Table(
    "project_counters",
    metadata,
    Column("project", String, primary_key=True),
    Column("queued_jobs", BigInteger, nullable=False, server_default=text("0")),
    #: Jobs that workers hold (starting or running), and their vCPUs.
    Column("held_jobs", BigInteger, nullable=False, server_default=text("0")),
    Column("held_vcpus", BigInteger, nullable=False, server_default=text("0")),
    #: Size of scripts, and of the logs and artifacts of jobs.
    Column("script_bytes", BigInteger, nullable=False, server_default=text("0")),
    Column("job_bytes", BigInteger, nullable=False, server_default=text("0")),
    #: Since when it has had queued jobs without interruption, or had them last.
    Column("waiting_since", UtcTime, nullable=False),
    #: The last minute (since 1970) in which it submitted jobs, and how many.
    Column("minute", BigInteger, nullable=False, server_default=text("0")),
    Column("minute_jobs", BigInteger, nullable=False, server_default=text("0")),
    # The projects that a claim chooses from.
    Index(
        "ix_project_counters_queued", "project", "waiting_since", "held_jobs", "queued_jobs", sqlite_where=HAS_QUEUED
    ),
    sqlite_with_rowid=False,
)

#: What each project has on each worker, for the order of claims.
node_counters = Table(
    "node_counters",
    metadata,
    Column("worker", String, primary_key=True),
    Column("project", String, primary_key=True),
    Column("held_vcpus", BigInteger, nullable=False),
    #: When the worker last claimed or released a job of the project.
    Column("changed_at", UtcTime, nullable=False),
    Index("ix_node_counters_project", "project"),
    sqlite_with_rowid=False,
)

#: What each project used on each day (UTC, days since 1970).
project_usage = Table(
    "project_usage",
    metadata,
    Column("project", String, primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("jobs", BigInteger, nullable=False, server_default=text("0")),
    Column("vcpu_ms", BigInteger, nullable=False, server_default=text("0")),
    Column("memory_mb_ms", BigInteger, nullable=False, server_default=text("0")),
    Index("ix_project_usage_day", "day"),
    sqlite_with_rowid=False,
)

#: How many jobs of a project ended in each minute (since 1970), by status and by the time until they had started
#: (counting.py): what throughput and latency are read from, however many jobs there are.
job_ends = Table(
    "job_ends",
    metadata,
    Column("project", String, primary_key=True),
    Column("minute", BigInteger, primary_key=True),
    Column("status", String, primary_key=True),
    #: The lower bound in milliseconds; -1: they never started.
    Column("start_ms", BigInteger, primary_key=True),
    Column("jobs", BigInteger, nullable=False),
    Index("ix_job_ends_minute", "minute"),
    sqlite_with_rowid=False,
)

#: The quotas of single projects. NULL: the default of the settings; UNLIMITED_VALUE: no limit.
project_quotas = Table(
    "project_quotas",
    metadata,
    Column("project", String, primary_key=True),
    Column("max_running_jobs", BigInteger),
    Column("max_queued_jobs", BigInteger),
    Column("max_jobs_per_minute", BigInteger),
    Column("max_jobs_per_day", BigInteger),
    Column("max_vcpu_seconds_per_day", BigInteger),
    Column("max_memory_mb_seconds_per_day", BigInteger),
    Column("max_storage_mb", BigInteger),
    Column("max_vcpus", BigInteger),
    Column("max_memory_mb", BigInteger),
    Column("max_disk_mb", BigInteger),
    Column("max_timeout_seconds", Float),
    Column("keep_jobs_days", Float),
    Column("max_egress", String),
    Column("updated_at", UtcTime, nullable=False),
    Column("max_sandboxes", BigInteger),
    Column("max_sandbox_vcpus", BigInteger),
    sqlite_with_rowid=False,
)

for _trigger in TRIGGERS:
    event.listen(metadata, "after_create", DDL(_trigger))  # type: ignore[no-untyped-call]

projects = Table(
    "projects",
    metadata,
    Column("name", String, primary_key=True),
    Column("created_at", UtcTime, nullable=False),
    #: Since when its keys are refused and its jobs are not claimed. Set in a removed project, too.
    Column("suspended_at", UtcTime),
    #: Since when its data is being removed; the row is removed last.
    Column("removed_at", UtcTime),
)

keys = Table(
    "keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("project", String, nullable=False),
    Column("role", String),
    #: The scopes beside those of the role.
    Column("extra_scopes", JSON, nullable=False, server_default=text("'[]'")),
    Column("secret_sha256", String, nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("last_used_at", UtcTime),
    Column("revoked_at", UtcTime),
    #: The id of the key that was rotated.
    Column("replaces", String),
    Index("ix_keys_project", "project", "id"),
)

#: The secrets of projects, each sealed: their values are nowhere else, and the key is not in the database.
secrets = Table(
    "secrets",
    metadata,
    Column("project", String, primary_key=True),
    Column("name", String, primary_key=True),
    #: 1 for the first value, and one more with each new one.
    Column("version", Integer, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    #: Whether it can be an environment variable: it has no NUL.
    Column("fits_variable", Boolean(create_constraint=False), nullable=False),
    #: The key that it is sealed with.
    Column("key_id", String, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    # A rotation looks for those that are sealed with other keys.
    Index("ix_secrets_key", "key_id"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", String, primary_key=True),
    Column("heartbeat_at", UtcTime, nullable=False),
    Column("vcpus", Integer, nullable=False),
    Column("memory_mb", Integer, nullable=False),
    Column("facts", JSON, nullable=False),
)

#: What the machines of jobs and sandboxes talked to: the owner is the id of either. Removed with it.
flows = Table(
    "flows",
    metadata,
    Column("owner", String, primary_key=True),
    Column("project", String, nullable=False),
    #: Of the job's attempt, or the fence of the sandbox's lease: that of the machine.
    Column("number", Integer, nullable=False),
    #: JSON of a FlowReport, compressed with gzip.
    Column("report", LargeBinary, nullable=False),
    #: The same of all machines that a sandbox had before, until it was paused.
    Column("earlier", LargeBinary),
    # The removal of projects.
    Index("ix_flows_project", "project", "owner"),
)

#: Jobs whose rows are removed and whose blobs are being removed.
removed_jobs = Table(
    "removed_jobs",
    metadata,
    Column("id", String, primary_key=True),
    Column("removed_at", UtcTime, nullable=False),
)

#: What the machine of each job and sandbox used over its life (model/usage_series.py).
usage_series = Table(
    "usage_series",
    metadata,
    #: The id of the job or sandbox.
    Column("owner", String, primary_key=True),
    Column("project", String, nullable=False),
    #: The attempt of the job, or the fence of the sandbox's lease.
    Column("number", Integer, nullable=False),
    #: Compressed JSON of a UsageSeries.
    Column("data", LargeBinary, nullable=False),
    Index("ix_usage_series_project", "project"),
)

#: The record of each maintenance service.
maintenance = Table(
    "maintenance",
    metadata,
    Column("service", String, primary_key=True),
    Column("first_run_at", UtcTime, nullable=False),
    Column("last_run_at", UtcTime, nullable=False),
    Column("last_success_at", UtcTime),
    Column("removed_count", BigInteger, nullable=False),
    Column("removed_bytes", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
    #: Why the last run failed; None when it succeeded.
    Column("error", String),
    #: Everything that ended before this time has been processed.
    Column("done_until", UtcTime),
)

#: The audit log (control/audit). Rows are appended, and removed from the front; no row is ever changed.
audit = Table(
    "audit",
    metadata,
    #: 1, 2, 3, … without a gap.
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=False),
    #: The database's clock.
    Column("at_us", BigInteger, nullable=False),
    Column("actor_kind", String, nullable=False),
    Column("actor_id", String),
    Column("actor_name", String),
    Column("project", String),
    Column("action", String, nullable=False),
    Column("object", String),
    Column("address", String),
    Column("request_id", String),
    Column("outcome", String, nullable=False),
    #: JSON, exactly as it was hashed.
    Column("details", Text, nullable=False),
    #: The hash of the row before, and that of this row.
    Column("previous", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Index("ix_audit_project", "project", "seq"),
    Index("ix_audit_actor_id", "actor_id", "seq"),
    Index("ix_audit_action", "action", "seq"),
    Index("ix_audit_at_us", "at_us"),
)

#: Where the audit log begins: after the row with this number and hash. One row.
audit_anchor = Table(
    "audit_anchor",
    metadata,
    Column("through_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", LargeBinary, nullable=False),
)
