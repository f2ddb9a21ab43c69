"""The cache of package layers: filesystems with the installed packages of a requirement set, shared by all jobs.

In the data folder `layers/DIGEST.erofs` is a read-only filesystem, `layers/DIGEST.json` its lock; `layers/wanted/KEY`
contains the digest of the layer for a requirement set on an image, so that only the first job resolves versions. A
layer's digest covers its content and its lock: a malicious build can only poison the cache entry for its own
requirement set. The entry is written last and atomically, so an interrupted build leaves none.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from belljar.images.erofs import EPOCH, mkfs_command, pack_archive
from belljar.images.image_blobs import file_sha256
from belljar.model.errors import ImageBuildError, InvalidImage, LayerBuildError
from belljar.model.value import Value
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from belljar.system.atomic_write import atomic_path, atomic_write
from belljar.system.file_locks import try_lock

#: Differs from the images' time: an interpreter that read a folder before the layer was mounted over it must see a
#: change (importlib's FileFinder compares times).
LAYER_TIME = EPOCH + 86_400
_MAX_FILES = 200_000
_MAX_REPORT_BYTES = 4 << 20
#: A machine may be about to open a disk that was used this recently, so it is not evicted.
_IN_USE_SECONDS = 600
#: Sizes of disks are multiples of this.
_BLOCK_BYTES = 4096
_MB = 1024 * 1024


class LockedPackage(Value):
    """The name and version of an installed package."""

    name: str = Field(pattern=r"^(@[A-Za-z0-9._~-]{1,100}/)?[A-Za-z0-9._~-]{1,200}$")
    version: str = Field(pattern=r"^[A-Za-z0-9._+!-]{1,200}$")


class InstallReport(Value):
    """A builder machine's report of the installed packages, validated strictly and never trusted."""

    #: The folder that the layer is mounted over, a path in machines and never on a host.
    path: str = Field(pattern=r"^(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*){1,12}$", max_length=200)
    #: Whether the layer must be mounted before its interpreter starts, which reads some of the files only then.
    at_start: bool
    packages: tuple[LockedPackage, ...] = Field(max_length=2000)
    #: The lock file: names, versions and digests of all acceptable files, in pip's format.
    text: str = Field(max_length=2_000_000)


class PackageLock(Value):
    """The result of resolving a requirement set on an image."""

    kind: str
    #: sha256 of the image's root filesystem: a layer is for one interpreter and one libc.
    root: str
    installed: InstallReport

    def digest(self, archive_sha256: str) -> str:
        """Return the digest that names the layer of this lock and content."""
        return hashlib.sha256(f"{self.model_dump_json()} {archive_sha256}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageLayer:
    """A layer on this host; `disk` is its filesystem."""

    digest: str
    lock: PackageLock
    disk: Path


def read_report(path: Path) -> InstallReport:
    """Read a builder's report. Raises LayerBuildError when it is invalid or too large."""
    if path.stat().st_size <= _MAX_REPORT_BYTES:
        try:
            return InstallReport.model_validate_json(path.read_bytes())
        except ValidationError:
            pass
    raise LayerBuildError("the builder's report of installed packages is invalid")


class LayerCache:
    """The layers of a data folder, which several processes may share."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.paths.layers
        self._entries = self.folder / "wanted"
        self._building = self.folder / "building"
        #: Disks with a script and a layer.
        self._script_disks = self.folder / "laid"
        self._logs = settings.paths.build_logs
        self._space = disk_space_of(settings)
        self._max_bytes = settings.layer_disk_mb * _MB
        self._max_layer_bytes = settings.max_layer_mb * _MB

    def key(self, dependencies_key: str, rootfs_sha256: str) -> str:
        """Return the cache key of a requirement set (`Dependencies.key`) on an image's root filesystem."""
        return hashlib.sha256(f"{dependencies_key} {rootfs_sha256}".encode()).hexdigest()

    def find(self, key: str) -> PackageLayer | None:
        """Return the layer of this key and mark it as used, None when there is none."""
        try:
            digest = (self._entries / key).read_text()
            lock = PackageLock.model_validate_json((self.folder / f"{digest}.json").read_text())
            disk = self.folder / f"{digest}.erofs"
            os.utime(disk)
        except (FileNotFoundError, ValidationError, ValueError):
            return None
        return PackageLayer(digest=digest, lock=lock, disk=disk)

    @asynccontextmanager
    async def build_folder(self, key: str) -> AsyncIterator[Path | None]:
        """Yield an empty folder for building the layer of this key, None while another task or process builds it.

        The folder is removed when the block ends. The kernel drops the lock of a process that dies.
        """
        self._building.mkdir(parents=True, exist_ok=True, mode=0o700)
        with try_lock(self._building / f"{key}.lock") as acquired:
            if not acquired:
                yield None
                return
            work = self._building / key
            await _remove(work)
            work.mkdir(mode=0o700)
            try:
                yield work
            finally:
                await asyncio.shield(_remove(work))
                (self._building / f"{key}.lock").unlink(missing_ok=True)

    async def store(self, key: str, lock: PackageLock, archive: Path, work: Path) -> PackageLayer:
        """Pack a builder's tar archive and add it under this key; `work` is a folder for temporary files.

        Raises LayerBuildError for an archive that is hostile or over the limits, DiskFull; then nothing is stored.
        """
        sha256 = await asyncio.to_thread(file_sha256, archive)
        digest = lock.digest(sha256)
        disk = self.folder / f"{digest}.erofs"
        if not disk.exists():
            self._space.require_bytes(2 * archive.stat().st_size, "unpacking and packing the installed packages")
            packed = await self._pack(archive, sha256, work)
            packed.chmod(0o444)
            packed.replace(disk)
        self._entries.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write(self.folder / f"{digest}.json", lock.model_dump_json())
        atomic_write(self._entries / key, digest)
        await asyncio.to_thread(self.evict)
        return PackageLayer(digest=digest, lock=lock, disk=disk)

    def concatenate(self, script_id: str, script_disk: Path, layer: PackageLayer) -> Path:
        """Return a disk with the script's filesystem and the layer behind it, created once; blocks. Raises OSError."""
        self._script_disks.mkdir(parents=True, exist_ok=True, mode=0o700)
        disk = self._script_disks / f"{script_id[:32]}-{layer.digest[:32]}.erofs"
        if not disk.exists():
            with atomic_path(disk) as part, part.open("xb") as out:
                for source in (script_disk, layer.disk):
                    _append(out.fileno(), source)
            self.evict()
        os.utime(disk)
        return disk

    def evict(self) -> int:
        """Delete the least recently used disks until the rest fits `layer_disk_mb`; return the freed bytes."""
        disks = list(_stats((*self.folder.glob("*.erofs"), *self._script_disks.glob("*.erofs"))))
        kept_bytes = freed_bytes = 0
        for status, disk in sorted(disks, key=lambda pair: pair[0].st_mtime, reverse=True):
            if kept_bytes + status.st_size <= self._max_bytes or time.time() - status.st_mtime < _IN_USE_SECONDS:
                kept_bytes += status.st_size
                continue
            disk.unlink(missing_ok=True)
            disk.with_suffix(".json").unlink(missing_ok=True)
            freed_bytes += status.st_size
        if freed_bytes:
            self._remove_dangling_entries()
        return freed_bytes

    async def remove_stale(self) -> None:
        """Remove the build folders and partial disks of processes that died."""
        for work in self._building.glob("*/"):
            async with self.build_folder(work.name):
                pass
        oldest = time.time() - _IN_USE_SECONDS
        for part in self._script_disks.glob(".*.part"):
            if part.stat().st_mtime < oldest:
                part.unlink(missing_ok=True)

    def _remove_dangling_entries(self) -> None:
        for entry in self._entries.glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):  # deleted by another process meanwhile
                if not (self.folder / f"{entry.read_text()}.erofs").exists():
                    entry.unlink()

    async def _pack(self, archive: Path, sha256: str, work: Path) -> Path:
        out = work / "layer.erofs"
        try:
            await pack_archive(
                archive,
                sha256,
                out,
                work=work,
                mkfs=(*mkfs_command(LAYER_TIME), "--all-root"),
                epoch=LAYER_TIME,
                max_bytes=2 * self._max_layer_bytes,
                max_files=_MAX_FILES,
                log=self._logs / "layers.log",
            )
        except InvalidImage as error:
            raise LayerBuildError(f"the archive of installed packages is refused: {error.message}") from None
        except ImageBuildError:
            raise LayerBuildError("the archive of installed packages cannot be unpacked") from None
        os.truncate(out, -(-out.stat().st_size // _BLOCK_BYTES) * _BLOCK_BYTES)
        return out


async def _remove(folder: Path) -> None:
    """Remove a folder in a thread, because it may have many files."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _stats(paths: Iterable[Path]) -> Iterator[tuple[os.stat_result, Path]]:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # deleted by another process meanwhile
            yield path.stat(), path


def _append(out: int, source: Path) -> None:
    with source.open("rb") as file:
        offset = 0
        while sent := os.sendfile(out, file.fileno(), offset, 1 << 30):
            offset += sent
