"""Settings of the quotas that projects have by default."""

from pydantic import Field

from belljar.settings.area import Area


class QuotaSettings(Area):
    """Quotas: limits of each project that has none of its own (`belljar project set`); default: no limit."""

    quota_max_running_jobs: int | None = Field(None, ge=0, description="Maximum jobs of a project that run at once.")
    quota_max_queued_jobs: int | None = Field(None, ge=0, description="Maximum jobs of a project that are queued.")
    quota_max_jobs_per_minute: int | None = Field(
        None, ge=0, description="Maximum jobs that a project submits in one minute of the clock."
    )
    quota_max_jobs_per_day: int | None = Field(
        None, ge=0, description="Maximum jobs that a project submits on one day (UTC)."
    )
    quota_max_vcpu_seconds_per_day: int | None = Field(
        None, ge=0, description="Maximum vCPU-seconds of a project's machines on one day (UTC)."
    )
    quota_max_memory_mb_seconds_per_day: int | None = Field(
        None, ge=0, description="Maximum memory of a project's machines times seconds, in MB-seconds, on one day (UTC)."
    )
    quota_max_sandboxes: int | None = Field(
        None, ge=0, description="Maximum sandboxes of a project that have not ended, paused ones included."
    )
    quota_max_sandbox_vcpus: int | None = Field(
        None, ge=0, description="Maximum vCPUs of a project's sandboxes together, without ended and paused ones."
    )
    quota_max_storage_mb: int | None = Field(
        None, ge=0, description="Maximum size of a project's scripts, logs and artifacts together, in MiB."
    )
