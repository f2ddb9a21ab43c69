"""The cache of image parts by the inputs they were built from: small JSON notes beside the blobs."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from belljar.images.image_blobs import ImageBlobs, file_sha256
from belljar.images.rootfs_source import RootfsMetadata
from belljar.model.image import Part
from belljar.settings import Settings
from belljar.system.atomic_write import atomic_write


class PartCache:
    """Finds and adds parts in `blobs`, a data folder's parts; `inputs` are texts that determine a part's content.

    The kinds of parts are `kernel`, `initramfs` and `root`.
    """

    def __init__(self, settings: Settings, blobs: ImageBlobs) -> None:
        self._settings = settings
        self._blobs = blobs
        self._notes = settings.paths.build_notes

    def find(self, kind: str, inputs: list[str]) -> Part | None:
        """Return the part that was built from these inputs, None when it is not complete on this host."""
        note = self._note(kind, inputs)
        if not note.exists():
            return None
        part = Part.model_validate_json(note.read_text())
        if not (self._blobs.folder / part.sha256).is_file():
            return None
        return part if kind != "root" or self._metadata_note(inputs).exists() else None

    def metadata(self, inputs: list[str]) -> RootfsMetadata:
        """Return the metadata of the root filesystem of these inputs, which must be in the cache."""
        return RootfsMetadata.model_validate_json(self._metadata_note(inputs).read_text())

    async def add(
        self, kind: str, inputs: list[str], file: Path, origin: str, metadata: RootfsMetadata | None = None
    ) -> Part:
        """Move a built file into the blobs and record its inputs. Raises DiskBudget, OSError."""
        digest = await asyncio.to_thread(file_sha256, file)
        part = Part(sha256=digest, size_bytes=file.stat().st_size, origin=origin)
        self._blobs.make_room(part.size_bytes, self._settings)
        if metadata is not None:
            _write_note(self._metadata_note(inputs), metadata.model_dump_json())
        self._blobs.add(file, digest)
        _write_note(self._note(kind, inputs), part.model_dump_json())
        return part

    def _metadata_note(self, inputs: list[str]) -> Path:
        return self._note("facts", inputs)

    def _note(self, kind: str, inputs: list[str]) -> Path:
        return self._notes / f"{kind}-{hashlib.sha256(chr(0).join(inputs).encode()).hexdigest()[:32]}.json"


def _write_note(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text)
