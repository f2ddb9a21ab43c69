"""The job as a value: what callers see of one run of a script."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from belljar.model.flows import FlowAlert
from belljar.model.script import Dependencies
from belljar.model.secrets import SecretUse
from belljar.model.states import Status
from belljar.model.value import Value


class Resources(Value):
    """The resources of a job's machine, defaults included."""

    vcpus: int
    memory_mb: int
    disk_mb: int | None = None
    disk_mb_per_second: float | None = None
    disk_iops: int | None = None
    network_mbit_per_second: float | None = None


class JobError(Value):
    """Why a job did not succeed: a stable code (docs/errors.md) and a sentence."""

    code: str
    message: str


class Timings(Value):
    """Milliseconds from submission to claim, from claim to the script's start, and from start to end."""

    queue_ms: float | None = None
    machine_ms: float | None = None
    run_ms: float | None = None
    phases: dict[str, float] = Field(default_factory=dict)
    """The steps of `machine_ms` and those after the run, by name, in order."""


class Usage(Value):
    """The job's usage as counted by its guest, and its machine's network traffic."""

    cpu_seconds: float | None = None
    max_memory_mb: float | None = None
    rx_bytes: int | None = None
    tx_bytes: int | None = None


class Refusal(Value):
    """A destination that egress blocked."""

    name: str | None = None
    """The host name, if the job resolved one."""
    address: str | None = None
    """None: the name was refused, so there was no connection."""
    port: int | None = None
    protocol: str | None = None
    """`tcp`, `udp`, `icmp`, or a protocol's number; `dns` for a name."""
    always_blocked: bool = False
    """Whether no egress policy allows it: a private address, one of the host's, another machine's."""
    count: int = 1


class NetworkUse(Value):
    """What the network blocked, so that users see why a destination was not reachable."""

    refused_count: int = 0
    """Number of refused connections and names."""
    refused: tuple[Refusal, ...] = ()
    """The first 20 different destinations."""
    limited_count: int = 0
    """Number of connections dropped over the limits of connections and rate."""
    forged_count: int = 0
    """Number of packets with another source address than the machine's, or of an invalid kind."""
    alerts: tuple[FlowAlert, ...] = ()
    """The first 20 alerts about its flows."""


class MachineInfo(Value):
    """The machine of an attempt."""

    source: Literal["pool", "snapshot", "boot"]
    hypervisor: str
    accelerator: str


class Artifact(Value):
    """A kept file."""

    path: str
    """Path below the working folder, as sent by the guest: displayed, never used as a path on a host."""
    size_bytes: int


class LogInfo(Value):
    """The kept bytes of each stream of the last attempt, and whether the limit truncated it."""

    stdout_bytes: int = 0
    stderr_bytes: int = 0
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    incomplete: bool = False
    """Whether some of the log could not be written, for example because the disk was full."""


class LostAttempt(Value):
    """An attempt that was lost to an infrastructure failure; its results do not count."""

    attempt: int
    worker: str
    had_started: bool
    """Whether the script had started."""
    code: str
    message: str
    at: datetime


class Job(Value):
    """One run of a script, as callers see it."""

    id: str
    project: str
    script_id: str
    status: Status
    exit_code: int | None = None
    signal: str | None = None
    """Name of the signal that ended the script, such as SIGKILL."""
    error: JobError | None = None
    attempt: int = 0
    """Number of the current or last attempt; 0 until a worker claims the job."""
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    timings: Timings = Timings()
    usage: Usage = Usage()
    network: NetworkUse = NetworkUse()
    machine: MachineInfo | None = None
    worker: str | None = None
    logs: LogInfo = LogInfo()
    kept_artifacts: tuple[Artifact, ...] = ()
    cancel_requested: bool = False
    lost_attempts: tuple[LostAttempt, ...] = ()
    secret_versions: dict[str, int] = Field(default_factory=dict)
    """The version of each secret that the last attempt was given."""

    language: str
    entrypoint: str
    image: str
    image_digest: str | None = None
    """Digest of the image at submission: a name that later points to another image changes no job."""
    resources: Resources
    timeout_seconds: float
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    secrets: tuple[SecretUse, ...] = ()
    """The secrets that the job gets, by name; never their values."""
    mask_secrets: bool = True
    """Whether secrets are `***` in its output."""
    stdin_bytes: int = 0
    """Length of standard input; its bytes are in the blob store."""
    egress: str | tuple[str, ...] = "none"
    artifacts: tuple[str, ...] = ()
    max_attempts: int = 2
    priority: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    dependencies: Dependencies | None = None
    """The packages that the script declares; installed once and cached for other jobs with the same ones."""
    idempotency_key: str | None = None
    traceparent: str | None = None
    """The span of the request that submitted the job (W3C Trace Context); None: traces are off."""
    request_sha256: str | None = None
    """Digest of the request, for jobs with an idempotency key."""

    def public(self) -> dict[str, Any]:
        """Return the job as the HTTP API and `--json` print it: resources flattened to the names of the options."""
        shown = self.model_dump(mode="json", exclude={"resources", "request_sha256"})
        return shown | self.resources.model_dump()
