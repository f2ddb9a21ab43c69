"""Turn a folder of the user into a script: copy it with the same checks as an archive, or pack it for a server."""

from __future__ import annotations

import gzip
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from belljar.model.errors import InvalidScript
from belljar.scripts.selection import Entry, Selection, open_entry
from belljar.scripts.tree import CHUNK_BYTES, Tree


def copy_folder(source: Path, tree: Tree, selection: Selection | None = None) -> None:
    """Copy the selected files of a folder into the tree; blocks. Raises InvalidScript, TooLarge, OSError."""
    for entry in (selection or Selection()).entries(source, tree.check):
        if entry.kind == "folder":
            tree.add_folder(entry.name)
        elif entry.kind == "link":
            tree.add_link(entry.name, entry.target)
        else:
            tree.add_file(entry.name, _read(entry), executable=entry.executable)


def pack_folder(source: Path, out: BinaryIO, selection: Selection) -> None:
    """Write the selected files of a folder as a .tar.gz; the same files give the same bytes. Raises InvalidScript."""
    with (
        gzip.GzipFile(filename="", fileobj=out, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        for entry in selection.entries(source):
            _add(archive, entry)


def _add(archive: tarfile.TarFile, entry: Entry) -> None:
    member = tarfile.TarInfo(entry.name)
    if entry.kind == "folder":
        member.type, member.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(member)
    elif entry.kind == "link":
        _check_link(entry)
        member.type, member.linkname = tarfile.SYMTYPE, entry.target
        archive.addfile(member)
    else:
        member.mode = 0o755 if entry.executable else 0o644
        with open_entry(entry) as content:
            member.size = content.seek(0, 2)
            content.seek(0)
            try:
                archive.addfile(member, content)
            except OSError as error:
                if error.errno is not None:
                    raise
                raise InvalidScript(f"{entry.name[-200:]} was truncated while it was read; try again") from None


def _check_link(entry: Entry) -> None:
    """Raise InvalidScript for a link that a server would refuse after the upload."""
    parent = posixpath.dirname(entry.name)
    resolved = posixpath.normpath(posixpath.join(parent, entry.target))
    if entry.target.startswith("/") or resolved == ".." or resolved.startswith("../"):
        raise InvalidScript(
            f"invalid file in the script: {entry.name[:80]!r} is a link to {entry.target[:80]!r}; links must be "
            "relative and stay inside; leave it out with --exclude"
        )


def _read(entry: Entry) -> Iterator[bytes]:
    with open_entry(entry) as content:
        while chunk := content.read(CHUNK_BYTES):
            yield chunk
