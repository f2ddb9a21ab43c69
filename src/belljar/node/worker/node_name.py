"""The node's name, and the lock that lets one worker work on its data folder."""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

from belljar.data_dir import DataDir, data_folder_error, working

_NAME = re.compile(r"[A-Za-z0-9._-]{1,80}\Z")


@contextlib.contextmanager
def node_name(data_dir: Path) -> Iterator[str]:
    """Return the name of this folder's worker, which stays the same, and lock it until the block ends.

    Raises DataFolderError while another process holds it, or when the folder cannot be written.
    """
    path = DataDir(data_dir).worker_name
    with working(data_dir):
        name = path.read_text(errors="replace").strip()
        if not _NAME.match(name):
            host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:60] or "node"
            name = f"{host}-{secrets.token_hex(3)}"
            try:
                path.write_text(name + "\n")
            except OSError as error:
                raise data_folder_error(path, error) from error
        yield name
