"""The files of images, named by their digest: verify them, delete unused ones, and bound their disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from belljar.data_dir import DataDir, private_folder
from belljar.model.errors import DamagedImage, DiskBudget
from belljar.settings import Settings
from belljar.system.file_locks import try_lock

_MB = 1024 * 1024


class ImageBlobs:
    """The image files of a data folder, in `folder`; their digests are cached beside it."""

    def __init__(self, data_dir: Path) -> None:
        self._paths = DataDir(data_dir)
        self.folder = self._paths.images / "parts"
        self._digests = self._paths.digest_cache

    @contextlib.contextmanager
    def exclude_builds(self) -> Iterator[bool]:
        """Prevent builds of this data folder in the block; yield False at once when one is running."""
        private_folder(self._paths.cache)
        with try_lock(self._paths.build_lock) as is_locked:
            yield is_locked

    def add(self, file: Path, sha256: str) -> None:
        """Move a file with this digest into the folder and make it read-only. Raises OSError."""
        file.chmod(0o444)
        blob = self.folder / sha256
        file.replace(blob)
        self._cache_digest(blob, sha256)

    def delete_unused(self, used: Iterable[str]) -> int:
        """Delete the files whose digests are not `used`, and return their bytes. Machines keep theirs open."""
        used_digests, freed_bytes = set(used), 0
        for blob in self.folder.glob("*"):
            if blob.name not in used_digests:
                freed_bytes += blob.stat().st_size
                blob.unlink()
                (self._digests / blob.name).unlink(missing_ok=True)
        return freed_bytes

    def verify(self, path: Path, sha256: str, image: str) -> None:
        """Raise DamagedImage unless the file has this digest; read it only when it changed since the last time."""
        cached = self._digests / sha256
        if cached.is_file() and cached.read_text() == _identity(path):
            return
        if file_sha256(path) != sha256:
            raise DamagedImage(
                f"the file {path} of the image {image} has changed since it was built; remove that file and build or "
                "import the image again"
            )
        self._cache_digest(path, sha256)

    def _cache_digest(self, path: Path, sha256: str) -> None:
        with contextlib.suppress(OSError):  # without it the next verification only takes longer
            self._digests.mkdir(parents=True, exist_ok=True)
            (self._digests / sha256).write_text(_identity(path))

    def disk_bytes(self) -> int:
        """Return the disk that images and the build cache take."""
        folders = (self._paths.images, self._paths.cache)
        return sum(path.lstat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())

    def make_room(self, size_bytes: int, settings: Settings) -> None:
        """Delete cached packages until `size_bytes` more fit into `image_disk_mb`. Raises DiskBudget."""
        if settings.image_disk_mb is None:
            return
        over = self.disk_bytes() + size_bytes - settings.image_disk_mb * _MB
        debs = sorted(self._paths.apt_cache.glob("*/debs/*"), key=lambda path: path.stat().st_mtime)
        for path in debs:
            if over <= 0:
                break
            over -= path.stat().st_size
            path.unlink()
        if over > 0:
            raise DiskBudget(
                f"the image needs {-(-over // _MB)} MB more than image_disk_mb allows ({settings.image_disk_mb}); "
                "remove an image (belljar image rm, belljar image gc) or raise the setting"
            )


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _identity(path: Path) -> str:
    """Return a value that changes whenever the file does: its owner can reset size and mtime, not the ctime (inode(7)).

    As root the ctime is not used: machines have user ids that own no file, and the hard links that Firecracker's
    machines get change it.
    """
    status = path.stat()
    ctime_ns = status.st_ctime_ns if os.geteuid() != 0 else 0
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {ctime_ns}"
