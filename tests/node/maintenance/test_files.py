"""Files of a node that were not used for long are removed, by kind; files in use are kept."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

from belljar.system.temp_folders import temp_folder
from support.data_folder import Folder
from support.old_files import old_file, set_age


def snapshot(folder: Folder, name: str, days: float) -> Path:
    path = folder.path / "snapshots" / name
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    old_file(path / "snapshot.json", 0, json.dumps({"boot": boot, "format": 1}).encode())
    old_file(path / "memory", 0, bytes(8192))
    set_age(path, days)
    return path


async def test_snapshots_that_were_not_cloned_lately_are_removed(folder: Folder) -> None:
    old, young = snapshot(folder, "old", 31), snapshot(folder, "young", 29)
    removed = (await folder.sweep())["snapshots"].result.removed
    assert removed.count == 1 and removed.size_bytes >= 8192
    assert not old.exists() and young.exists()
    await folder.sweep(keep_unused_snapshots_days=0)
    assert young.exists()


async def test_unused_packages_are_removed_with_their_notes(folder: Folder) -> None:
    layers = folder.path / "layers"
    old, young = old_file(layers / "old.erofs", 31), old_file(layers / "young.erofs", 29)
    joined = old_file(layers / "laid/script-old.erofs", 31)
    notes = [old_file(layers / "wanted" / name, 99, name.encode()) for name in ("old", "young")]
    old_file(layers / "old.json", 31)
    assert (await folder.sweep())["layers"].result.removed.count == 2
    assert [path.exists() for path in (old, joined, young)] == [False, False, True]
    assert [path.exists() for path in notes] == [False, True]
    assert not (layers / "old.json").exists()


async def test_the_build_cache_is_removed_unless_an_image_is_being_built(folder: Folder) -> None:
    cache = folder.path / "cache"
    old, young = old_file(cache / "apt/bookworm/debs/a.deb", 31), old_file(cache / "apt/bookworm/debs/b.deb", 1)
    killed = old_file(cache / "build-x/root/file", 0)
    with (cache / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert (await folder.sweep())["build_cache"].result.removed.count == 0
        assert old.exists() and killed.exists()
    assert (await folder.sweep())["build_cache"].result.removed.count == 2
    assert [path.exists() for path in (old, young, cache / "build-x")] == [False, True, False]


async def test_leftovers_are_removed_when_their_process_died(folder: Folder) -> None:
    run = folder.path / "run"
    old_file(run / "embedded/killed/file", 0)
    artifact, young = old_file(run / "artifacts/x.artifact", 3), old_file(run / "artifacts/y.artifact", 0)
    with temp_folder(run / "embedded") as mine:
        old_file(run / "embedded/killed/file", 0)
        old_file(mine / "file", 400)
        set_age(mine, 400)
        outcomes = await folder.sweep()
        assert (mine / "file").exists() and [path.name for path in (run / "embedded").iterdir()] == [mine.name]
    assert outcomes["leftovers"].result.removed.count == 2
    assert not artifact.exists() and young.exists()


async def test_an_end_that_was_not_reported_is_kept_for_thirty_days(folder: Folder) -> None:
    outcomes = folder.path / "run/outcomes"
    old, young = old_file(outcomes / "job_x.1", 31), old_file(outcomes / "job_y.1", 29)
    await folder.sweep()
    assert (old.exists(), young.exists()) == (False, True)
