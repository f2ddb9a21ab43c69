"""Where the key that seals secrets comes from: a file of the data folder, the environment, or a command.

A file is made at the first use, and never again while secrets exist: a key that is lost is an error. Keys are written
as base64, one on a line: the first seals, the others only open what a rotation has not sealed anew yet.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import shlex
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from belljar.control.secrets.sealing import KEY_BYTES, SealingKey
from belljar.model.errors import SecretsKeyError, host_error
from belljar.settings import Settings
from belljar.system.atomic_write import sync

_COMMAND_SECONDS = 30
_MAX_TEXT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The key that seals, and older ones that only open."""

    current: SealingKey
    older: tuple[SealingKey, ...] = ()

    def get(self, key_id: str) -> SealingKey | None:
        """Return the key of that id."""
        return next((key for key in (self.current, *self.older) if key.id == key_id), None)

    @property
    def ids(self) -> frozenset[str]:
        """The ids of all keys."""
        return frozenset(key.id for key in (self.current, *self.older))


class KeySource(Protocol):
    """Provides the keys. Its methods block, and raise SecretsKeyError."""

    #: Where the keys come from, for messages.
    place: str
    #: Whether belljar stores them, and `replace` can.
    is_stored: bool

    def load(self) -> KeyRing | None:
        """Return the keys; None when there are none yet, and `create` may make one."""
        ...

    def create(self) -> KeyRing:
        """Make the first key; return what another process has made meanwhile."""
        ...

    def replace(self, ring: KeyRing) -> None:
        """Store these keys in place of all others."""
        ...


class KeyFile:
    """A file that only belljar's user may read."""

    is_stored = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self.place = f"the file {path}"

    def load(self) -> KeyRing | None:
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SecretsKeyError(f"cannot read {self._path}: {error.strerror}; check its owner and mode") from error
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
                raise SecretsKeyError(f"other users may read {self._path}; as its owner: chmod 600 {self._path}")
            return parse_keys(file.read(_MAX_TEXT_BYTES), self.place)

    def create(self) -> KeyRing:
        ring = KeyRing(SealingKey.new())
        try:
            with self._written(ring) as part, contextlib.suppress(FileExistsError):
                os.link(part, self._path)
                sync(self._path.parent)
        except OSError as error:
            raise host_error(error, "write the key of secrets") from error
        made = self.load()
        assert made is not None
        return made

    def replace(self, ring: KeyRing) -> None:
        try:
            with self._written(ring) as part:
                part.replace(self._path)
                sync(self._path.parent)
        except OSError as error:
            raise host_error(error, "write the key of secrets") from error

    @contextlib.contextmanager
    def _written(self, ring: KeyRing) -> Iterator[Path]:
        """Yield a file with the keys, on the disk whole; remove it afterwards unless it was renamed."""
        part = self._path.with_name(f".{self._path.name}.{os.urandom(4).hex()}.part")
        lines = [base64.b64encode(key.data) for key in (ring.current, *ring.older)]
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(b"".join(line + b"\n" for line in lines))
            sync(part)
            yield part
        finally:
            part.unlink(missing_ok=True)


class FixedKeys:
    """Keys that belljar does not store: from the environment, or from a command, read once."""

    is_stored = False

    def __init__(self, place: str, text: bytes | None = None, command: str | None = None) -> None:
        self.place = place
        self._text = text
        self._command = command
        self._ring: KeyRing | None = None

    def load(self) -> KeyRing:
        if self._ring is None:
            text = self._text if self._command is None else _output_of(self._command)
            self._ring = parse_keys((text or b"").replace(b",", b"\n"), self.place)
        return self._ring

    def create(self) -> KeyRing:
        return self.load()

    def replace(self, ring: KeyRing) -> None:
        raise SecretsKeyError(
            f"the key comes from {self.place}, which belljar does not change: put a new key before the old one there, "
            "start belljar again, and call belljar secret rotate-key"
        )


def open_keys(settings: Settings) -> KeySource:
    """Return the source that the settings name; by default the file in the data folder."""
    if settings.secrets_key_command is not None:
        return FixedKeys("the command secrets_key_command", command=settings.secrets_key_command)
    if settings.secrets_key is not None:
        return FixedKeys("the setting secrets_key", text=settings.secrets_key.get_secret_value().encode())
    return KeyFile(settings.secrets_key_file or settings.paths.secrets_key)


def parse_keys(text: bytes, place: str) -> KeyRing:
    """Parse keys, one on a line. Raises SecretsKeyError, which never has the text."""
    keys = []
    for line in text.split():
        try:
            data = base64.b64decode(line, validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if len(data) != KEY_BYTES:
            raise SecretsKeyError(
                f"{place} has something else than keys of {KEY_BYTES} bytes in base64; "
                f"make one with: head -c {KEY_BYTES} /dev/urandom | base64"
            )
        keys.append(SealingKey(data))
    if not keys:
        raise SecretsKeyError(f"{place} has no key; make one with: head -c {KEY_BYTES} /dev/urandom | base64")
    return KeyRing(keys[0], tuple(dict.fromkeys(keys[1:])))


def _output_of(command: str) -> bytes:
    """Return what a command prints. Raises SecretsKeyError, which never has the output."""
    try:
        argv = shlex.split(command)
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COMMAND_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise SecretsKeyError(f"the command secrets_key_command did not end within {_COMMAND_SECONDS} s") from None
    except (OSError, ValueError, IndexError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no valid command line"
        raise SecretsKeyError(f"the command secrets_key_command cannot be run: {reason}; correct the setting") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it printed no message"]
        raise SecretsKeyError(f"the command secrets_key_command failed (exit {done.returncode}): {lines[-1][:200]}")
    return done.stdout[:_MAX_TEXT_BYTES]
