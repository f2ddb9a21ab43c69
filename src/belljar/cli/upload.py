"""Uploads a path to a server: a file as it is, a folder as an archive."""

from __future__ import annotations

import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from belljar.client import Client


def upload(
    client: Client, path: Path, filename: str, *, language: str | None, entrypoint: str | None
) -> dict[str, Any]:
    """Upload a file, an archive or a folder; returns the script."""
    if not path.is_dir():
        with path.open("rb") as file:
            return client.upload(file, filename, language=language, entrypoint=entrypoint)
    with tempfile.TemporaryFile(prefix="belljar-") as packed:
        with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
            for entry in sorted(path.iterdir()):
                archive.add(entry, arcname=entry.name)
        packed.seek(0)
        return client.upload(packed, f"{filename}.tar.gz", language=language, entrypoint=entrypoint)
