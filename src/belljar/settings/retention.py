"""Settings of how long data is kept."""

from pydantic import Field

from belljar.settings.area import Area


class RetentionSettings(Area):
    """Retention: how long data is kept. Periods are days, fractions allowed; 0 keeps for ever."""

    maintenance_interval_seconds: float = Field(
        300, ge=1, description="How often a server removes data whose retention period has ended."
    )
    keep_succeeded_jobs_days: float = Field(
        14, ge=0, description="Retention of succeeded jobs, with their logs and artifacts."
    )
    keep_failed_jobs_days: float = Field(
        30, ge=0, description="Retention of failed and timed out jobs, with their logs and artifacts."
    )
    keep_cancelled_jobs_days: float = Field(
        14, ge=0, description="Retention of cancelled jobs, with their logs and artifacts."
    )
    keep_lost_jobs_days: float = Field(30, ge=0, description="Retention of lost jobs, with their logs and artifacts.")
    keep_stdin_days: float = Field(
        1, ge=0, description="Retention of the standard input of ended jobs; 0 keeps it as long as the job."
    )
    keep_unused_scripts_days: float = Field(
        90, ge=0, description="Retention of scripts that have no job, counted from their last upload or job."
    )
    keep_gone_nodes_days: float = Field(
        7, ge=0, description="Retention of nodes that send no heartbeat any more, in the list of nodes."
    )
    keep_revoked_keys_days: float = Field(
        90, ge=0, description="Retention of revoked and expired keys, in the list of keys."
    )
    keep_ended_sessions_days: float = Field(
        30,
        ge=0,
        description="Retention of ended sessions, and of people who are in no project any more and have no session.",
    )
    keep_audit_days: float = Field(365, ge=0, description="Retention of the audit log.")
    keep_usage_days: float = Field(400, ge=0, description="Retention of what each project used on each day.")
    keep_throughput_days: float = Field(
        8, ge=0, description="Retention of how many jobs ended in each minute, which the overview is drawn from."
    )
    keep_unused_snapshots_days: float = Field(30, ge=0, description="Retention of snapshots since their last use.")
    keep_unused_layers_days: float = Field(
        30, ge=0, description="Retention of installed packages since their last use."
    )
    keep_build_cache_days: float = Field(30, ge=0, description="Retention of the downloads and logs of image builds.")
    keep_backups_days: float = Field(
        30, ge=0, description="Retention of backups of the database; the newest is always kept."
    )
    keep_orphan_blobs_days: float = Field(
        1, ge=0, description="Retention of blobs that no record in the database names."
    )
