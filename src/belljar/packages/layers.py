"""Layers: what was installed for a script, packed once, kept by what is in it, shared by all who ask for the same.

`layers/DIGEST.erofs` in the data folder is a read-only file system, `layers/DIGEST.json` its lock; `layers/wanted/KEY`
says which layer a wish came to on an image, so that the second job with the same wish resolves nothing. A layer's
digest covers its bytes as well as its lock: a builder machine that lies about what it installed lies to its own wish
alone. Nothing is believed before its note is written, last, by renaming.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, ValidationError

from belljar.images.oci.config import ImageConfig
from belljar.images.oci.unpack import OrderedLayer, UnpackRequest, UnpackResult
from belljar.images.rootfs import EPOCH, MKFS
from belljar.images.tool import call
from belljar.model.errors import ImageBuildError, LayerBuildError
from belljar.model.image import Value
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from belljar.system.atomic_write import atomic_path, atomic_write
from belljar.system.file_locks import try_lock

#: Not the images' own time: an interpreter that looked into a folder before the layer was laid over it must see that it
#: has changed (importlib's FileFinder compares times).
LAYER_TIME = EPOCH + 86_400
_MKFS = (*(word for word in MKFS if not word.startswith("-T")), f"-T{LAYER_TIME}", "--all-root")
_MAX_FILES = 200_000
_MAX_REPORT_BYTES = 4 << 20
_UNPACK_SECONDS = 600
#: A disk that was given to a job this lately may be about to be opened by its machine.
_IN_USE_SECONDS = 600
#: What the sizes of disks are multiples of.
_BLOCK_BYTES = 4096
_MB = 1024 * 1024


class Locked(Value):
    """One package as it was installed."""

    name: str = Field(pattern=r"^(@[A-Za-z0-9._~-]{1,100}/)?[A-Za-z0-9._~-]{1,200}$")
    version: str = Field(pattern=r"^[A-Za-z0-9._+!-]{1,200}$")


class Installed(Value):
    """What a builder machine says that it installed: its report, parsed strictly, and believed by nobody."""

    #: The folder that the layer is laid over. A path in machines, never on a host.
    path: str = Field(pattern=r"^(/[A-Za-z0-9_+-][A-Za-z0-9._+-]*){1,12}$", max_length=200)
    #: Whether its interpreter must start with the layer there: it holds what is read only then.
    at_start: bool
    packages: tuple[Locked, ...] = Field(max_length=2000)
    #: The lock: names, versions and digests of every file that would do, as pip reads them.
    text: str = Field(max_length=2_000_000)


class Lock(Value):
    """Everything that a wish came to."""

    kind: str
    #: sha256 of the image's root file system: a layer is for one interpreter and one libc.
    root: str
    installed: Installed

    def digest(self, archive_sha256: str) -> str:
        """The name of the layer of exactly this lock and content."""
        return hashlib.sha256(f"{self.model_dump_json()} {archive_sha256}".encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """A packed layer on this host."""

    digest: str
    lock: Lock
    disk: Path


def read_report(path: Path) -> Installed:
    """A builder's report. Raises LayerBuildError when it is none."""
    if path.stat().st_size <= _MAX_REPORT_BYTES:
        try:
            return Installed.model_validate_json(path.read_bytes())
        except ValidationError:
            pass
    raise LayerBuildError("the builder's report of what it installed cannot be read")


class Layers:
    """The layers of a data folder; several processes may share it."""

    def __init__(self, settings: Settings) -> None:
        self.folder = settings.paths.layers
        self._wanted = self.folder / "wanted"
        self._building = self.folder / "building"
        #: Scripts' disks with a layer behind the script.
        self._laid = self.folder / "laid"
        self._logs = settings.paths.build_logs
        self._space = disk_space_of(settings)
        self._max_bytes = settings.layer_disk_mb * _MB
        self._max_layer_bytes = settings.max_layer_mb * _MB

    def key(self, wish: str, root: str) -> str:
        """The name of a wish (a key of dependencies) on an image's root file system."""
        return hashlib.sha256(f"{wish} {root}".encode()).hexdigest()

    def find(self, key: str) -> Layer | None:
        """The layer that this wish came to, if it is there. Marks it used."""
        try:
            digest = (self._wanted / key).read_text()
            lock = Lock.model_validate_json((self.folder / f"{digest}.json").read_text())
            disk = self.folder / f"{digest}.erofs"
            os.utime(disk)
        except (FileNotFoundError, ValidationError, ValueError):
            return None
        return Layer(digest=digest, lock=lock, disk=disk)

    @asynccontextmanager
    async def building(self, key: str) -> AsyncIterator[Path | None]:
        """An empty folder to build this wish's layer in, gone with the block; None while another builds it.

        One holds it at a time, in whatever process; a killed one holds it no longer.
        """
        self._building.mkdir(parents=True, exist_ok=True, mode=0o700)
        with try_lock(self._building / f"{key}.lock") as mine:
            if not mine:
                yield None
                return
            work = self._building / key
            await _removed(work)
            work.mkdir(mode=0o700)
            try:
                yield work
            finally:
                await asyncio.shield(_removed(work))
                (self._building / f"{key}.lock").unlink(missing_ok=True)

    async def keep(self, key: str, lock: Lock, archive: Path, work: Path) -> Layer:
        """Pack a builder's archive (tar) and keep it, unless it is there already; `work` is the builder's folder.

        Raises LayerBuildError for an archive that is hostile or over the limits; then nothing is kept. DiskFull.
        """
        sha256 = await asyncio.to_thread(_sha256, archive)
        digest = lock.digest(sha256)
        disk = self.folder / f"{digest}.erofs"
        if not disk.exists():
            self._space.require_bytes(2 * archive.stat().st_size, "unpacking and packing what was installed")
            packed = await self._pack(archive, sha256, work)
            packed.chmod(0o444)
            packed.replace(disk)
        self._wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
        atomic_write(self.folder / f"{digest}.json", lock.model_dump_json())
        atomic_write(self._wanted / key, digest)
        await asyncio.to_thread(self.trim)
        return Layer(digest=digest, lock=lock, disk=disk)

    def lay(self, script_id: str, script_disk: Path, layer: Layer) -> Path:
        """One disk of a script and a layer behind it, made once. Blocks while it copies. Raises OSError."""
        self._laid.mkdir(parents=True, exist_ok=True, mode=0o700)
        disk = self._laid / f"{script_id[:32]}-{layer.digest[:32]}.erofs"
        if not disk.exists():
            with atomic_path(disk) as part, part.open("xb") as out:
                for source in (script_disk, layer.disk):
                    _append(out.fileno(), source)
            self.trim()
        os.utime(disk)
        return disk

    def trim(self) -> int:
        """Delete what was used longest ago until the rest fits `layer_disk_mb`; returns how many bytes that freed."""
        disks = list(_stats((*self.folder.glob("*.erofs"), *self._laid.glob("*.erofs"))))
        kept = freed = 0
        for about, disk in sorted(disks, key=lambda each: each[0].st_mtime, reverse=True):
            if kept + about.st_size <= self._max_bytes or time.time() - about.st_mtime < _IN_USE_SECONDS:
                kept += about.st_size
                continue
            disk.unlink(missing_ok=True)
            disk.with_suffix(".json").unlink(missing_ok=True)
            freed += about.st_size
        if freed:
            self._forget_unfulfilled()
        return freed

    async def clear(self) -> None:
        """Remove what a killed process left half-made: what nobody holds the lock of."""
        for work in self._building.glob("*/"):
            async with self.building(work.name):
                pass
        old = time.time() - _IN_USE_SECONDS
        for part in self._laid.glob(".*.part"):
            if part.stat().st_mtime < old:
                part.unlink(missing_ok=True)

    def _forget_unfulfilled(self) -> None:
        for note in self._wanted.glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):  # another deleted it meanwhile
                if not (self.folder / f"{note.read_text()}.erofs").exists():
                    note.unlink()

    async def _pack(self, archive: Path, sha256: str, work: Path) -> Path:
        tree, order, out = work / "tree", work / "order.json", work / "layer.erofs"
        tree.mkdir()
        tree.chmod(0o755)
        layer = OrderedLayer(sha256=sha256, size_bytes=archive.stat().st_size, path=str(archive), diff_id=sha256)
        order.write_text(
            UnpackRequest(
                layers=(layer,),
                wishes=ImageConfig(),
                known=(),
                tree=str(tree),
                out=str(out),
                max_bytes=2 * self._max_layer_bytes,
                max_files=_MAX_FILES,
                mkfs=_MKFS,
                epoch=LAYER_TIME,
                is_image=False,
            ).model_dump_json()
        )
        command: Sequence[str] = [sys.executable, "-P", "-m", "belljar.images.oci.unpack", str(order)]
        try:
            answer = await call(command, log=self._logs / "layers.log", timeout_seconds=_UNPACK_SECONDS, cwd=work)
            found = UnpackResult.model_validate_json(answer)
        except (ImageBuildError, ValidationError):
            raise LayerBuildError("what the builder installed could not be unpacked") from None
        if found.error is not None:
            raise LayerBuildError(f"what the builder installed cannot be taken: {found.error}")
        os.truncate(out, -(-out.stat().st_size // _BLOCK_BYTES) * _BLOCK_BYTES)
        return out


async def _removed(folder: Path) -> None:
    """Many files: not while everybody waits."""
    await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stats(paths: Iterable[Path]) -> Iterator[tuple[os.stat_result, Path]]:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # another deleted it meanwhile
            yield path.stat(), path


def _append(out: int, source: Path) -> None:
    with source.open("rb") as file:
        at = 0
        while sent := os.sendfile(out, file.fileno(), at, 1 << 30):
            at += sent
