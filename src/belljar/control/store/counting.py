# ruff: noqa: S608 (statements of constants)
"""Triggers that keep the counters of projects: what is queued, held, stored and used, and what ended in each minute.

The invariant: in every committed state, each counter equals a count over the rows of `jobs`, `scripts` and
`sandboxes` (sandbox_counting.py has the triggers of the last). A trigger works in the transaction of the statement that
changes the row, whichever statement that is, so no writer can forget it and no crash can come between.
`belljar.control.store.counters` recounts; the property test of the counters compares.

What was used is counted as it passes: from the claim of an attempt, or its last metering, until its end or its next
metering, by the database's clock. It never counts beyond the lease: a node stops its machines when that ends.
"""

from __future__ import annotations

#: The database's clock in the format of UtcTime.
NOW = "(CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000)"
DAY_US = 86_400_000_000
MINUTE_US = 60_000_000
#: The most that one metering or end counts: a clock that was set forward must not charge for days.
MAX_COUNTED_US = 300_000_000

_HELD = "('starting', 'running')"


def _job_counters(row: str) -> str:
    return f"{row}.status = 'queued', {row}.status IN {_HELD}, ({row}.status IN {_HELD}) * {row}.vcpus"


_NEW_JOB = (
    "INSERT INTO project_counters (project, queued_jobs, held_jobs, held_vcpus, job_bytes, waiting_since, minute, "
    f"minute_jobs) VALUES (new.project, {_job_counters('new')}, new.stored_bytes, {NOW}, {NOW} / {MINUTE_US}, 1) "
    "ON CONFLICT (project) DO UPDATE SET "
    "waiting_since = CASE WHEN queued_jobs = 0 THEN excluded.waiting_since ELSE waiting_since END, "
    "queued_jobs = queued_jobs + excluded.queued_jobs, held_jobs = held_jobs + excluded.held_jobs, "
    "held_vcpus = held_vcpus + excluded.held_vcpus, job_bytes = job_bytes + excluded.job_bytes, "
    "minute_jobs = CASE WHEN minute = excluded.minute THEN minute_jobs ELSE 0 END + 1, minute = excluded.minute; "
    f"INSERT INTO project_usage (project, day, jobs) VALUES (new.project, {NOW} / {DAY_US}, 1) "
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
    f"waiting_since = CASE WHEN new.status = 'queued' AND queued_jobs = 0 THEN {NOW} ELSE waiting_since END, "
    "queued_jobs = queued_jobs + (new.status = 'queued') - (old.status = 'queued'), "
    f"held_jobs = held_jobs + (new.status IN {_HELD}) - (old.status IN {_HELD}), "
    f"held_vcpus = held_vcpus + (new.status IN {_HELD}) * new.vcpus - (old.status IN {_HELD}) * old.vcpus "
    "WHERE project = new.project;"
)
_HELD_HERE = (
    "INSERT INTO node_counters (worker, project, held_vcpus, changed_at) "
    f"VALUES (new.worker, new.project, new.vcpus, {NOW}) "
    "ON CONFLICT (worker, project) DO UPDATE SET held_vcpus = held_vcpus + excluded.held_vcpus, "
    "changed_at = excluded.changed_at;"
)
_RELEASED_HERE = (
    f"UPDATE node_counters SET held_vcpus = held_vcpus - old.vcpus, changed_at = {NOW} "
    "WHERE worker = old.worker AND project = old.project;"
)


def used(until: str) -> str:
    """Return the statement that counts what a machine used until then, or until its lease ended."""
    end = f"min({until}, coalesce(old.lease_until, {until}), old.metered_until + {MAX_COUNTED_US})"
    milliseconds = f"max(0, coalesce({end} - old.metered_until, 0)) / 1000"
    return (
        "INSERT INTO project_usage (project, day, vcpu_ms, memory_mb_ms) "
        f"VALUES (old.project, {NOW} / {DAY_US}, {milliseconds} * old.vcpus, {milliseconds} * old.memory_mb) "
        "ON CONFLICT (project, day) DO UPDATE SET vcpu_ms = vcpu_ms + excluded.vcpu_ms, "
        "memory_mb_ms = memory_mb_ms + excluded.memory_mb_ms;"
    )


_ENDED = "('succeeded', 'failed', 'timed_out', 'cancelled', 'lost')"
_WAITED = "(new.started_at - new.created_at) / 1000"
#: Milliseconds from submission to the script's start with two digits, the second one 0 or 5: few different values, and
#: at most a third too little. -1: it never started.
_START_MS = (
    "CASE WHEN new.started_at IS NULL THEN -1 WHEN "
    + _WAITED
    + " < 0 THEN 0 "
    + "".join(
        f"WHEN {_WAITED} < {step * 20} THEN {_WAITED} / {step} * {step} "
        for step in (1, 5, 50, 500, 5000, 50_000, 500_000)
    )
    + "ELSE 10000000 END"
)
_JOB_END = (
    "INSERT INTO job_ends (project, minute, status, start_ms, jobs) "
    f"VALUES (new.project, {NOW} / {MINUTE_US}, new.status, {_START_MS}, 1) "
    "ON CONFLICT (project, minute, status, start_ms) DO UPDATE SET jobs = jobs + 1;"
)
_NEW_SCRIPT = (
    "INSERT INTO project_counters (project, script_bytes, waiting_since) VALUES (new.project, new.size_bytes, 0) "
    "ON CONFLICT (project) DO UPDATE SET script_bytes = script_bytes + excluded.script_bytes;"
)


def _script_bytes(row: str, change: str) -> str:
    return f"UPDATE project_counters SET script_bytes = script_bytes + {change} WHERE project = {row}.project;"


TRIGGERS = (
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
    f"WHEN old.status IN {_HELD} AND new.status NOT IN {_HELD} BEGIN {_RELEASED_HERE} {used(NOW)} END",
    f"CREATE TRIGGER node_counters_job_gone AFTER DELETE ON jobs WHEN old.status IN {_HELD} BEGIN {_RELEASED_HERE} END",
    "CREATE TRIGGER project_usage_metered AFTER UPDATE OF metered_until ON jobs "
    f"WHEN old.status IN {_HELD} AND new.status IN {_HELD} AND old.metered_until IS NOT NULL "
    f"BEGIN {used('new.metered_until')} END",
    "CREATE TRIGGER job_ends_counted AFTER UPDATE OF status ON jobs "
    f"WHEN old.status NOT IN {_ENDED} AND new.status IN {_ENDED} BEGIN {_JOB_END} END",
    f"CREATE TRIGGER project_counters_script_new AFTER INSERT ON scripts BEGIN {_NEW_SCRIPT} END",
    f"CREATE TRIGGER project_counters_script_gone AFTER DELETE ON scripts "
    f"BEGIN {_script_bytes('old', '-old.size_bytes')} END",
    "CREATE TRIGGER project_counters_script_changed AFTER UPDATE OF size_bytes ON scripts "
    f"BEGIN {_script_bytes('new', 'new.size_bytes - old.size_bytes')} END",
)
