"""This node's name, and the promise that only one worker works on its data folder."""

from __future__ import annotations

import contextlib
import fcntl
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from belljar.errors import DataFolderError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,80}\Z")


@contextlib.contextmanager
def node_name(data_dir: Path) -> Iterator[str]:
    """The name that this folder's worker always has, held until the block ends.

    Raises DataFolderError while another process holds it, or when the folder cannot be written.
    """
    path = data_dir / "run" / "worker"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = path.open("a+")
    except OSError as error:
        raise DataFolderError(f"cannot write {path}: {error.strerror}; set --data-dir to another folder") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataFolderError(
                f"another belljar works on {data_dir} already; stop it, or set --data-dir to another folder"
            ) from None
        file.seek(0)
        name = file.read().strip()
        if not _NAME.match(name):
            host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:60] or "node"
            name = f"{host}-{secrets.token_hex(3)}"
            file.truncate(0)
            file.write(name + "\n")
            file.flush()
        yield name
