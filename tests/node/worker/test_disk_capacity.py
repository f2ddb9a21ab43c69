"""What a node has left: disk is counted when it is promised."""

from __future__ import annotations

import shutil
from pathlib import Path

from belljar.model.job import Resources
from belljar.node.worker.capacity import Capacity, output_mb
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from support.job_queue import queued

MB = 1024 * 1024


def capacity(few_inodes: Path) -> Capacity:
    """A node on a disk of 8 MiB without a reserve."""
    settings = Settings(data_dir=few_inodes, min_free_disk_mb=0, min_free_inodes=0)
    return Capacity(vcpus=4, memory_mb=4000, disk=disk_space_of(settings))


def job(disk_mb: int | None) -> Resources:
    return Resources(vcpus=1, memory_mb=100, disk_mb=disk_mb)


def test_a_scratch_disk_counts_in_full_while_its_job_runs(few_inodes: Path) -> None:
    node = capacity(few_inodes)
    assert node.free_disk_mb() == 8
    node.hold("a", job(5))
    assert node.free_disk_mb() == 3
    node.hold("b", job(3))
    assert node.free_disk_mb() == 0
    node.hold("c", job(None), output_mb=1)
    assert node.free_disk_mb() is None
    for name in ("a", "b", "c"):
        node.release(name)
    assert node.free_disk_mb() == 8


def test_an_idle_node_takes_a_job_whose_output_may_be_larger_than_the_disk(few_inodes: Path) -> None:
    node = capacity(few_inodes)
    (few_inodes / "file").write_bytes(bytes(7 * MB))
    assert node.free_disk_mb() == 1
    node.hold("a", job(None), output_mb=288)
    assert node.free_disk_mb() is None
    node.release("a")
    assert node.free_disk_mb() == 1


def test_the_largest_disk_is_what_could_be_free_if_nothing_ran(few_inodes: Path) -> None:
    node = capacity(few_inodes)
    node.hold("a", job(5))
    (few_inodes / "scratch").write_bytes(bytes(5 * MB))
    assert node.largest().disk_mb == 8
    assert node.free_disk_mb() is None


def test_nothing_is_claimed_while_the_reserve_is_touched(few_inodes: Path) -> None:
    settings = Settings(data_dir=few_inodes, min_free_disk_percent=50)
    node = Capacity(vcpus=4, memory_mb=4000, disk=disk_space_of(settings))
    assert node.free_disk_mb() == 4
    (few_inodes / "file").write_bytes(bytes(5 * MB))
    assert node.free_disk_mb() is None
    (few_inodes / "file").unlink()
    assert node.free_disk_mb() == 4


def test_artifacts_count_only_for_jobs_that_collect_some() -> None:
    settings = Settings(max_output_mb=16, max_artifacts_mb=256)
    assert output_mb(queued(), settings) == 32
    assert output_mb(queued(artifacts=("*.txt",)), settings) == 288


def test_the_whole_disk_is_never_promised_by_default(tmp_path: Path) -> None:
    largest = Capacity.of_host(Settings(data_dir=tmp_path)).largest().disk_mb
    assert largest is not None and largest < shutil.disk_usage(tmp_path).free // MB
