"""Layers: what was installed for a script, packed once, kept by what was locked, shared by all that lock the same.

`layers/DIGEST.erofs` is a layer, `layers/DIGEST.json` its lock; `layers/wanted/KEY` says which lock a wish came to on
an image, so that the second job with the same wish resolves nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from belljar.errors import LayerBuildError
from belljar.images.manifest import Value
from belljar.images.oci.unpack import Found, Order, OrderedLayer
from belljar.images.oci.wishes import Wishes
from belljar.images.rootfs import EPOCH, MKFS
from belljar.images.tool import call

_MB = 1024 * 1024
_UNPACK_SECONDS = 600


class Locked(Value):
    """One package as it was installed."""

    name: str = Field(max_length=200)
    version: str = Field(max_length=200)
    #: Of the archive that it was installed from; empty where the index gave none.
    sha256: str = Field(default="", max_length=64)


class Lock(Value):
    """Everything that a wish came to, in order of names."""

    kind: str
    #: sha256 of the image's root file system: a layer is for one interpreter and one libc.
    root: str
    packages: tuple[Locked, ...] = Field(max_length=2000)

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A packed layer on this host."""

    lock: Lock
    disk: Path


def read_lock(report: bytes, kind: str, root: str) -> Lock:
    """The lock in pip's installation report, which a builder machine wrote and nobody believes.

    Raises LayerBuildError when it is none. Source: pip's documentation, installation report.
    """
    try:
        found = [
            Locked(
                name=each["metadata"]["name"],
                version=each["metadata"]["version"],
                sha256=each.get("download_info", {}).get("archive_info", {}).get("hashes", {}).get("sha256", ""),
            )
            for each in json.loads(report)["install"]
        ]
        return Lock(kind=kind, root=root, packages=tuple(sorted(found, key=lambda each: (each.name, each.version))))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise LayerBuildError("the builder's report of what it installed cannot be read") from None


class Layers:
    """The layers of a data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.folder = data_dir / "layers"
        self._wanted = self.folder / "wanted"
        self._logs = data_dir / "cache" / "logs"

    def find(self, wish: str, root: str) -> Layer | None:
        """The layer that this wish (a key of dependencies) came to on this root, if it is there. Marks it used."""
        try:
            digest = self._note(wish, root).read_text()
            lock = Lock.model_validate_json((self.folder / f"{digest}.json").read_text())
            os.utime(self.folder / f"{digest}.erofs")
        except (FileNotFoundError, ValidationError):
            return None
        return Layer(lock=lock, disk=self.folder / f"{digest}.erofs")

    async def keep(self, wish: str, lock: Lock, archive: Path, *, max_bytes: int, max_files: int) -> Layer:
        """Pack a builder's archive (tar) and keep it under its lock, unless that is there already.

        Raises LayerBuildError for an archive that is hostile or over the limits; then nothing is kept. DiskFull.
        """
        disk = self.folder / f"{lock.digest}.erofs"
        if not disk.exists():
            self._wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
            with tempfile.TemporaryDirectory(prefix=".layer-", dir=self.folder) as work:
                await self._pack(archive, Path(work), max_bytes=max_bytes, max_files=max_files)
                (Path(work) / "disk").chmod(0o444)
                (Path(work) / "disk").replace(disk)
        (self.folder / f"{lock.digest}.json").write_text(lock.model_dump_json())
        self._note(wish, lock.root).write_text(lock.digest)
        return Layer(lock=lock, disk=disk)

    def trim(self, max_bytes: int) -> int:
        """Delete the layers used longest ago until the rest fits; returns how many bytes that freed."""
        disks = sorted(self.folder.glob("*.erofs"), key=lambda path: path.stat().st_mtime, reverse=True)
        kept = freed = 0
        for disk in disks:
            size = disk.stat().st_size
            if kept + size <= max_bytes:
                kept += size
                continue
            disk.unlink()
            disk.with_suffix(".json").unlink(missing_ok=True)
            freed += size
        return freed

    async def _pack(self, archive: Path, work: Path, *, max_bytes: int, max_files: int) -> None:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        tree, order = work / "tree", work / "order.json"
        tree.mkdir()
        layer = OrderedLayer(sha256=digest, size_bytes=archive.stat().st_size, path=str(archive), diff_id=digest)
        order.write_text(
            Order(
                layers=(layer,),
                wishes=Wishes(),
                known=(),
                tree=str(tree),
                out=str(work / "disk"),
                max_bytes=max_bytes,
                max_files=max_files,
                mkfs=(*MKFS, "--all-root"),
                epoch=EPOCH,
                is_image=False,
            ).model_dump_json()
        )
        command: Sequence[str] = [sys.executable, "-m", "belljar.images.oci.unpack", str(order)]
        answer = await call(command, log=self._logs / "layers.log", timeout_seconds=_UNPACK_SECONDS, cwd=work)
        try:
            found = Found.model_validate_json(answer)
        except ValidationError:
            raise LayerBuildError("unpacking the layer gave no answer that can be read") from None
        if found.error is not None:
            raise LayerBuildError(found.error)

    def _note(self, wish: str, root: str) -> Path:
        return self._wanted / hashlib.sha256(f"{wish} {root}".encode()).hexdigest()
