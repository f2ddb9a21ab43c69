"""The watch over free disk and inodes, on real small file systems."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from belljar.model.errors import DiskFull
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from belljar.system.disk_space import MB, DiskSpace

KB = 1024


def watch(folder: Path, **settings: object) -> DiskSpace:
    return disk_space_of(Settings(data_dir=folder, **settings))  # type: ignore[arg-type]


def fill(folder: Path, leave_bytes: int) -> Path:
    """A file that takes all but so many bytes."""
    path = folder / "filler"
    path.write_bytes(bytes(shutil.disk_usage(folder).free - leave_bytes))
    return path


def test_the_reserve_is_the_smaller_of_size_and_share(small_disk: Path) -> None:
    assert watch(small_disk).data().reserve_bytes == int(256 * KB * 0.05)
    assert watch(small_disk, min_free_disk_mb=0).data().reserve_bytes == 0


def test_work_stops_before_the_disk_is_full_and_begins_again_by_itself(small_disk: Path) -> None:
    disk = watch(small_disk, min_free_disk_percent=25)
    disk.require()
    filler = fill(small_disk, 60 * KB)
    with capture_logs() as logs:
        with pytest.raises(DiskFull, match=r"0\.0586 MB are free, 0\.0625 MB are kept in reserve") as caught:
            disk.require()
        with pytest.raises(DiskFull):
            disk.require()
        filler.unlink()
        disk.require()
    assert str(small_disk) not in caught.value.message
    assert [entry["event"] for entry in logs] == ["disk_low", "disk_recovered"]
    assert (small_disk / "probe").write_bytes(bytes(32 * KB))  # there was room left to write


def test_admission_does_not_flap_at_the_edge(small_disk: Path) -> None:
    disk = watch(small_disk, min_free_disk_percent=25)  # 64 KiB; it resumes at 80
    filler = fill(small_disk, 60 * KB)
    assert disk.low() is not None
    filler.unlink()
    filler = fill(small_disk, 72 * KB)
    assert disk.low() is not None
    filler.unlink()
    fill(small_disk, 84 * KB)
    assert disk.low() is None


def test_inodes_run_out_as_well(few_inodes: Path) -> None:
    disk = watch(few_inodes, min_free_disk_percent=20)
    disk.require()
    for number in range(90):
        (few_inodes / str(number)).touch()
    with pytest.raises(DiskFull, match=r"\d files can still be made, 20 are kept in reserve"):
        disk.require()
    for number in range(90):
        (few_inodes / str(number)).unlink()
    disk.require()


def test_what_does_not_fit_above_the_reserve_is_refused_with_the_number(small_disk: Path) -> None:
    disk = watch(small_disk)
    disk.require_bytes(100 * KB, "a thing")
    with pytest.raises(DiskFull, match=r"a thing needs 1 MB of disk, and 0\.23\d MB can be used"):
        disk.require_bytes(MB, "a thing")


def test_each_file_system_is_watched_once(small_disk: Path, tmp_path: Path) -> None:
    assert len(watch(tmp_path).measure()) == 1
    there = watch(tmp_path / "not-made-yet", blobs_url=f"file://{small_disk}")
    assert len(there.measure()) == 2
    fill(small_disk, 4 * KB)
    short = there.low()
    assert short is not None and short.folder == small_disk
