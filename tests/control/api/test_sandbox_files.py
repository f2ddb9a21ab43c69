"""Files of a sandbox over HTTP: whole and in ranges, folders, archives, and every error of a path."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import AsyncIterator

import pytest

from control.api.sandbox_calls import OneSandbox
from support.served import problem

pytestmark = pytest.mark.process

MIB = 1 << 20


async def test_a_file_is_written_read_and_described(box: OneSandbox) -> None:
    written = await box.http.put(box.file("sub/ü x.txt"), content=b"hello world", params={"mode": "600"})
    assert written.status_code == 201, written.text
    entry = written.json()
    assert (entry["kind"], entry["size_bytes"], entry["mode"]) == ("file", 11, "600")
    read = await box.http.get(box.file("sub/ü x.txt"))
    assert (read.status_code, read.content) == (200, b"hello world")
    assert read.headers["content-length"] == "11" and read.headers["x-content-type-options"] == "nosniff"
    assert read.headers["content-disposition"].startswith("attachment;")
    described = (await box.http.get(box.file("sub/ü x.txt"), params={"stat": True})).json()
    assert described["size_bytes"] == 11 and described["modified_ns"] > 0


async def test_a_range_of_a_file_is_read(box: OneSandbox) -> None:
    (box.folder / "f").write_bytes(b"0123456789")
    for header, expected, place in (
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=5-1000", b"56789", "bytes 5-9/10"),
    ):
        part = await box.http.get(box.file("f"), headers={"Range": header})
        assert (part.status_code, part.content, part.headers["content-range"]) == (206, expected, place)
    for header in ("bytes=10-", "bytes=4-2", "bytes=0-1,3-4", "lines=1-2", "bytes=-"):
        problem(await box.http.get(box.file("f"), headers={"Range": header}), 422, "invalid_option")


async def test_a_large_file_is_streamed_both_ways(box: OneSandbox) -> None:
    piece = os.urandom(MIB)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield piece

    written = await box.http.put(box.file("large"), content=pieces(), timeout=60)
    assert written.json()["size_bytes"] == 40 * MIB
    read = await box.http.get(box.file("large"), timeout=60)
    assert read.content == piece * 40


async def test_an_upload_that_no_disk_of_this_shape_holds_is_refused_before_it_is_sent(box: OneSandbox) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    headers = {"Content-Length": str(10 << 30)}
    response = await box.http.put(box.file("f"), content=nothing(), headers=headers)
    problem(response, 413, "too_large")
    assert not (box.folder / "f").exists()


async def test_a_file_is_appended_to_patched_and_not_replaced(box: OneSandbox) -> None:
    await box.http.put(box.file("f"), content=b"abc")
    await box.http.put(box.file("f"), content=b"def", params={"append": True})
    await box.http.put(box.file("f"), content=b"X", params={"offset": 1})
    assert (box.folder / "f").read_bytes() == b"aXcdef"
    problem(await box.http.put(box.file("f"), content=b"", params={"exclusive": True}), 409, "file_conflict")
    both = {"append": True, "offset": 1}
    problem(await box.http.put(box.file("f"), content=b"", params=both), 422, "invalid_option")


async def test_folders_are_made_listed_moved_and_removed(box: OneSandbox) -> None:
    made = await box.http.put(box.file("a/b"), params={"folder": True})
    assert (made.status_code, made.json()["kind"]) == (201, "folder")
    (box.folder / "a/b/f").write_bytes(b"1")
    (box.folder / "a/link").symlink_to("/etc/passwd")
    listed = (await box.http.get(box.file("a"), params={"list": True, "depth": 2})).json()
    kinds = {each["path"]: each["kind"] for each in listed["entries"]}
    assert kinds == {"b": "folder", "b/f": "file", "link": "link"} and not listed["truncated"]
    shallow = (await box.http.get(box.file("a"), params={"list": True})).json()["entries"]
    assert {each["path"] for each in shallow} == {"b", "link"}
    moved = await box.http.patch(box.file("a/b/f"), json={"move_to": str(box.folder / "a/g")})
    assert moved.json()["path"].endswith("/a/g") and (box.folder / "a/g").exists()
    changed = await box.http.patch(box.file("a/g"), json={"mode": "0755"})
    assert changed.json()["mode"] == "755"
    (box.folder / "a/h").write_bytes(b"")
    kept = {"move_to": str(box.folder / "a/h"), "replace": False}
    problem(await box.http.patch(box.file("a/g"), json=kept), 409, "file_conflict")
    problem(await box.http.delete(box.file("a")), 409, "file_conflict")
    assert (await box.http.delete(box.file("a"), params={"recursive": True})).status_code == 204
    assert not (box.folder / "a").exists()


async def test_an_archive_goes_in_and_out(box: OneSandbox) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in (("x/one", b"1" * 1000), ("two", b"2")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    place = {"archive": "tar", "path": str(box.folder)}
    put = await box.http.put(f"{box.url}/files", content=buffer.getvalue(), params=place)
    assert put.status_code == 200, put.text
    assert (box.folder / "x/one").read_bytes() == b"1" * 1000
    got = await box.http.get(f"{box.url}/files", params=place)
    with tarfile.open(fileobj=io.BytesIO(got.content)) as archive:
        assert {"x", "x/one", "two"} <= set(archive.getnames())
    problem(await box.http.put(f"{box.url}/files", content=b"no tar", params=place), 422, "invalid_archive")
    escape = io.BytesIO()
    with tarfile.open(fileobj=escape, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../escaped"))
    problem(await box.http.put(f"{box.url}/files", content=escape.getvalue(), params=place), 422, "invalid_archive")
    assert not (box.folder.parent / "escaped").exists()
    problem(await box.http.get(f"{box.url}/files"), 422, "invalid_option")


async def test_each_error_of_a_path_has_its_code(box: OneSandbox) -> None:
    (box.folder / "f").write_bytes(b"")
    os.mkfifo(box.folder / "fifo")
    problem(await box.http.get(box.file("missing")), 404, "file_not_found")
    problem(await box.http.get(box.file(".")), 409, "file_conflict")
    problem(await box.http.get(box.file("f/under")), 409, "file_conflict")
    problem(await box.http.get(box.file("fifo")), 422, "file_error")
    problem(await box.http.put(box.file("f/under"), content=b""), 409, "file_conflict")
    problem(await box.http.get(box.file("x" * 5000)), 422, "invalid_option")
    problem(await box.http.get(f"{box.url}/files/%00"), 422, "invalid_option")
    problem(await box.http.put(box.file("f"), content=b"", params={"mode": "999"}), 422, "invalid_option")
    problem(await box.http.patch(box.file("f"), json={}), 422, "invalid_option")
    lone = {"content": b'{"move_to": "\\ud800"}', "headers": {"Content-Type": "application/json"}}
    problem(await box.http.patch(box.file("f"), **lone), 422, "invalid_option")
    problem(await box.http.put(box.file("d"), content=b"x", params={"folder": True}), 400, "invalid_request")


async def test_a_name_that_is_no_text_can_be_listed_and_read(box: OneSandbox) -> None:
    name = os.fsencode(box.folder) + b"/caf\xe9"
    with open(name, "wb") as file:
        file.write(b"bytes")
    (entry,) = (await box.http.get(box.file("."), params={"list": True})).json()["entries"]
    assert (entry["path"], entry["path_percent"]) == ("caf\ufffd", "caf%E9")
    read = await box.http.get(f"{box.file('.')}/{entry['path_percent']}")
    assert read.content == b"bytes"


async def test_a_file_of_proc_without_a_size_is_read_to_its_end(box: OneSandbox) -> None:
    read = await box.http.get(f"{box.url}/files//proc/self/status")
    assert b"Pid:" in read.content and "content-length" not in read.headers
