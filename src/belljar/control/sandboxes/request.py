"""What callers send about sandboxes: the creation of one, commands, and changes. Validated once, here."""

from __future__ import annotations

import base64
import binascii
import signal as signals
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from belljar.model.egress import parse_egress
from belljar.model.errors import InvalidOption
from belljar.model.job_options import (
    ENV_NAME,
    LABEL_NAME,
    MAX_AMOUNT,
    MAX_ARGUMENT_BYTES,
    MAX_STRING_BYTES,
    Rate,
)
from belljar.model.sandbox_values import ROOT, GuestUser, TerminalSize
from belljar.model.secrets import MAX_SECRETS, GivenSecretUse, check_secret_uses, parse_secret_uses
from belljar.model.submission_limits import MAX_ARGS, MAX_LABELS
from belljar.model.value import Value

#: Variables of a sandbox or a command.
MAX_ENV = 1000
MAX_PATH_BYTES = 4095
#: What of each stream a command's result has at most.
MAX_OUTPUT_BYTES = 4 * 1024 * 1024
DEFAULT_OUTPUT_BYTES = 1024 * 1024
MAX_PUBLIC_PORTS = 64
#: Copies of a sandbox that one request makes.
MAX_FORKS = 100
SNAPSHOT_ID = "^snap_[0-9A-HJKMNP-TV-Z]{26}$"
#: Options that a snapshot decides.
_OF_SNAPSHOT = frozenset({"template", "image", "shape", "secrets", "user"})
_SIGNALS = {each.name: each for each in signals.Signals}

User = Literal["root"] | Annotated[int, Field(ge=0, le=0x7FFFFFFF)] | None
Port = Annotated[int, Field(ge=1, le=65535)]
PublicPorts = Annotated[
    tuple[Port, ...], Field(max_length=MAX_PUBLIC_PORTS), AfterValidator(lambda ports: tuple(sorted(set(ports))))
]
Seconds = Annotated[float, Field(gt=0, le=MAX_AMOUNT, allow_inf_nan=False)]


def guest_user(user: User) -> GuestUser | None:
    """Return a user as the link has it."""
    if user is None:
        return None
    return ROOT if user == "root" else GuestUser(uid=user, gid=user)


def check_env(env: dict[str, str]) -> dict[str, str]:
    """Return variables that a program can receive. Raises ValueError for others."""
    total = 0
    for name, text in env.items():
        if not ENV_NAME.match(name):
            raise ValueError(f"{name[:64]!r} is an invalid variable name; use letters, digits and _")
        total += size_of(f"{name}={text}", f"the environment variable {name[:64]}")
    if total > MAX_ARGUMENT_BYTES:
        raise ValueError(f"env has {total} bytes; at most {MAX_ARGUMENT_BYTES} are allowed")
    return env


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for name, text in labels.items():
        if not LABEL_NAME.match(name):
            raise ValueError(f"{name[:64]!r} is an invalid label name; use up to 63 letters, digits and . _ / -")
        if len(text) > 255:
            raise ValueError(f"the label {name} has {len(text)} characters; at most 255 are allowed")
        size_of(text, f"the label {name}")
    return labels


def size_of(text: str, name: str) -> int:
    """Return the bytes of a string that a program can receive. Raises ValueError for another one."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name} has an unpaired surrogate; send valid Unicode") from None
    if "\0" in text:
        raise ValueError(f"{name} contains a NUL character, which programs cannot receive; remove it")
    if size > MAX_STRING_BYTES:
        raise ValueError(f"{name} is over {MAX_STRING_BYTES} bytes; pass large data through stdin or a file")
    return size


class SandboxShape(Value):
    """The resources of a sandbox's machine. None: the default of the image or the settings."""

    vcpus: int | None = Field(default=None, ge=1, le=MAX_AMOUNT)
    memory_mb: int | None = Field(default=None, ge=64, le=MAX_AMOUNT)
    """Memory of the machine, including its kernel."""
    disk_mb: int | None = Field(default=None, ge=16, le=MAX_AMOUNT)
    """Size of a disk for everything that is written; None: the machine's memory holds it."""
    disk_mb_per_second: Rate = None
    disk_iops: int | None = Field(default=None, ge=1, le=MAX_AMOUNT)
    network_mbit_per_second: Rate = None


class SandboxRequest(Value):
    """A new sandbox."""

    template: str | None = Field(default=None, min_length=1, max_length=128)
    """A language or an image by name, such as `python`; None: the image of Python."""
    image: str | None = Field(default=None, min_length=1, max_length=128)
    """An image by name; at most one of `template`, `image` and `snapshot`."""
    snapshot: str | None = Field(default=None, pattern=SNAPSHOT_ID)
    """A snapshot of a sandbox: the new one goes on where that was, with its image, shape, user, secrets, and `egress`
    and `idle_seconds` unless they are given."""
    shape: SandboxShape = SandboxShape()
    egress: str | tuple[str, ...] = "none"
    """What it may reach, as for jobs: `none`, `open`, `packages`, or a list of destinations."""
    env: dict[str, str] = Field(default_factory=dict, max_length=MAX_ENV)
    """Variables that every command gets."""
    secrets: tuple[GivenSecretUse, ...] = Field(default=(), max_length=MAX_SECRETS)
    """Secrets of the project that every command gets, as for jobs."""
    mask_secrets: bool = True
    """Whether those secrets are replaced by `***` in the output of commands, as for jobs."""
    public_ports: PublicPorts = ()
    """Ports that anyone may reach by their host names, without a token."""
    user: User = None
    """Who its commands run as, and whom /work belongs to: `root`, or a uid (also its gid); None: the image's user."""
    lifetime_seconds: Seconds | None = None
    """It ends so long after its creation, whatever runs; None: the setting `default_sandbox_lifetime_seconds`."""
    idle_seconds: Seconds | None = None
    """It ends when so long no call came and no foreground command ran; None: only the lifetime ends it."""
    labels: dict[str, str] = Field(default_factory=dict, max_length=MAX_LABELS)
    idempotency_key: str | None = Field(default=None, min_length=1, max_length=255)
    """The same request with the same key returns the first sandbox; another request is refused (409 `conflict`). The
    header `Idempotency-Key` does the same."""

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        return check_env(value)

    @field_validator("secrets", mode="before")
    @classmethod
    def _secrets(cls, value: object) -> object:
        return parse_secret_uses(value)

    @field_validator("egress")
    @classmethod
    def _egress(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return parse_egress(value).value

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        return _check_labels(value)

    @model_validator(mode="after")
    def _check_together(self) -> SandboxRequest:
        if self.template is not None and self.image is not None:
            raise ValueError("set template or image, not both")
        if self.snapshot is not None and (fixed := sorted(self.model_fields_set & _OF_SNAPSHOT)):
            raise ValueError(f"a snapshot has its own {', '.join(fixed)}; leave that out")
        check_secret_uses(self.secrets, self.env)
        return self


class SnapshotRequest(Value):
    """What a snapshot of a sandbox is to have."""

    secrets: Literal["keep"] | None = None
    """`keep` is needed for a sandbox with secrets: their values are in its memory, and so in the snapshot's."""


class ForkRequest(Value):
    """Copies of a sandbox, with everything that it has in memory and on its disks now."""

    count: int = Field(default=1, ge=1, le=MAX_FORKS)
    """How many; each has an id, a lifetime, entropy, a host name and addresses of its own."""
    lifetime_seconds: Seconds | None = None
    """Each ends so long after its creation; None: the lifetime that the sandbox was created with."""
    labels: dict[str, str] | None = Field(default=None, max_length=MAX_LABELS)
    """None: those of the sandbox."""
    secrets: Literal["keep"] | None = None
    """`keep` is needed for a sandbox with secrets: their values are in its memory, and so in every copy's."""

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        return None if value is None else _check_labels(value)


class SandboxChange(Value):
    """A change of a sandbox."""

    public_ports: PublicPorts
    """The ports that anyone may reach by their host names, instead of those so far."""


class PortTokenRequest(Value):
    """A new token for a port."""

    lifetime_seconds: Seconds | None = None
    """It is valid for so long; None: until the sandbox ends."""


class Extension(Value):
    """A later end of a sandbox."""

    lifetime_seconds: Seconds
    """It ends so long after this call; within the setting `max_sandbox_lifetime_seconds` from its creation."""


class ExecRequest(Value):
    """A command: `command` for a shell, or `args`."""

    command: str | None = Field(default=None, min_length=1)
    """Run by `/bin/sh -c`."""
    args: tuple[str, ...] | None = Field(default=None, min_length=1, max_length=MAX_ARGS)
    """A program and its arguments; a program without a slash is searched in PATH."""
    cwd: str | None = Field(default=None, min_length=1, max_length=MAX_PATH_BYTES)
    """The working folder; None: /work."""
    env: dict[str, str] = Field(default_factory=dict, max_length=MAX_ENV)
    """Variables beside those of the sandbox and its image, and instead of those with the same name."""
    user: User = None
    """Who runs it, as for the sandbox; only a sandbox of root runs commands as others than its own user."""
    stdin: str | None = None
    """Text of its standard input, at most 16 MiB, after which that ends."""
    stdin_base64: str | None = None
    """Standard input as bytes in base64; at most one of `stdin` and `stdin_base64`."""
    keep_stdin_open: bool = False
    """Whether more input may come, by POST …/processes/{pid}/stdin or over the WebSocket; always so with `pty`."""
    pty: bool | TerminalSize = False
    """Whether it gets a terminal (its stderr is then part of stdout): true, or a size."""
    background: bool = False
    """Return as soon as it runs; it continues until it ends, or the sandbox does."""
    timeout_seconds: Seconds | None = None
    """It is killed after this time, with all that it started; None: when the sandbox ends."""
    max_output_bytes: int = Field(default=DEFAULT_OUTPUT_BYTES, ge=0, le=MAX_OUTPUT_BYTES)
    """Bytes of each of stdout and stderr that the result has; the rest is dropped, and `…_truncated` is true."""
    encoding: Literal["text", "base64"] = "text"
    """How output is written: as text (UTF-8, with U+FFFD for bytes that are not), or as bytes in base64."""

    @field_validator("command", "cwd")
    @classmethod
    def _text(cls, value: str | None) -> str | None:
        if value is not None:
            size_of(value, "command or cwd")
        return value

    @field_validator("args")
    @classmethod
    def _args(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        total = sum(size_of(arg, "an argument of args") + 1 for arg in value or ())
        if total > MAX_ARGUMENT_BYTES:
            raise ValueError(f"args has {total} bytes; at most {MAX_ARGUMENT_BYTES} are allowed")
        return value

    @field_validator("env")
    @classmethod
    def _env(cls, value: dict[str, str]) -> dict[str, str]:
        return check_env(value)

    @model_validator(mode="after")
    def _check_together(self) -> ExecRequest:
        if (self.command is None) == (self.args is None):
            raise ValueError("set command (run by a shell) or args (a program and its arguments)")
        if self.stdin is not None and self.stdin_base64 is not None:
            raise ValueError("set stdin or stdin_base64, not both")
        if self.keep_stdin_open and (self.stdin is not None or self.stdin_base64 is not None):
            raise ValueError("stdin is the whole input; with keep_stdin_open send it by POST …/processes/{pid}/stdin")
        return self

    def stdin_bytes(self) -> bytes:
        """Return the standard input that came with the other values. Raises InvalidOption for invalid base64."""
        if self.stdin_base64 is None:
            return (self.stdin or "").encode(errors="replace")
        try:
            return base64.b64decode(self.stdin_base64, validate=True)
        except (binascii.Error, ValueError):
            reason = "stdin_base64 is invalid base64; encode the bytes as in RFC 4648"
            raise InvalidOption(reason, option="stdin_base64") from None

    @property
    def terminal(self) -> TerminalSize | None:
        """The size of its terminal; None without one."""
        if isinstance(self.pty, TerminalSize):
            return self.pty
        return TerminalSize() if self.pty else None

    @property
    def guest_user(self) -> GuestUser | None:
        """The user in the guest; None: the sandbox's own."""
        return guest_user(self.user)

    @property
    def argv(self) -> tuple[str, ...]:
        """The program and its arguments."""
        return self.args if self.args is not None else ("/bin/sh", "-c", self.command or "")


class SignalRequest(Value):
    """A signal for a process."""

    signal: str | int = "SIGTERM"
    """Its name or number."""
    descendants: bool = False
    """Kill every process that the command started, whatever `signal` says."""

    @property
    def name(self) -> str:
        """The signal's name, such as SIGTERM. Raises ValueError, KeyError for none."""
        if isinstance(self.signal, int):
            return signals.Signals(self.signal).name
        name = self.signal.upper()
        return _SIGNALS[name if name.startswith("SIG") else f"SIG{name}"].name

    @model_validator(mode="after")
    def _check_signal(self) -> SignalRequest:
        try:
            _ = self.name
        except (KeyError, ValueError):
            shown = str(self.signal)[:20]
            raise ValueError(f"{shown!r} is no signal; send a name such as SIGTERM, or a number") from None
        return self


class FilePatch(Value):
    """A change of a file or folder: where it is, or its mode."""

    move_to: str | None = Field(default=None, min_length=1, max_length=MAX_PATH_BYTES)
    """The new path; relative to /work unless it begins with a slash."""
    replace: bool = True
    """Whether a file at the new path is replaced; otherwise 409 `file_exists`."""
    mode: str | None = Field(default=None, pattern="^[0-7]{3,4}$")
    """The new mode in octal digits, such as 755."""

    @model_validator(mode="after")
    def _check_one(self) -> FilePatch:
        if (self.move_to is None) == (self.mode is None):
            raise ValueError("set move_to or mode")
        return self
