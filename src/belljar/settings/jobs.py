"""Settings of what jobs get by default, and what they may request at most."""

from pydantic import Field

from belljar.settings.area import Area


class JobSettings(Area):
    """Jobs: default resources and limits."""

    default_vcpus: int = Field(1, ge=1, description="vCPUs of a job that requests no number.")
    default_memory_mb: int = Field(256, ge=64, description="Memory of a job that requests no size.")
    default_timeout_seconds: float = Field(60, gt=0, description="Timeout of a job that requests none.")
    default_disk_mb_per_second: float | None = Field(
        None, ge=0.1, description="Throughput limit of each disk of a job, in MiB/s; default: no limit."
    )
    default_disk_iops: int | None = Field(
        None, ge=1, description="Limit of each disk of a job, in operations per second; default: no limit."
    )
    default_network_mbit_per_second: float | None = Field(
        None, ge=0.1, description="Network limit of a job in each direction, in 10^6 bits/s; default: `network_mbit`."
    )
    max_vcpus: int = Field(8, ge=1, description="Maximum vCPUs of one job.")
    max_memory_mb: int = Field(16384, ge=64, description="Maximum memory of one job.")
    max_disk_mb: int = Field(16384, ge=16, description="Maximum size of one job's scratch disk.")
    max_timeout_seconds: float = Field(3600, gt=0, description="Maximum timeout of one job.")
    max_disk_mb_per_second: float | None = Field(
        None, ge=0.1, description="Maximum throughput limit of each disk that one job may request, in MiB/s."
    )
    max_disk_iops: int | None = Field(
        None, ge=1, description="Maximum limit of each disk that one job may request, in operations per second."
    )
    max_network_mbit_per_second: float | None = Field(
        None, ge=0.1, description="Maximum network limit that one job may request, in 10^6 bits/s."
    )
    max_processes: int = Field(512, ge=16, description="Maximum number of processes and threads in a job at once.")
    max_output_mb: float = Field(
        16, gt=0, description="Output kept of each of stdout and stderr; a marker shows where it was cut."
    )
    max_artifacts_mb: float = Field(256, gt=0, description="Maximum total size of a job's artifacts.")
    max_artifact_count: int = Field(1000, ge=1, description="Maximum number of a job's artifacts.")
