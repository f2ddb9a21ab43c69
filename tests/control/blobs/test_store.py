"""The blob store, over a real folder and over obstore's in-memory store."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from belljar.control.blobs.store import Blobs, open_blobs
from belljar.model.errors import DataFolderError, DiskFull, HostError, NotFound
from belljar.settings import Settings
from belljar.system.removal import Extent


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return open_blobs(Settings(data_dir=tmp_path)) if request.param == "folder" else Blobs(MemoryStore())


async def read(blobs: Blobs, name: str, start: int = 0) -> list[bytes]:
    return [chunk async for chunk in blobs.stream(name, start)]


async def test_what_was_put_is_got_back(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(b"from a file")
    await blobs.put_bytes("a/bytes", b"from memory")
    await blobs.put_file("a/file", tmp_path / "source", durable=True)
    assert await blobs.get_bytes("a/bytes") == b"from memory"
    assert await blobs.get_bytes("a/file") == b"from a file"
    assert await blobs.size("a/file") == 11


async def test_a_put_replaces(blobs: Blobs) -> None:
    await blobs.put_bytes("name", b"one")
    await blobs.put_bytes("name", b"")
    assert await blobs.get_bytes("name") == b""
    assert await read(blobs, "name") == []


async def test_a_missing_blob_is_not_found(blobs: Blobs) -> None:
    assert await blobs.size("nothing") is None
    assert blobs.local_path("nothing") is None
    with pytest.raises(NotFound):
        await blobs.get_bytes("nothing")
    with pytest.raises(NotFound):
        await read(blobs, "nothing")
    await blobs.delete("nothing")
    await blobs.delete_prefixes(["nothing"])


@pytest.mark.parametrize("start", [0, 1, 65_536, 699_999, 700_000, 10**9])
async def test_a_stream_starts_at_its_offset_and_its_chunks_are_bounded(blobs: Blobs, start: int) -> None:
    data = os.urandom(700_000)
    await blobs.put_bytes("stream", data)
    chunks = await read(blobs, "stream", start)
    assert b"".join(chunks) == data[start:]
    assert all(0 < len(chunk) <= 256 * 1024 for chunk in chunks)
    assert all(len(chunk) >= 64 * 1024 for chunk in chunks[:-1])


async def test_a_prefix_is_a_folder_of_names(blobs: Blobs) -> None:
    for name in ("jobs/1/log", "jobs/1/artifacts/0", "jobs/12/log"):
        await blobs.put_bytes(name, b"x")
    await blobs.delete_prefixes(["jobs/1/"])
    assert [await blobs.size(name) for name in ("jobs/1/log", "jobs/1/artifacts/0", "jobs/12/log")] == [None, None, 1]


async def test_a_local_folder_shows_its_files_and_keeps_no_empty_folders(tmp_path: Path) -> None:
    blobs = open_blobs(Settings(data_dir=tmp_path))
    await blobs.put_bytes("jobs/1/log", b"x")
    path = blobs.local_path("jobs/1/log")
    assert path is not None
    assert path.read_bytes() == b"x"
    await blobs.delete_prefixes(["jobs/1"])
    assert list((tmp_path / "blobs").iterdir()) == []


async def test_puts_of_one_name_at_once_leave_one_whole_blob(tmp_path: Path) -> None:
    blobs = open_blobs(Settings(data_dir=tmp_path))
    contents = [bytes([n]) * 300_000 for n in range(8)]
    await asyncio.gather(*(blobs.put_bytes("same", content) for content in contents))
    assert await blobs.get_bytes("same") in contents
    assert [path.name for path in (tmp_path / "blobs").iterdir()] == ["same"]


async def test_what_killed_processes_left_is_cleared_but_not_what_is_being_written(tmp_path: Path) -> None:
    blobs = open_blobs(Settings(data_dir=tmp_path))
    await blobs.put_bytes("jobs/1/log", b"x")
    for name in ("old#1", "new#2"):
        (tmp_path / "blobs/jobs/1" / name).write_bytes(b"half")
    long_ago = time.time() - 7200
    os.utime(tmp_path / "blobs/jobs/1/old#1", (long_ago, long_ago))
    os.utime(tmp_path / "blobs/jobs/1/log", (long_ago, long_ago))
    assert blobs.clear_stale_puts() == 1
    assert sorted(path.name for path in (tmp_path / "blobs/jobs/1").iterdir()) == ["log", "new#2"]


async def test_puts_that_end_while_what_was_left_is_looked_for_are_no_error(tmp_path: Path) -> None:
    blobs = open_blobs(Settings(data_dir=tmp_path))
    stop = asyncio.Event()

    async def put() -> None:
        while not stop.is_set():
            await asyncio.gather(*(blobs.put_bytes(f"jobs/{n}/log", b"x") for n in range(20)))

    putting = asyncio.create_task(put())
    for _ in range(100):
        assert await asyncio.to_thread(blobs.clear_stale_puts) == 0
    stop.set()
    await putting


@pytest.mark.parametrize("name", ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a b", "a#1", "a\0", "é", "a" * 201])
async def test_names_outside_the_rules_are_refused(blobs: Blobs, name: str) -> None:
    for attempt in (blobs.put_bytes(name, b""), blobs.get_bytes(name), blobs.size(name), blobs.delete(name)):
        with pytest.raises(ValueError, match="invalid name of a blob"):
            await attempt
    with pytest.raises(ValueError, match="invalid name of a blob"):
        blobs.local_path(name)


@given(name=st.text(alphabet="./a#\\\0 é", max_size=12))
def test_no_name_leaves_the_folder(name: str) -> None:
    blobs = Blobs(MemoryStore(), Path("/nowhere/blobs"))
    try:
        blobs.local_path(name)
    except ValueError:
        return
    assert (Path("/nowhere/blobs") / name).resolve().is_relative_to("/nowhere/blobs")


@pytest.mark.root
async def test_a_full_disk_is_reported_as_such(small_disk: Path) -> None:
    blobs = open_blobs(Settings(data_dir=small_disk))
    await blobs.put_bytes("kept", b"before")
    with pytest.raises(DiskFull, match="free some space"):
        await blobs.put_bytes("big", b"x" * 1_000_000)
    assert await blobs.size("big") is None
    assert await blobs.get_bytes("kept") == b"before"
    assert [path.name for path in (small_disk / "blobs").iterdir()] == ["kept"]


def test_a_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderError, match="--data-dir"):
        open_blobs(Settings(data_dir=tmp_path / "file"))


def test_urls_choose_the_store(tmp_path: Path) -> None:
    assert open_blobs(Settings(data_dir=tmp_path, blobs_url="memory:///")).local_path("a") is None
    open_blobs(Settings(data_dir=tmp_path, blobs_url=f"file://{tmp_path}/elsewhere"))
    assert (tmp_path / "elsewhere").is_dir()
    with pytest.raises(HostError, match="blobs_url"):
        open_blobs(Settings(data_dir=tmp_path, blobs_url="nonsense://x"))


async def test_many_blobs_are_deleted_beside_everything_else(tmp_path: Path) -> None:
    blobs = open_blobs(Settings(data_dir=tmp_path))
    for job in range(5):
        folder = tmp_path / f"blobs/jobs/{job}/artifacts"
        folder.mkdir(parents=True)
        for index in range(400):
            (folder / str(index)).touch()
    deleting = asyncio.create_task(blobs.delete_prefixes([f"jobs/{job}" for job in range(5)]))
    turns = 0
    while not deleting.done():
        await asyncio.sleep(0)
        turns += 1
    assert turns > 20
    assert await deleting == Extent(2_000, 0)
    assert list((tmp_path / "blobs").iterdir()) == []


async def test_deleting_leaves_no_folders_and_follows_no_links(tmp_path: Path) -> None:
    blobs = open_blobs(Settings(data_dir=tmp_path))
    await blobs.put_bytes("jobs/a/artifacts/0", b"12")
    await blobs.put_bytes("jobs/ab/log", b"3")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (tmp_path / "blobs/jobs/a/link").symlink_to(outside)
    (tmp_path / "blobs/jobs/a/artifacts/1#0").touch()  # an unfinished put
    assert (await blobs.delete_prefixes(["jobs/a/"])).count == 3
    assert [path.name for path in (tmp_path / "blobs/jobs").iterdir()] == ["ab"]
    assert (outside / "file").exists()
    assert await blobs.delete_prefixes(["jobs/a", "jobs/never"]) == Extent(0, 0)


async def test_an_object_store_is_listed_and_cleared_in_pages() -> None:
    blobs = Blobs(MemoryStore())
    for job in ("a", "b", "c"):
        for index in range(700):
            await blobs.put_bytes(f"jobs/{job}/artifacts/{index}", b"1")
    pages = [page async for page in blobs.pages("jobs")]
    assert sum(len(page) for page in pages) == 2100 and max(len(page) for page in pages) <= 500
    assert await blobs.delete_prefixes(["jobs/a", "jobs/b"]) == Extent(1400, 1400)
    assert await blobs.extent(["jobs/a", "jobs/b", "jobs/c"]) == Extent(700, 700)
    assert await blobs.remove_empty_folders(0) == 0
