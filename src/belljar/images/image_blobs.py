"""The files that images are made of, by digest: what disk they take, whether they are whole, which of them may go."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from belljar.data_dir import DataDir, private_folder
from belljar.model.errors import DamagedImage, DiskBudget
from belljar.settings.images import ImageSettings
from belljar.system.file_locks import try_lock

_MB = 1024 * 1024


class ImageBlobs:
    """The parts in a data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._paths = DataDir(data_dir)
        self.folder = self._paths.images
        self.parts = self.folder / "parts"
        self._digests = self._paths.digest_cache

    @contextlib.contextmanager
    def no_build_meanwhile(self) -> Iterator[bool]:
        """Hold builds of this data folder off, if none is under way: says which."""
        private_folder(self._paths.cache)
        with try_lock(self._paths.build_lock) as is_locked:
            yield is_locked

    def collect_parts(self, used: Iterable[str]) -> int:
        """Delete the parts that are not `used`; returns their bytes. A machine that runs keeps its own open."""
        kept, freed = set(used), 0
        for part in self.parts.glob("*"):
            if part.name not in kept:
                freed += part.stat().st_size
                part.unlink()
                (self._digests / part.name).unlink(missing_ok=True)
        return freed

    def verify_part(self, path: Path, sha256: str, image: str) -> None:
        """Raises DamagedImage unless the file has this digest; which is computed again only when the file changed."""
        identity = _identity(path)
        known = self._digests / sha256
        if known.is_file() and known.read_text() == identity:
            return
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise DamagedImage(
                f"the file {path} of the image {image} has changed since it was built; remove that file and build or "
                "import the image again"
            )
        self.remember_digest(path, sha256)

    def remember_digest(self, path: Path, sha256: str) -> None:
        """Note that the file was found to have this digest, as it is now."""
        with contextlib.suppress(OSError):  # only the next look's speed depends on it
            self._digests.mkdir(parents=True, exist_ok=True)
            (self._digests / sha256).write_text(_identity(path))

    def disk_bytes(self) -> int:
        """What images and the caches of building them take."""
        folders = (self.folder, self._paths.cache)
        return sum(path.lstat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())

    def make_room(self, size_bytes: int, settings: ImageSettings) -> None:
        """Raises DiskBudget when so much more is over `image_disk_mb`, even after cached packages were let go."""
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
                f"this needs {-(-over // _MB)} MB more than image_disk_mb allows ({settings.image_disk_mb}); remove an "
                "image (belljar image rm, belljar image gc) or raise the setting"
            )


def _identity(path: Path) -> str:
    """Return what changes whenever the file does. Its owner can put back size and mtime, but not the ctime (inode(7)).

    As root the ctime says nothing: machines have user ids that own no file, and Firecracker's are given hard links to
    this one, which change it.
    """
    about = path.stat()
    ctime_ns = about.st_ctime_ns if os.geteuid() != 0 else 0
    return f"{about.st_dev} {about.st_ino} {about.st_size} {about.st_mtime_ns} {ctime_ns}"
