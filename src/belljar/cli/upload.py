"""Uploads a path to a server: a file unchanged, a folder as an archive of its selected files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from belljar.cli.printing import print_message
from belljar.model.errors import InvalidScript

if TYPE_CHECKING:
    from belljar.client import Client
    from belljar.scripts.selection import Selection


def upload(
    client: Client, path: Path, filename: str, selection: Selection, *, language: str | None, entrypoint: str | None
) -> dict[str, Any]:
    """Upload a file, an archive or a folder and return the script. Raises InvalidScript."""
    if not path.is_dir():
        if not path.is_file():
            raise InvalidScript(f"{path} is a device, pipe or socket; give a file, an archive or a folder")
        try:
            file = path.open("rb")
        except OSError as error:
            raise InvalidScript(f"cannot read {path}: {error.strerror}") from None
        with file:
            return client.upload(file, filename, language=language, entrypoint=entrypoint)
    from belljar.scripts.folder import pack_folder

    with tempfile.TemporaryFile(prefix="belljar-") as packed:
        pack_folder(path, packed, selection)
        if (sentence := selection.sentence()) is not None:
            print_message(sentence)
        packed.seek(0)
        return client.upload(packed, f"{filename}.tar.gz", language=language, entrypoint=entrypoint)
