"""LayerCache: found by requirements, named by content, and safe against hostile archives."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.model.errors import LayerBuildError
from belljar.packages.layers import InstallReport, LayerCache, LockedPackage, PackageLayer, PackageLock, read_report
from belljar.settings import Settings
from support.oci_layouts import archive, entry, folder

REPORT = InstallReport(
    path="/usr/local", at_start=False, packages=(LockedPackage(name="six", version="1.16"),), text="six==1.16\n"
)
LOCK = PackageLock(kind="pypi", root="0" * 64, installed=REPORT)
GOOD = archive(folder("lib"), entry("lib/six.py", b"x"))


@pytest.fixture
def layers(tmp_path: Path) -> LayerCache:
    return LayerCache(Settings(data_dir=tmp_path / "data", max_layer_mb=1, layer_disk_mb=1))


async def store(layers: LayerCache, key: str, data: bytes, lock: PackageLock = LOCK) -> PackageLayer:
    async with layers.build_folder(key) as work:
        assert work is not None
        (work / "layer.tar").write_bytes(data)
        return await layers.store(key, lock, work / "layer.tar", work)


def age(path: Path) -> None:
    long_ago = time.time() - 100_000
    os.utime(path, (long_ago, long_ago))


@pytest.mark.process
async def test_a_layer_is_found_by_its_requirements_and_image(layers: LayerCache) -> None:
    key = layers.key("requirements", LOCK.root)
    assert layers.find(key) is None
    stored = await store(layers, key, GOOD)
    assert layers.find(key) == stored and stored.disk.stat().st_size % 4096 == 0
    assert layers.key("requirements", "1" * 64) != key != layers.key("other", LOCK.root)
    assert [*(layers.folder / "building").iterdir()] == []


@pytest.mark.process
async def test_equal_results_share_a_layer_and_a_false_report_does_not(layers: LayerCache) -> None:
    one, two = await store(layers, "one", GOOD), await store(layers, "two", GOOD)
    assert one.disk == two.disk
    other = await store(layers, "three", archive(folder("lib"), entry("lib/six.py", b"malicious")))
    assert other.lock == one.lock and other.disk != one.disk
    assert layers.find("one") == one


@pytest.mark.process
@pytest.mark.parametrize(
    "data",
    [
        archive(entry("../x", b"1")),
        archive(entry("/etc/x", b"1")),
        archive(entry("big", bytes(3 << 20))),
        b"no archive",
    ],
)
async def test_a_hostile_archive_stores_nothing(layers: LayerCache, data: bytes) -> None:
    with pytest.raises(LayerBuildError):
        await store(layers, "k", data)
    assert layers.find("k") is None
    assert [path for path in layers.folder.rglob("*") if path.is_file()] == []


@pytest.mark.process
async def test_least_recently_used_layers_are_evicted_and_recent_ones_stay(layers: LayerCache) -> None:
    old = await store(layers, "old", archive(entry("a", bytes(700_000))))
    age(old.disk)
    new = await store(layers, "new", archive(entry("b", bytes(700_000))))
    assert layers.find("old") is None and layers.find("new") == new
    assert not old.disk.exists() and not (layers.folder / "wanted/old").exists()
    newer = await store(layers, "newer", archive(entry("c", bytes(700_000))))
    assert layers.find("new") == new and layers.find("newer") == newer  # over the budget, and in use


@pytest.mark.process
async def test_a_script_and_its_layer_are_concatenated_to_one_disk(layers: LayerCache, tmp_path: Path) -> None:
    layer = await store(layers, "k", GOOD)
    script = tmp_path / "script.erofs"
    script.write_bytes(b"s" * 8192)
    disk = layers.concatenate("f" * 64, script, layer)
    assert disk.read_bytes() == b"s" * 8192 + layer.disk.read_bytes()
    assert layers.concatenate("f" * 64, tmp_path / "not read again", layer) == disk
    assert layers.concatenate("e" * 64, script, layer) != disk


async def test_one_process_builds_at_a_time_and_folders_of_killed_ones_are_removed(layers: LayerCache) -> None:
    async with (
        layers.build_folder("k") as work,
        layers.build_folder("k") as second,
        layers.build_folder("other") as other,
    ):
        assert work is not None and other is not None and second is None
    left = layers.folder / "building/k"
    (left / "out").mkdir(parents=True)
    await layers.remove_stale()
    assert [*(layers.folder / "building").iterdir()] == []


async def test_an_incomplete_layer_is_not_found(layers: LayerCache) -> None:
    (layers.folder / "wanted").mkdir(parents=True)
    (layers.folder / "wanted/k").write_text("d" * 64)
    assert layers.find("k") is None
    (layers.folder / f"{'d' * 64}.json").write_text("{")
    assert layers.find("k") is None
    (layers.folder / f"{'d' * 64}.json").write_text(LOCK.model_dump_json())
    assert layers.find("k") is None


FIELDS = {"path": "/usr/local", "at_start": False, "packages": [], "text": ""}


@pytest.mark.parametrize(
    "report",
    [
        b"",
        b"[]",
        json.dumps({**FIELDS, "more": 1}).encode(),
        *(
            json.dumps({**FIELDS, "path": path}).encode()
            for path in ("", "/", "usr", "/a/../b", "/a,b", "/a:b", "/a/\n")
        ),
        json.dumps({**FIELDS, "packages": [{"name": "x y", "version": "1"}]}).encode(),
        json.dumps({**FIELDS, "packages": [{"name": "x", "version": "1"}] * 3000}).encode(),
        b" " * (5 << 20),
    ],
)
def test_an_invalid_report_is_refused(tmp_path: Path, report: bytes) -> None:
    (tmp_path / "report.json").write_bytes(report)
    with pytest.raises(LayerBuildError):
        read_report(tmp_path / "report.json")


@given(st.text(max_size=50))
def test_a_reported_path_is_safe_in_mount_options(path: str) -> None:
    try:
        InstallReport(path=path, at_start=False, packages=(), text="")
    except ValueError:
        return
    assert path.startswith("/") and not set(path) & set(",:\\\n ") and ".." not in path.split("/")
