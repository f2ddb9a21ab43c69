"""The frozen machines on this node's disk: written once, read with every piece verified, removed by reference.

    DATA_DIR/frozen/PROJECT/ID.manifest     the list of pieces; a frozen machine exists once this does
    DATA_DIR/frozen/PROJECT/ID.pack         the pieces that this freezing added

A pack is removed when no manifest names it any more, so what a killed process leaves is a pack without a name. The
files hold the memory of a tenant's machine: they are in folders of this user alone, apart for each project, and pieces
are never shared between projects. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import structlog

from belljar.model.sandbox_errors import SnapshotUnusable
from belljar.node.frozen.manifest import PIECE_BYTES, Manifest, Part, Piece, is_frozen_id, parse_manifest
from belljar.node.frozen.pack import PackWriter
from belljar.node.frozen.protocol import PartSource
from belljar.system.atomic_write import atomic_path
from belljar.system.disk_space import DiskSpace
from belljar.system.host_errors import disk_full_errors

log = structlog.get_logger()

#: Verifying is hashing, which Python does without its lock: two processors are twice as quick.
_READERS = 2
_MAX_MANIFEST_BYTES = 1 << 28
#: The packs of one frozen machine may have this much more than its pieces, twofold, before all is written anew.
_WASTE_BYTES = 64 << 20


class FrozenStore:
    """The frozen machines of one data folder. Safe for use by several threads of one process."""

    def __init__(self, folder: Path, disk: DiskSpace | None = None) -> None:
        """`disk`: what is asked for room while pieces are written."""
        self._folder = folder
        self._disk = disk
        self._lock = threading.Lock()
        #: Packs that are being written, or that such a writing builds on.
        self._in_use: Counter[Path] = Counter()
        #: Frozen machines that the control plane is yet to be told of.
        self._unreported: set[str] = set()

    # --- writing ----------------------------------------------------------------------------------------------------

    def write(
        self,
        project: str,
        frozen_id: str,
        about: Mapping[str, Any],
        sources: Collection[PartSource],
        base: Manifest | None = None,
        *,
        is_stopped: Callable[[], bool] = lambda: False,
    ) -> Manifest:
        """Write a frozen machine; what it has in common with `base`, which it was started from, is not written again.

        It exists, whatever happens to this host, once this returns. When `is_stopped` returns True, or an error is
        raised, nothing is left of it. Raises DiskFull, HostError, OSError, SnapshotUnusable, InterruptedError.
        """
        folder = self._project(project)
        packs = {folder / f"{name}.pack" for name in (frozen_id, *(base.packs() if base is not None else ()))}
        with self._using(folder, packs), disk_full_errors("keep a frozen sandbox"):
            pack = folder / f"{frozen_id}.pack"
            try:
                with PackWriter(pack, frozen_id, self._disk) as writer:
                    rewritten = base if base is not None and self._wastes(folder, base) else None
                    parts = {}
                    for source in sources:
                        pieces = _until_stopped(source.pieces(changed_only=_fits(base, source)), is_stopped)
                        parts[source.name] = self._write_part(folder, writer, source, pieces, base, rewritten)
                manifest = Manifest(id=frozen_id, about=dict(about), parts=parts)
                with self._lock:
                    self._commit(folder, manifest)
            except BaseException:
                pack.unlink(missing_ok=True)
                raise
        return manifest

    def _write_part(
        self,
        folder: Path,
        writer: PackWriter,
        source: PartSource,
        contents: Iterator[tuple[int, bytes | None]],
        base: Manifest | None,
        rewritten: Manifest | None,
    ) -> Part:
        old = base.parts[source.name].pieces if base is not None and _fits(base, source) else {}
        pieces: dict[int, Piece] = {}
        for index, data in contents:
            known = old.get(index)
            if data is None:
                if known is None:
                    continue  # zeros before and now
                if rewritten is None:
                    pieces[index] = known
                    continue
                data = self._read(folder, rewritten, known, rewritten.parts[source.name].length(index))
            piece = writer.add(data, known if rewritten is None else None)
            if piece is not None:
                pieces[index] = piece
        return Part(size=source.size, pieces=pieces)

    def _wastes(self, folder: Path, base: Manifest) -> bool:
        """Return whether the packs of `base` have far more than its pieces, which no removal would free."""
        sizes = [status.st_size for pack in base.packs() if (status := _status(folder / f"{pack}.pack")) is not None]
        return sum(sizes) > 2 * base.stored_bytes() + _WASTE_BYTES

    def _commit(self, folder: Path, manifest: Manifest) -> None:
        with atomic_path(folder / f"{manifest.id}.manifest", durable=True) as part:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(manifest.encode())

    # --- reading ----------------------------------------------------------------------------------------------------

    def open(self, project: str, frozen_id: str) -> Manifest:
        """Return the manifest of a frozen machine. Raises SnapshotUnusable, also when it is not there."""
        if not is_frozen_id(frozen_id):
            raise SnapshotUnusable(f"{frozen_id[:60]!r} is no snapshot's id")
        path = self._project(project) / f"{frozen_id}.manifest"
        try:
            if path.stat().st_size > _MAX_MANIFEST_BYTES:
                raise SnapshotUnusable(f"the list of pieces of the snapshot {frozen_id} is too long; delete it")
            data = path.read_bytes()
        except OSError as error:
            raise SnapshotUnusable(f"the snapshot {frozen_id} is not on this node: {error.strerror}") from None
        manifest = parse_manifest(data)
        if manifest.id != frozen_id:
            raise SnapshotUnusable(f"the snapshot {frozen_id} has the contents of another; delete it")
        return manifest

    def copy_part(self, project: str, manifest: Manifest, name: str, target: int) -> None:
        """Write a part's contents to an empty file by its descriptor, with holes for zeros.

        Raises SnapshotUnusable when a piece is missing, truncated or altered; OSError.
        """
        part, folder = _part(manifest, name), self._project(project)
        os.ftruncate(target, part.size)

        def copy(entries: Collection[tuple[int, Piece]], opened: Mapping[str, int]) -> None:
            for index, piece in entries:
                data = _verified(opened[piece.pack], piece, part.length(index), manifest.id)
                written = os.pwrite(target, data, index * PIECE_BYTES)
                if written != len(data):
                    raise OSError(f"wrote {written} of {len(data)} bytes of a frozen machine's part")

        entries = list(part.pieces.items())
        with _opened(folder, manifest, {piece.pack for _, piece in entries}) as opened:
            if len(entries) < 2 * _READERS:
                copy(entries, opened)
                return
            with ThreadPoolExecutor(_READERS) as threads:
                for future in [threads.submit(copy, entries[n::_READERS], opened) for n in range(_READERS)]:
                    future.result()

    def read_part(self, project: str, manifest: Manifest, name: str) -> bytes:
        """Return a part's contents. Raises SnapshotUnusable."""
        part, folder = _part(manifest, name), self._project(project)
        data = bytearray(part.size)
        for index, piece in part.pieces.items():
            at, length = index * PIECE_BYTES, part.length(index)
            data[at : at + length] = self._read(folder, manifest, piece, length)
        return bytes(data)

    def _read(self, folder: Path, manifest: Manifest, piece: Piece, length: int) -> bytes:
        with _opened(folder, manifest, {piece.pack}) as opened:
            return _verified(opened[piece.pack], piece, length, manifest.id)

    # --- removal ----------------------------------------------------------------------------------------------------

    def ids(self, min_age_seconds: float = 0.0) -> list[str]:
        """Return the frozen machines that are at least so old."""
        newest = time.time() - min_age_seconds
        found = [path for path in self._folder.glob("*/*.manifest") if path.stem not in self._unreported]
        aged = ((path, _status(path)) for path in found if is_frozen_id(path.stem))
        return [path.stem for path, status in aged if status is not None and status.st_mtime <= newest]

    @contextlib.contextmanager
    def unreported(self, frozen_id: str) -> Iterator[None]:
        """Leave a frozen machine out of `ids` while the block runs, however long it takes to tell of it."""
        self._unreported.add(frozen_id)
        try:
            yield
        finally:
            self._unreported.discard(frozen_id)

    def manifests(self) -> Iterator[Manifest]:
        """Yield every manifest that can be read, one after the other: together they may not fit in memory."""
        for path in self._folder.glob("*/*.manifest"):
            with contextlib.suppress(OSError, SnapshotUnusable):
                yield parse_manifest(path.read_bytes())

    def remove(self, ids: Collection[str]) -> None:
        """Remove frozen machines, and the pieces that no other one has."""
        for frozen_id in ids:
            if is_frozen_id(frozen_id):
                for path in self._folder.glob(f"*/{frozen_id}.manifest"):
                    path.unlink(missing_ok=True)
        self.sweep()

    def sweep(self) -> None:
        """Remove every file that belongs to no frozen machine: of killed processes, and of removed ones."""
        for folder in self._folder.glob("*/"):
            with self._lock:
                try:
                    named = self._named_packs(folder)
                except OSError as error:  # no file is removed that a manifest may name
                    log.warning("frozen_not_swept", folder=folder.name, error=str(error))
                    continue
                for path in folder.iterdir():
                    if path.suffix != ".manifest" and path not in named and not self._in_use[path]:
                        path.unlink(missing_ok=True)
                if not any(path.parent == folder for path in self._in_use):
                    with contextlib.suppress(OSError):  # it is not empty
                        folder.rmdir()

    def _named_packs(self, folder: Path) -> set[Path]:
        """Return the packs that frozen machines need. Raises OSError when a manifest cannot be read now."""
        named = set()
        for path in folder.glob("*.manifest"):
            named.add(path.with_suffix(".pack"))
            try:
                named |= {folder / f"{pack}.pack" for pack in parse_manifest(path.read_bytes()).packs()}
            except SnapshotUnusable as error:
                log.warning("manifest_unreadable", snapshot=path.stem, error=str(error))
        return named

    # --- places -----------------------------------------------------------------------------------------------------

    def _project(self, project: str) -> Path:
        return self._folder / hashlib.sha256(project.encode()).hexdigest()[:32]

    @contextlib.contextmanager
    def _using(self, folder: Path, packs: Collection[Path]) -> Iterator[None]:
        """Keep the packs, and the folder, from being removed while the block runs."""
        with self._lock:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._in_use.update(packs)
        try:
            yield
        finally:
            with self._lock:
                self._in_use.subtract(packs)
                self._in_use += Counter()  # without those that are zero


def _part(manifest: Manifest, name: str) -> Part:
    part = manifest.parts.get(name)
    if part is None:
        raise SnapshotUnusable(f"the snapshot {manifest.id} has no {name}; delete it")
    return part


def _fits(base: Manifest | None, source: PartSource) -> bool:
    old = base.parts.get(source.name) if base is not None else None
    return old is not None and old.size == source.size


def _until_stopped(
    contents: Iterator[tuple[int, bytes | None]], is_stopped: Callable[[], bool]
) -> Iterator[tuple[int, bytes | None]]:
    for each in contents:
        if is_stopped():
            raise InterruptedError("the freezing was stopped")
        yield each


@contextlib.contextmanager
def _opened(folder: Path, manifest: Manifest, packs: Collection[str]) -> Iterator[dict[str, int]]:
    """Provide descriptors of packs. Raises SnapshotUnusable when one is missing."""
    opened: dict[str, int] = {}
    try:
        for pack in packs:
            try:
                opened[pack] = os.open(folder / f"{pack}.pack", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise SnapshotUnusable(f"pieces of the snapshot {manifest.id} are missing; delete it") from None
        yield opened
    finally:
        for descriptor in opened.values():
            os.close(descriptor)


def _verified(descriptor: int, piece: Piece, length: int, frozen_id: str) -> bytes:
    data = os.pread(descriptor, length, piece.offset)
    if len(data) != length or hashlib.sha256(data).digest() != piece.sha256:
        raise SnapshotUnusable(f"a piece of the snapshot {frozen_id} is truncated or altered; delete it")
    return data


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None
