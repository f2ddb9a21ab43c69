"""Measures a data folder by kind: the number of files and their disk space, within a bounded time."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from belljar.data_dir import DataDir
from belljar.settings.storage import StorageSettings
from belljar.system.removal import Extent

#: Kinds in the order of display.
KINDS = (
    "jobs' logs",
    "artifacts",
    "stdin",
    "scripts",
    "database",
    "backups",
    "snapshots",
    "images",
    "layers",
    "caches",
    "run",
    "other",
)
_LOOK_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Files and bytes by kind. `complete` is False when the time was over before all files were measured."""

    kinds: dict[str, Extent]
    complete: bool

    @property
    def total(self) -> Extent:
        return sum(self.kinds.values(), Extent())


def measure_sizes(settings: StorageSettings, seconds: float = _LOOK_SECONDS) -> Sizes:
    """Measure the readable files of the data folder. Blocks for about `seconds` at most.

    Blobs in an object store are not counted: listing them all may take hours, and costs money.
    """
    deadline = time.monotonic() + seconds
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    tops = [settings.data_dir]
    blobs = settings.paths.blobs
    if settings.blobs_url is not None and settings.blobs_url.startswith("file://"):
        blobs = Path(settings.blobs_url.removeprefix("file://"))
        tops.append(blobs)
    folders = _folder_kinds(settings.paths)
    complete = True
    for top in tops:
        for number, entry in enumerate(_files(top)):
            if number % 256 == 0 and time.monotonic() > deadline:
                complete = False
                break
            try:
                taken = entry.stat(follow_symlinks=False).st_blocks * 512
            except OSError:
                continue
            count = counts[_kind(Path(entry.path), settings.paths, blobs, folders)]
            count[0] += 1
            count[1] += taken
    return Sizes(kinds={kind: Extent(*counts[kind]) for kind in KINDS}, complete=complete)


def _files(top: Path) -> Iterator[os.DirEntry[str]]:
    """Yield every file below, without following links or reading folders without permission."""
    folders = [str(top)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        yield entry
        except OSError:
            continue


def _folder_kinds(paths: DataDir) -> dict[str, str]:
    """Return the kinds of files in the data folder, by the name of the folder that they are in."""
    kinds = {paths.snapshots: "snapshots", paths.images: "images", paths.layers: "layers", paths.cache: "caches"}
    return {folder.name: kind for folder, kind in {**kinds, paths.run: "run"}.items()}


def _kind(path: Path, data_dir: DataDir, blobs: Path, folders: dict[str, str]) -> str:
    if path.is_relative_to(blobs):
        return _blob_kind(path.relative_to(blobs).parts)
    parts = path.relative_to(data_dir.root).parts
    if len(parts) == 1 and parts[0].startswith("belljar.db"):
        return "backups" if ".backup-" in parts[0] else "database"
    return folders.get(parts[0], "other")


def _blob_kind(parts: tuple[str, ...]) -> str:
    if parts[0] == "scripts":
        return "scripts"
    if parts[0] != "jobs" or len(parts) < 3:
        return "other"
    return {"log": "jobs' logs", "stdin": "stdin", "artifacts": "artifacts"}.get(parts[2], "other")
