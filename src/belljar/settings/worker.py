"""Settings of the worker of this node."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from belljar.settings.area import Area


def _listen(given: str | None) -> str | None:
    if given is not None and not re.fullmatch(r"(\[[0-9a-f:.]+\]|[\w.-]+):\d{1,5}", given):
        raise ValueError(f"{given[:80]!r} is no address such as 127.0.0.1:9464")
    return given


class WorkerSettings(Area):
    """Worker: how much of this host jobs may use, and its leases."""

    worker_vcpus: int | None = Field(
        None, ge=1, description="vCPUs for all running jobs together; default: twice the number of cores."
    )
    worker_memory_mb: int | None = Field(
        None, ge=64, description="Memory for all running jobs together; default: 80 % of the host's."
    )
    memory_overcommit: float = Field(
        1.0, ge=1, le=16, description="Overcommit ratio of the memory for jobs; actual use is monitored."
    )
    lease_seconds: float = Field(
        30, gt=1, description="Validity of a lease; a worker without a heartbeat for this long loses its jobs."
    )
    worker_metrics: Annotated[str | None, AfterValidator(_listen)] = Field(
        None,
        description="Address on which `belljar worker` serves its metrics to Prometheus, such as `127.0.0.1:9464`; "
        "whoever reaches it reads them. Default: none. A worker in the server's process is in the server's `/metrics`.",
    )
    grace_seconds: float = Field(
        2, ge=0, description="Time between SIGTERM and SIGKILL for a job that is cancelled or timed out."
    )
