"""Layers: found by what was wished, kept by what is in them, and nothing of what is hostile."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar.model.errors import LayerBuildError
from belljar.packages.layers import Installed, Layer, Layers, Lock, Locked, read_report
from belljar.settings import Settings
from support.oci_layouts import archive, entry, folder

INSTALLED = Installed(
    path="/usr/local", at_start=False, packages=(Locked(name="six", version="1.16"),), text="six==1.16\n"
)
LOCK = Lock(kind="pypi", root="0" * 64, installed=INSTALLED)
GOOD = archive(folder("lib"), entry("lib/six.py", b"x"))


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    return Layers(Settings(data_dir=tmp_path / "data", max_layer_mb=1, layer_disk_mb=1))


async def keep(layers: Layers, key: str, data: bytes, lock: Lock = LOCK) -> Layer:
    async with layers.building(key) as work:
        assert work is not None
        (work / "layer.tar").write_bytes(data)
        return await layers.keep(key, lock, work / "layer.tar", work)


def age(path: Path) -> None:
    long_ago = time.time() - 100_000
    os.utime(path, (long_ago, long_ago))


@pytest.mark.process
async def test_a_layer_is_found_by_what_was_wished_on_that_image(layers: Layers) -> None:
    key = layers.key("wish", LOCK.root)
    assert layers.find(key) is None
    kept = await keep(layers, key, GOOD)
    assert layers.find(key) == kept and kept.disk.stat().st_size % 4096 == 0
    assert layers.key("wish", "1" * 64) != key != layers.key("other", LOCK.root)
    assert [*(layers.folder / "building").iterdir()] == []


@pytest.mark.process
async def test_wishes_that_come_to_the_same_share_it_and_a_lie_about_the_lock_does_not(layers: Layers) -> None:
    one, two = await keep(layers, "one", GOOD), await keep(layers, "two", GOOD)
    assert one.disk == two.disk
    liar = await keep(layers, "three", archive(folder("lib"), entry("lib/six.py", b"evil")))
    assert liar.lock == one.lock and liar.disk != one.disk
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
async def test_a_hostile_archive_keeps_nothing(layers: Layers, data: bytes) -> None:
    with pytest.raises(LayerBuildError):
        await keep(layers, "k", data)
    assert layers.find("k") is None
    assert [path for path in layers.folder.rglob("*") if path.is_file()] == []


@pytest.mark.process
async def test_what_was_used_longest_ago_goes_first_and_what_was_used_just_now_stays(layers: Layers) -> None:
    old = await keep(layers, "old", archive(entry("a", bytes(700_000))))
    age(old.disk)
    new = await keep(layers, "new", archive(entry("b", bytes(700_000))))
    assert layers.find("old") is None and layers.find("new") == new
    assert not old.disk.exists() and not (layers.folder / "wanted/old").exists()
    newer = await keep(layers, "newer", archive(entry("c", bytes(700_000))))
    assert layers.find("new") == new and layers.find("newer") == newer  # over the budget, and in use


@pytest.mark.process
async def test_a_script_and_its_layer_lie_on_one_disk(layers: Layers, tmp_path: Path) -> None:
    layer = await keep(layers, "k", GOOD)
    script = tmp_path / "script.erofs"
    script.write_bytes(b"s" * 8192)
    disk = layers.lay("f" * 64, script, layer)
    assert disk.read_bytes() == b"s" * 8192 + layer.disk.read_bytes()
    assert layers.lay("f" * 64, tmp_path / "not read again", layer) == disk
    assert layers.lay("e" * 64, script, layer) != disk


async def test_one_builds_while_others_wait_and_a_killed_ones_folder_goes(layers: Layers) -> None:
    async with layers.building("k") as work, layers.building("k") as second, layers.building("other") as other:
        assert work is not None and other is not None and second is None
    left = layers.folder / "building/k"
    (left / "out").mkdir(parents=True)
    await layers.clear()
    assert [*(layers.folder / "building").iterdir()] == []


async def test_a_layer_whose_parts_are_not_all_there_is_none(layers: Layers) -> None:
    (layers.folder / "wanted").mkdir(parents=True)
    (layers.folder / "wanted/k").write_text("d" * 64)
    assert layers.find("k") is None
    (layers.folder / f"{'d' * 64}.json").write_text("{")
    assert layers.find("k") is None
    (layers.folder / f"{'d' * 64}.json").write_text(LOCK.model_dump_json())
    assert layers.find("k") is None


WORDS = {"path": "/usr/local", "at_start": False, "packages": [], "text": ""}


@pytest.mark.parametrize(
    "report",
    [
        b"",
        b"[]",
        json.dumps({**WORDS, "more": 1}).encode(),
        *(
            json.dumps({**WORDS, "path": path}).encode()
            for path in ("", "/", "usr", "/a/../b", "/a,b", "/a:b", "/a/\n")
        ),
        json.dumps({**WORDS, "packages": [{"name": "x y", "version": "1"}]}).encode(),
        json.dumps({**WORDS, "packages": [{"name": "x", "version": "1"}] * 3000}).encode(),
        b" " * (5 << 20),
    ],
)
def test_a_report_that_is_none_is_refused(tmp_path: Path, report: bytes) -> None:
    (tmp_path / "report.json").write_bytes(report)
    with pytest.raises(LayerBuildError):
        read_report(tmp_path / "report.json")


@given(st.text(max_size=50))
def test_a_path_of_a_report_never_holds_what_the_mount_options_or_a_walk_would_read(path: str) -> None:
    try:
        Installed(path=path, at_start=False, packages=(), text="")
    except ValueError:
        return
    assert path.startswith("/") and not set(path) & set(",:\\\n ") and ".." not in path.split("/")
