"""What a caller submits: the options of a job (`JobOptions`) and what to run (`JobRequest`).

Values are validated here once, at the edge; inside, every value is within its bounds. Units are in the names.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated

from pydantic import Field, PrivateAttr, field_validator, model_validator

from belljar.model.egress import parse_egress
from belljar.model.secrets import MAX_SECRETS, GivenSecretUse, check_secret_uses, parse_secret_uses
from belljar.model.submission_limits import MAX_ARGS, MAX_ARTIFACTS, MAX_ENV, MAX_FILES, MAX_LABELS
from belljar.model.value import Value

#: Linux refuses one argument or environment string of 128 KiB or more (MAX_ARG_STRLEN, execve(2)).
MAX_STRING_BYTES = 128 * 1024 - 1
#: All arguments and the environment together; Linux allows a quarter of the stack limit (8 MiB).
MAX_ARGUMENT_BYTES = 1024 * 1024
MAX_STDIN_BYTES = 16 * 1024 * 1024
#: The largest value of a database's INTEGER; the actual limits are settings.
MAX_AMOUNT = 2**31 - 1
ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
LABEL_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?\Z")


Rate = Annotated[float, Field(ge=0.1, le=MAX_AMOUNT, allow_inf_nan=False)] | None


def _check_exec_string(value: str, name: str) -> str:
    if "\0" in value:
        raise ValueError(f"{name} contains a NUL character, which programs cannot receive; remove it")
    if len(value.encode()) > MAX_STRING_BYTES:
        raise ValueError(f"{name} is over {MAX_STRING_BYTES} bytes; pass large data through stdin or a file")
    return value


class JobOptions(Value):
    """How to run a script. None means the default of the image, the script or the settings."""

    args: tuple[str, ...] = Field(default=(), max_length=MAX_ARGS)
    """Arguments after the entrypoint."""
    env: dict[str, str] = Field(default_factory=dict, max_length=MAX_ENV)
    """Variables to add to the image's environment. With `args` at most 1 MiB, each at most 128 KiB."""
    secrets: tuple[GivenSecretUse, ...] = Field(default=(), max_length=MAX_SECRETS)
    """Secrets of the project that the job gets: `NAME` for an environment variable of that name, or an object; see
    docs/secrets.md."""
    mask_secrets: bool = True
    """Whether a secret that the job prints is `***` in its output."""
    stdin: str | None = None
    """Text of the script's standard input, at most 16 MiB; None: empty."""
    stdin_base64: str | None = None
    """Standard input as bytes in base64; at most one of `stdin` and `stdin_base64`."""
    image: str | None = Field(default=None, min_length=1, max_length=128)
    """Name of the image; None: the default image of the script's language."""
    vcpus: int | None = Field(default=None, ge=1, le=MAX_AMOUNT)
    memory_mb: int | None = Field(default=None, ge=64, le=MAX_AMOUNT)
    """Memory of the machine, including its kernel; each image and language has a minimum: 96 or more with Debian's
    kernel."""
    disk_mb: int | None = Field(default=None, ge=16, le=MAX_AMOUNT)
    """Size of a scratch disk for everything that the job writes; None: the machine's memory holds it."""
    disk_mb_per_second: Rate = None
    """Limit of each of the machine's disks in MiB per second; None: the settings' default."""
    disk_iops: int | None = Field(default=None, ge=1, le=MAX_AMOUNT)
    """Limit of each of the machine's disks in operations per second (IOPS); None: the settings' default."""
    network_mbit_per_second: Rate = None
    """Limit of its network in each direction, in 10^6 bits per second; None: the settings' default."""
    timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    egress: str | tuple[str, ...] = "none"
    """What the job may reach: `none`, `open` (the internet), `packages` (the package mirrors of the settings), or a
    list of HOST, *.HOST, ADDRESS or NETWORK, each optionally with :PORT; a string with commas is a list."""
    artifacts: tuple[str, ...] = Field(default=(), max_length=MAX_ARTIFACTS)
    """Globs of files below the working folder to keep when the script has ended: `out/*.csv`, `out` for all files below
    it, `**/*.log` at any depth. A glob that begins with `!` excludes files that others match."""
    max_attempts: int = Field(default=2, ge=1, le=10)
    """Number of attempts that may fail because of infrastructure before the job is `lost`."""
    priority: int = Field(default=0, ge=-100, le=100)
    """Jobs of the project with higher priority run first: a node starts none of its others before the first one that it
    could ever run."""
    labels: dict[str, str] = Field(default_factory=dict, max_length=MAX_LABELS)
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=255)
    """The same request with the same key returns the first job; another request is refused (409 `conflict`)."""
    #: Standard input as bytes, once it is decoded.
    _stdin: bytes | None = PrivateAttr(None)

    @field_validator("args")
    @classmethod
    def _args(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_check_exec_string(arg, "an argument of args") for arg in value)

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            if not ENV_NAME.match(name):
                raise ValueError(f"{name[:64]!r} is an invalid variable name; use letters, digits and _")
            _check_exec_string(f"{name}={text}", f"the environment variable {name[:64]}")
        return value

    @field_validator("secrets", mode="before")
    @classmethod
    def _secrets(cls, value: object) -> object:
        return parse_secret_uses(value)

    @field_validator("artifacts")
    @classmethod
    def _artifacts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for glob in value:
            if not glob or "\0" in glob or len(glob.encode()) > 1024:
                raise ValueError("an artifact glob must have 1 to 1024 bytes and no NUL")
            path = glob.removeprefix("!")
            if not path or path.startswith("/") or ".." in path.split("/"):
                raise ValueError(f"the artifact glob {glob!r} leaves the working folder; give a path below it")
        if value and all(glob.startswith("!") for glob in value):
            raise ValueError("all artifact globs exclude files; add one that includes files, such as **")
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
                raise ValueError(f"{name[:64]!r} is an invalid label name; use up to 63 letters, digits and . _ / -")
            if len(text) > 255:
                raise ValueError(f"the label {name} has {len(text)} characters; at most 255 are allowed")
        return value

    @model_validator(mode="after")
    def _check_sizes(self) -> JobOptions:
        if self.stdin is not None and self.stdin_base64 is not None:
            raise ValueError("set stdin or stdin_base64, not both")
        if len(self.stdin_bytes()) > MAX_STDIN_BYTES:
            raise ValueError(f"stdin is over {MAX_STDIN_BYTES} bytes; put the data into the script's archive")
        total = sum(len(arg.encode()) + 1 for arg in self.args)
        total += sum(len(name) + len(text.encode()) + 2 for name, text in self.env.items())
        if total > MAX_ARGUMENT_BYTES:
            raise ValueError(f"args and env have {total} bytes together; at most {MAX_ARGUMENT_BYTES} are allowed")
        check_secret_uses(self.secrets, self.env)
        return self

    def stdin_bytes(self) -> bytes:
        """Return standard input as bytes, empty by default. Raises ValueError for invalid base64."""
        if self._stdin is None:
            self._stdin = self._decode_stdin()
        return self._stdin

    def set_stdin(self, data: bytes) -> None:
        """Set standard input to decoded bytes of at most `MAX_STDIN_BYTES`."""
        self._stdin = data

    def _decode_stdin(self) -> bytes:
        if self.stdin_base64 is not None:
            try:
                return base64.b64decode(self.stdin_base64, validate=True)
            except binascii.Error:
                raise ValueError("stdin_base64 is invalid base64") from None
        return (self.stdin or "").encode()


class JobRequest(JobOptions):
    """A submission: options and one of `script_id`, `code` and `files`."""

    script_id: str | None = None
    code: str | None = None
    """Text of a script of one file; requires `language`. `code` or `files` have at most 4 MiB in JSON; upload larger
    scripts."""
    language: str | None = None
    files: dict[str, str] | None = Field(default=None, max_length=MAX_FILES)
    """Path → text of a script of several files; `entrypoint` may be omitted when the language's default exists."""
    entrypoint: str | None = None

    @model_validator(mode="after")
    def _check_source(self) -> JobRequest:
        sources = [name for name in ("script_id", "code", "files") if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ValueError("set exactly one of script_id, code (with language) and files")
        if self.code is not None and self.language is None:
            raise ValueError("code requires language")
        return self
