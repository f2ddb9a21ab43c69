"""Files that appear whole or not at all: written under a temporary name beside the target, then renamed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_path(path: Path, *, temporary: Path | None = None, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path for the block to write; then rename it to `path`, which it replaces.

    If the block raises, the temporary file is removed. Its name is `.NAME.RANDOM.part` unless `temporary` gives one.
    `durable` waits until the disk has the file and its name (fsync(2)). Raises OSError.
    """
    part = temporary or path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        if durable:
            sync(part)
        part.replace(path)
        if durable:
            sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def atomic_write(path: Path, data: str | bytes, *, mode: int = 0o666) -> None:
    """Write a whole file, with a mode that the umask restricts. Raises OSError."""
    with atomic_path(path) as part:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)


def sync_file(path: Path) -> None:
    """Wait until the disk has a file and its name. Raises OSError."""
    sync(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder (fsync(2)). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
