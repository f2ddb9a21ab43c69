# Written by script/sdk from files_async.py; change that instead.
"""The files of a sandbox: read, write, list, move, remove, and whole folders in both directions."""

from __future__ import annotations

import builtins
import functools
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import quote

from belljar.client.errors import NotFound, ServerError, Unreachable
from belljar.client.local_tree import MAX_DOWNLOAD_BYTES, check_size, extract_folder, pack_folder
from belljar.client.transport import Transport
from belljar.client.websocket_target import message_of, websocket_errors

_MAX_BYTES = 64 << 20
_PIECE_BYTES = 1 << 18


class Files:
    """The files of one sandbox, with the permissions of its user.

    Paths are relative to /work, unless they begin with a slash.
    """

    def __init__(self, transport: Transport, sandbox_path: str) -> None:
        self._transport = transport
        self._path = f"{sandbox_path}/files"

    def read(self, path: str) -> bytes:
        """Return the bytes of a file, at most 64 MiB; larger ones: `read_pieces`."""
        data = bytearray()
        for piece in self.read_pieces(path):
            data += piece
            if len(data) > _MAX_BYTES:
                raise ServerError(200, "too_large", f"{path} is over 64 MiB; read it in pieces")
        return bytes(data)

    def read_text(self, path: str) -> str:
        """Return a file as text (UTF-8), at most 64 MiB."""
        return (self.read(path)).decode()

    def read_pieces(self, path: str) -> Generator[bytes, None, None]:
        """Yield the bytes of a file of any size."""
        yield from self._transport.chunks(self._url(path))

    def write(self, path: str, data: bytes | str | BinaryIO, **options: Any) -> dict[str, Any]:
        """Write a file, whole or not at all, and return its entry. A file object is sent piece by piece.

        Options: mode (octal digits), parents (default True), exclusive, append, offset.
        """
        content: Any = data.encode() if isinstance(data, str) else data
        if not isinstance(content, bytes | bytearray | memoryview):
            content = _pieces(content)
        return self._transport.json("PUT", self._url(path), params=options, content=content)

    def stat(self, path: str, *, follow: bool = True) -> dict[str, Any]:
        """Return the entry of a file or folder: kind, size_bytes, mode, modified_ns…"""
        params = {"stat": True, "follow": follow}
        return self._transport.json("GET", self._url(path), params=params)

    def exists(self, path: str) -> bool:
        """Return whether there is something at the path."""
        try:
            self.stat(path, follow=False)
        except NotFound as error:
            if error.code != "file_not_found":
                raise
            return False
        return True

    def list(self, path: str = "", *, depth: int = 1) -> list[dict[str, Any]]:
        """Return the entries of a folder, `depth` levels deep, at most 10,000."""
        params = {"list": True, "depth": depth}
        listing = self._transport.json("GET", self._url(path or "."), params=params)
        if listing.get("truncated"):
            raise ServerError(200, "too_large", f"{path or '/work'} has over 10,000 entries; list the folders below it")
        entries: list[dict[str, Any]] = listing["entries"]
        return entries

    def make_folder(self, path: str, *, parents: bool = True) -> dict[str, Any]:
        """Make a folder and return its entry."""
        params = {"folder": True, "parents": parents}
        return self._transport.json("PUT", self._url(path), params=params)

    def move(self, path: str, target: str, *, replace: bool = True) -> None:
        """Move a file or folder."""
        body = {"move_to": target, "replace": replace}
        self._transport.json("PATCH", self._url(path), json=body)

    def set_mode(self, path: str, mode: str) -> None:
        """Set the mode, in octal digits."""
        self._transport.json("PATCH", self._url(path), json={"mode": mode})

    def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, or a folder; with `recursive`, also what is in it."""
        self._transport.json("DELETE", self._url(path), params={"recursive": recursive})

    def watch(self, path: str = "", *, recursive: bool = False) -> Generator[dict[str, Any], None, None]:
        """Yield what happens to the files of a folder, and with `recursive` to those below it, without an end.

        The first change has the type `ready`: from then on nothing is missed. Then `type` is `created`, `written`,
        `removed`, `moved_from`, `moved_to`, `attributes` or `overflow` (changes were lost), and `path` is relative to
        the folder.
        """
        from websockets.sync.client import connect

        target = self._transport.websocket(f"{self._path.removesuffix('/files')}/watch")
        target = target.with_query(path=path or ".", recursive=str(recursive).lower())
        with websocket_errors(target.url):
            with connect(target.url, **target.options) as connection:
                for message in connection:
                    yield message_of(message)
        raise Unreachable("the watch ended; watch the folder again", is_temporary=True)

    def upload(self, local: Path | str, path: str) -> None:
        """Write a file or folder of this host to a path. What is at the path of a folder stays beside what is sent."""
        source = Path(local)
        if not source.is_dir():
            with _open_file(source) as file:
                self.write(path, file, mode=f"{os.fstat(file.fileno()).st_mode & 0o777:o}")
            return
        self.make_folder(path)
        with tempfile.TemporaryFile(prefix="belljar-") as packed:
            pack_folder(source, packed)
            packed.seek(0)
            params = {"archive": "tar", "path": path}
            self._transport.json("PUT", self._path, params=params, content=_pieces(packed))

    def download(self, path: str, local: Path | str, *, max_bytes: int = MAX_DOWNLOAD_BYTES) -> builtins.list[str]:
        """Write a file or folder of the sandbox to this host; return the names that were left out.

        Nothing is written through a link or outside of `local`. Links and devices of a folder are left out. Raises
        LocalPathRefused for more than `max_bytes` (default: 10 GiB): a program in the sandbox could fill this disk.
        """
        target = Path(local)
        with tempfile.TemporaryFile(prefix="belljar-") as received:
            is_folder = (self.stat(path))["kind"] == "folder"
            where = self._path if is_folder else self._url(path)
            params = {"archive": "tar", "path": path} if is_folder else {}
            size = 0
            for piece in self._transport.chunks(where, params=params):
                size += len(piece)
                check_size(path, size, max_bytes)
                received.write(piece)
            received.seek(0)
            extract = functools.partial(extract_folder, max_bytes=max_bytes)
            return extract(received, target, is_folder)

    def _url(self, path: str) -> str:
        """Return the URL of a path. Dots are encoded, so that no part of the way resolves `..` to another route."""
        parts = ["%2E" * len(part) if part in (".", "..") else quote(os.fsencode(part)) for part in path.split("/")]
        if not path:
            raise ValueError("the path is empty; use '.' for /work")
        return f"{self._path}/{'/'.join(parts)}"


def _open_file(path: Path) -> BinaryIO:
    return path.open("rb")


def _pieces(file: IO[bytes]) -> Generator[bytes, None, None]:
    while piece := file.read(_PIECE_BYTES):
        yield piece
