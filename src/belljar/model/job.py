"""The job as a value: what a caller asks for (`JobOptions`, `JobRequest`) and what the world sees (`Job`).

Options are validated here once, at the edge; inside, every value is within its bounds. Units are in the names.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from belljar.model.egress import parse_egress
from belljar.model.script import Dependencies
from belljar.model.states import Status
from belljar.model.submission_limits import MAX_ARGS, MAX_ARTIFACTS, MAX_ENV, MAX_FILES, MAX_LABELS

#: Linux refuses one argument or environment string of 128 KiB or more (MAX_ARG_STRLEN, execve(2)).
MAX_STRING_BYTES = 128 * 1024 - 1
#: All arguments and the environment together; Linux allows a quarter of the stack (8 MiB), the rest is the kernel's.
MAX_ARGUMENT_BYTES = 1024 * 1024
MAX_STDIN_BYTES = 16 * 1024 * 1024
#: Beyond any machine, and what a database's INTEGER holds; the real limits are settings.
MAX_AMOUNT = 2**31 - 1
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?\Z")


Rate = Annotated[float, Field(ge=0.1, le=MAX_AMOUNT, allow_inf_nan=False)] | None


class Value(BaseModel):
    """A frozen record that refuses fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _check_exec_string(value: str, what: str) -> str:
    if "\0" in value:
        raise ValueError(f"{what} holds a NUL character; a program cannot be given one")
    if len(value.encode()) > MAX_STRING_BYTES:
        raise ValueError(f"{what} is over {MAX_STRING_BYTES} bytes; pass large data through stdin or a file")
    return value


class JobOptions(Value):
    """How a script is to be run. None means: the default of the image, the script or the settings."""

    args: tuple[str, ...] = Field(default=(), max_length=MAX_ARGS)
    """Arguments after the entrypoint."""
    env: dict[str, str] = Field(default_factory=dict, max_length=MAX_ENV)
    """Added to the image's environment. With `args` at most 1 MiB, one of them at most 128 KiB."""
    stdin: str | None = None
    """Text for the script's standard input, at most 16 MiB; without it standard input is empty."""
    stdin_base64: str | None = None
    """The same for bytes, in base64; at most one of the two."""
    image: str | None = Field(default=None, min_length=1, max_length=128)
    """Name of the image; None: the one for the script's language."""
    vcpus: int | None = Field(default=None, ge=1, le=MAX_AMOUNT)
    memory_mb: int | None = Field(default=None, ge=64, le=MAX_AMOUNT)
    """Memory of the machine, its kernel's included; each image and language has a least: 96 or more with Debian's
    kernel."""
    disk_mb: int | None = Field(default=None, ge=16, le=MAX_AMOUNT)
    """A scratch disk of this size under everything the job writes; None: in the machine's memory."""
    disk_mb_per_second: Rate = None
    """What each of the machine's disks may read and write, in MiB per second; None: the settings' default."""
    disk_iops: int | None = Field(default=None, ge=1, le=MAX_AMOUNT)
    """The same in operations per second."""
    network_mbit_per_second: Rate = None
    """What its network may carry in each direction, in 10^6 bits per second; None: the settings' default."""
    timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    egress: str | tuple[str, ...] = "none"
    """What the job may reach: `none`, `open` (the internet), `packages` (the package mirrors of this place), or a list
    of HOST, *.HOST, ADDRESS or NETWORK, each with :PORT if you like; a string with commas is a list."""
    artifacts: tuple[str, ...] = Field(default=(), max_length=MAX_ARTIFACTS)
    """Globs below the working folder; what they match when the script has ended is kept: `out/*.csv`, `out` for all
    below it, `**/*.log` at any depth. One that begins with `!` takes out what the others match."""
    max_attempts: int = Field(default=2, ge=1, le=10)
    """How many times infrastructure may fail under the job before it is `lost`."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Higher runs first, whatever the sizes are: nothing is started before the first job that a node could run."""
    labels: dict[str, str] = Field(default_factory=dict, max_length=MAX_LABELS)
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=255)
    """Submitting the same again with this key gives the first job back; something else is refused (409 `conflict`)."""
    #: Standard input as bytes, once it was decoded or taken from elsewhere.
    _stdin: bytes | None = PrivateAttr(None)

    @field_validator("args")
    @classmethod
    def _args(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_check_exec_string(arg, "an argument") for arg in value)

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not ENV_NAME.match(name):
                raise ValueError(f"{name[:64]!r} is no name for an environment variable; use letters, digits and _")
            _check_exec_string(f"{name}={text}", f"the environment variable {name[:64]}")
        return value

    @field_validator("artifacts")
    @classmethod
    def _artifacts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for glob in value:
            if not glob or "\0" in glob or len(glob.encode()) > 1024:
                raise ValueError("an artifact glob has 1 to 1024 bytes and no NUL")
            below = glob.removeprefix("!")
            if not below or below.startswith("/") or ".." in below.split("/"):
                raise ValueError(f"the artifact glob {glob!r} leaves the working folder; give a path below it")
        if value and all(glob.startswith("!") for glob in value):
            raise ValueError("the artifact globs only take files out; give one that takes files in too, such as **")
        return value

    @field_validator("egress")
    @classmethod
    def _egress(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return parse_egress(value).value

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not LABEL_NAME.match(name):
                raise ValueError(f"{name[:64]!r} is no label name; use up to 63 letters, digits and . _ / -")
            if len(text) > 255:
                raise ValueError(f"the label {name} is over 255 characters")
        return value

    @model_validator(mode="after")
    def _whole(self) -> JobOptions:
        if self.stdin is not None and self.stdin_base64 is not None:
            raise ValueError("give stdin or stdin_base64, not both")
        if len(self.stdin_bytes()) > MAX_STDIN_BYTES:
            raise ValueError(f"stdin is over {MAX_STDIN_BYTES} bytes; put the data into the script's archive")
        total = sum(len(arg.encode()) + 1 for arg in self.args)
        total += sum(len(name) + len(text.encode()) + 2 for name, text in self.env.items())
        if total > MAX_ARGUMENT_BYTES:
            raise ValueError(f"args and env are over {MAX_ARGUMENT_BYTES} bytes together")
        return self

    def stdin_bytes(self) -> bytes:
        """The bytes of standard input; empty when none were given. Raises ValueError for bad base64."""
        if self._stdin is None:
            self._stdin = self._decoded_stdin()
        return self._stdin

    def take_stdin(self, data: bytes) -> None:
        """Set standard input to bytes that were decoded elsewhere; they are within `MAX_STDIN_BYTES`."""
        self._stdin = data

    def _decoded_stdin(self) -> bytes:
        if self.stdin_base64 is not None:
            try:
                return base64.b64decode(self.stdin_base64, validate=True)
            except binascii.Error:
                raise ValueError("stdin_base64 is not base64") from None
        return (self.stdin or "").encode()


class JobRequest(JobOptions):
    """A submission: the options and what to run, in one of three ways."""

    script_id: str | None = None
    code: str | None = None
    """The text of a one-file script; needs `language`. `code` or `files` have at most 4 MiB in JSON; upload larger
    scripts."""
    language: str | None = None
    files: dict[str, str] | None = Field(default=None, max_length=MAX_FILES)
    """Path → text of a script of several files; `entrypoint` may be left out when the language's default is there."""
    entrypoint: str | None = None

    @model_validator(mode="after")
    def _one_way(self) -> JobRequest:
        ways = [name for name in ("script_id", "code", "files") if getattr(self, name) is not None]
        if len(ways) != 1:
            raise ValueError("give exactly one of script_id, code (with language) and files")
        if self.code is not None and self.language is None:
            raise ValueError("code needs a language")
        return self


class Resources(Value):
    """What a job's machine is cut to, after defaults were filled in."""

    vcpus: int
    memory_mb: int
    disk_mb: int | None = None
    disk_mb_per_second: float | None = None
    disk_iops: int | None = None
    network_mbit_per_second: float | None = None


class JobError(Value):
    """Why a job did not succeed: a stable code and a sentence."""

    code: str
    message: str


class Timings(Value):
    """Milliseconds from submit to claim, from claim to the entrypoint's start, and from there to its end."""

    queue_ms: float | None = None
    machine_ms: float | None = None
    run_ms: float | None = None
    phases: dict[str, float] = Field(default_factory=dict)
    """The steps of `machine_ms` and what came after the run, by name, in order."""


class Usage(Value):
    cpu_seconds: float | None = None
    max_memory_mb: float | None = None
    rx_bytes: int | None = None
    tx_bytes: int | None = None


class Refusal(Value):
    """A destination that the job was refused."""

    name: str | None = None
    """The name that it asked for, where it asked for one."""
    address: str | None = None
    """None: the name was refused, so no address was ever tried."""
    port: int | None = None
    protocol: str | None = None
    """`tcp`, `udp`, `icmp`, or a protocol's number; `dns` for a name."""
    always_blocked: bool = False
    """Whether no egress policy allows it: a private address, one of the host's, another machine's."""
    count: int = 1


class NetworkUse(Value):
    """What the network did not let through, so that a user sees why something could not be reached."""

    refused_count: int = 0
    """Connections and names that were refused, all of them."""
    refused: tuple[Refusal, ...] = ()
    """The first different ones, at most 20."""
    limited_count: int = 0
    """Connections that were over the limits of number and rate."""
    forged_count: int = 0
    """Packets under another address than the machine's, or of a kind that no machine sends."""


class MachineInfo(Value):
    source: Literal["pool", "snapshot", "boot"]
    hypervisor: str
    accelerator: str


class Artifact(Value):
    path: str
    """Path below the working folder, as the guest named it: shown, never used as a path on a host."""
    size_bytes: int


class LogInfo(Value):
    """How much of each stream the last attempt's log kept, and whether more had been written than the cap."""

    stdout_bytes: int = 0
    stderr_bytes: int = 0
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    incomplete: bool = False
    """Whether some of the log could not be written, for want of disk space for example."""


class LostAttempt(Value):
    """An attempt that infrastructure lost: nothing of it counts, and it is never hidden."""

    attempt: int
    worker: str
    had_started: bool
    """Whether the entrypoint had begun to run."""
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
    """Which try this is or was; 0 until a worker takes the job."""
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

    language: str
    entrypoint: str
    image: str
    image_digest: str | None = None
    """What that name stood for when the job was submitted: a name that moves on meanwhile changes no job."""
    resources: Resources
    timeout_seconds: float
    args: tuple[str, ...] = ()
    env: dict[str, str] = Field(default_factory=dict)
    stdin_bytes: int = 0
    """Length of standard input; the bytes lie in the blob store."""
    egress: str | tuple[str, ...] = "none"
    artifacts: tuple[str, ...] = ()
    max_attempts: int = 2
    priority: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    dependencies: Dependencies | None = None
    """Packages that the script asks for; they are installed once, and kept for the next job that asks for the same."""
    idempotency_key: str | None = None
    request_sha256: str | None = None
    """Of a job with an idempotency key: what its request is told apart by."""

    def public(self) -> dict[str, Any]:
        """The job as the HTTP API and `--json` print it: resources flattened to the names they were asked by."""
        shown = self.model_dump(mode="json", exclude={"resources", "request_sha256"})
        return shown | self.resources.model_dump()
