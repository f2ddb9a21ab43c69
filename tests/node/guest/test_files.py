"""File operations of a session: the agent as a process, files in a folder of the test's own."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from belljar.node.guest.archive import InvalidArchive
from belljar.node.guest.channel import ChannelBroken
from belljar.node.guest.file_records import EventKind, FileType
from belljar.node.guest.files import FileFailed, Files
from support.conversation import ConnectAgent

MIB = 1 << 20


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder that operations work below; a secret lies beside it."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@asynccontextmanager
async def opened(connect_agent: ConnectAgent, root: Path) -> AsyncIterator[Files]:
    async with connect_agent() as agent, agent.session() as session:
        yield agent.files(session, root)


async def read(files: Files, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
    async with files.open_read(path, offset=offset, length=length) as reader:
        return b"".join([piece async for piece in reader])


async def write(files: Files, path: str, data: bytes, **options: bool | int) -> None:
    async with files.open_write(path, **options) as writer:  # type: ignore[arg-type]
        await writer.write(data)


async def whole(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def one(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 1000):
        yield data[at : at + 1000]


async def test_a_large_file_is_written_and_read_whole(connect_agent: ConnectAgent, root: Path) -> None:
    data = os.urandom(5 * MIB)
    async with opened(connect_agent, root) as files:
        await write(files, "a", data)
        assert (root / "a").read_bytes() == data
        assert await read(files, "a") == data
        assert await read(files, "/a", offset=MIB, length=10) == data[MIB : MIB + 10]
        assert await read(files, "a", offset=6 * MIB) == b""
        async with files.open_read("a") as reader:
            assert reader.entry.size == len(data) and reader.entry.type is FileType.FILE


async def test_ways_to_write(connect_agent: ConnectAgent, root: Path) -> None:
    async with opened(connect_agent, root) as files:
        await write(files, "new/deep/a", b"one", parents=True, mode=0o640)
        assert stat.S_IMODE((root / "new/deep/a").stat().st_mode) == 0o640
        await write(files, "new/deep/a", b"+two", append=True)
        await write(files, "new/deep/a", b"O", offset=0)
        assert (root / "new/deep/a").read_bytes() == b"One+two"
        await write(files, "new/deep/a", b"short")
        assert (root / "new/deep/a").read_bytes() == b"short"
        await write(files, "new/deep/a", b"replaced", atomic=True, mode=0o600)
        assert (root / "new/deep/a").read_bytes() == b"replaced"
        with pytest.raises(FileFailed, match="new/deep/a: File exists"):
            await write(files, "new/deep/a", b"", exclusive=True)
        with pytest.raises(FileFailed, match="missing/a: No such file or directory"):
            await write(files, "missing/a", b"")
        await write(files, "empty", b"")
        assert (root / "empty").read_bytes() == b""
        assert sorted(os.listdir(root / "new/deep")) == ["a"]


async def test_an_atomic_write_that_is_given_up_leaves_the_old_file_alone(
    connect_agent: ConnectAgent, root: Path
) -> None:
    (root / "a").write_text("old")
    async with opened(connect_agent, root) as files:
        with pytest.raises(ZeroDivisionError):
            async with files.open_write("a", atomic=True) as writer:
                await writer.write(bytes(MIB))
                raise ZeroDivisionError
        assert os.listdir(root) == ["a"] and (root / "a").read_text() == "old"


@pytest.mark.root
async def test_a_full_disk_is_an_error_while_the_host_still_writes(
    connect_agent: ConnectAgent, small_disk: Path
) -> None:
    async with opened(connect_agent, small_disk) as files:
        for atomic in (True, False):
            with pytest.raises(FileFailed) as failed:
                await write(files, "a", bytes(4 * MIB), atomic=atomic)
            assert failed.value.errno == errno.ENOSPC
        assert os.listdir(small_disk) == ["a"]


async def test_a_device_is_not_opened(connect_agent: ConnectAgent) -> None:
    async with opened(connect_agent, Path("/dev")) as files:
        with pytest.raises(FileFailed) as failed:
            await write(files, "full", b"x")
        assert failed.value.errno == errno.EOPNOTSUPP


async def test_entries_say_what_they_are_and_links_are_not_followed(connect_agent: ConnectAgent, root: Path) -> None:
    (root / "folder/inner").mkdir(parents=True)
    (root / "folder/inner/file").write_bytes(b"12345")
    (root / "link").symlink_to("folder")
    os.mkfifo(root / "fifo")
    async with opened(connect_agent, root) as files:
        listed = {entry.path: entry async for entry in files.list("/", depth=3)}
        assert set(listed) == {"folder", "folder/inner", "folder/inner/file", "link", "fifo"}
        assert (listed["link"].type, listed["link"].target) == (FileType.LINK, "folder")
        assert listed["fifo"].type is FileType.FIFO
        entry = listed["folder/inner/file"]
        found = (root / "folder/inner/file").stat()
        assert (entry.size, entry.mode, entry.uid) == (5, stat.S_IMODE(found.st_mode), found.st_uid)
        assert entry.modified_ns == found.st_mtime_ns
        assert {entry.path async for entry in files.list("folder")} == {"inner"}
        assert (await files.stat("link")).type is FileType.FOLDER
        assert (await files.stat("link", follow=False)).target == "folder"
        with pytest.raises(FileFailed, match="nothing: No such file"):
            await files.stat("nothing")


async def test_a_name_that_is_not_utf8_comes_back_as_it_went(connect_agent: ConnectAgent, root: Path) -> None:
    name = os.fsencode(root) + b"/bad\xff"
    Path(os.fsdecode(name)).write_bytes(b"x")
    async with opened(connect_agent, root) as files:
        assert [entry.path async for entry in files.list("/")] == ["bad\udcff"]


async def test_moving_removing_making_and_modes(connect_agent: ConnectAgent, root: Path) -> None:
    async with opened(connect_agent, root) as files:
        await files.mkdir("a/b/c", parents=True, mode=0o700)
        with pytest.raises(FileFailed) as failed:
            await files.mkdir("a/b")
        assert failed.value.errno == errno.EEXIST
        await write(files, "a/x", b"1")
        await write(files, "y", b"2")
        with pytest.raises(FileFailed) as failed:
            await files.move("a/x", "y", replace=False)
        assert failed.value.errno == errno.EEXIST
        await files.move("a/x", "y")
        assert (root / "y").read_bytes() == b"1"
        await files.chmod("y", 0o400)
        assert stat.S_IMODE((root / "y").stat().st_mode) == 0o400
        with pytest.raises(FileFailed) as failed:
            await files.remove("a")
        assert failed.value.errno == errno.ENOTEMPTY
        await files.remove("a", recursive=True)
        await files.remove("y")
        assert os.listdir(root) == []
        for wrong in ("/", ".", "..", "", "a/.."):
            with pytest.raises(FileFailed):
                await files.remove(wrong, recursive=True)


def links(root: Path) -> list[str]:
    """Make links that lead out of the root, and return paths that use them or try to leave it otherwise."""
    outside = root.parent
    (root / "absolute").symlink_to(outside)
    (root / "relative").symlink_to("..")
    (root / "file").symlink_to(outside / "secret")
    (root / "chain").symlink_to("relative")
    (root / "proc").symlink_to("/proc/self/root")
    return [
        "absolute/secret",
        "relative/secret",
        "file",
        "chain/secret",
        "../secret",
        "../../" + str(outside / "secret"),
        str(outside / "secret"),
        f"proc{outside}/secret",
        "absolute/../secret",
    ]


@pytest.mark.parametrize("number", range(9))
async def test_no_path_leads_out_of_the_root_in_any_operation(
    connect_agent: ConnectAgent, root: Path, number: int
) -> None:
    path = links(root)[number]
    async with opened(connect_agent, root) as files:
        attempts: list[Awaitable[object]] = [
            read(files, path),
            files.stat(path),
            whole(files.archive(path)),
            files.chmod(path, 0o777),
            write(files, path, b"overwritten"),
            write(files, path, b"overwritten", append=True),
            write(files, path + "/new", b"overwritten", parents=True),
            files.mkdir(path + "/new"),
            files.extract(path, one(b"")),
            files.move(path + "/x", "here"),
        ]
        for attempt in attempts:
            try:
                found = await attempt
            except (FileFailed, InvalidArchive):
                continue
            assert b"secret" not in repr(found).encode().replace(path.encode(), b""), found
    assert (root.parent / "secret").read_text() == "secret"
    assert sorted(os.listdir(root.parent)) == ["root", "secret"]


async def test_links_are_removed_and_moved_themselves(connect_agent: ConnectAgent, root: Path) -> None:
    links(root)
    (root / "folder").mkdir()
    (root / "folder/out").symlink_to(root.parent)
    async with opened(connect_agent, root) as files:
        await files.move("file", "moved")
        assert (root / "moved").is_symlink()
        for name in ("absolute", "relative", "chain", "moved"):
            await files.remove(name, recursive=True)
        await files.remove("folder", recursive=True)
        await write(files, "proc", b"x", atomic=True)  # replaces the link
        assert (root / "proc").read_bytes() == b"x"
    assert (root.parent / "secret").read_text() == "secret" and os.listdir(root) == ["proc"]


async def test_what_is_no_regular_file_is_not_opened(connect_agent: ConnectAgent, root: Path) -> None:
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "socket"))
        async with asyncio.timeout(30), opened(connect_agent, root) as files:
            for name in ("fifo", "socket"):
                for attempt in (read(files, name), write(files, name, b"x")):
                    with pytest.raises(FileFailed) as failed:
                        await attempt
                    assert failed.value.errno == errno.EOPNOTSUPP
            with pytest.raises(FileFailed) as failed:
                await read(files, "/")
            assert failed.value.errno == errno.EISDIR


async def test_a_path_too_long_or_with_a_zero_is_a_clear_error(connect_agent: ConnectAgent, root: Path) -> None:
    async with opened(connect_agent, root) as files:
        for path, expected in (
            ("x" * 300, errno.ENAMETOOLONG),
            ("a/" * 3000, errno.ENAMETOOLONG),
            ("\0", errno.EINVAL),
        ):
            for attempt in (files.stat(path), files.mkdir(path), write(files, path, b"", parents=True)):
                with pytest.raises(FileFailed) as failed:
                    await attempt
                assert failed.value.errno == expected


async def test_files_of_the_kernel_are_read(connect_agent: ConnectAgent) -> None:
    async with opened(connect_agent, Path("/")) as files:
        assert (await read(files, "/proc/version")).startswith(b"Linux version")


async def test_a_reader_that_leaves_early_ends_the_operation(connect_agent: ConnectAgent, root: Path) -> None:
    (root / "large").write_bytes(bytes(20 * MIB))
    async with connect_agent() as agent, agent.session() as session:
        files = agent.files(session, root)
        async with files.open_read("large") as reader:
            async for _ in reader:
                break
        async for _ in files.list("/"):
            break
        assert await read(files, "large", length=3) == bytes(3)
        async with asyncio.timeout(10):
            while session._channels:  # the generator's own end comes later
                await asyncio.sleep(0.01)


async def test_a_watch_tells_what_happens_and_ends_with_its_block(connect_agent: ConnectAgent, root: Path) -> None:
    (root / "old").mkdir()
    async with opened(connect_agent, root) as files:
        async with files.watch("/", recursive=True) as events:
            (root / "old/a").write_text("x")
            (root / "new").mkdir()
            (root / "new/b").write_text("x")
            seen: set[tuple[EventKind, str]] = set()
            async with asyncio.timeout(20):
                async for event in events:
                    seen.add((event.kind, event.path))
                    if seen >= {(EventKind.CREATE, "new/b")} and (root / "new/b").exists():
                        (root / "old/a").rename(root / "new/c")
                        (root / "new/b").unlink()
                    if (event.kind, event.path) == (EventKind.REMOVE, "new/b"):
                        break
        assert {
            (EventKind.CREATE, "old/a"),
            (EventKind.CREATE, "new"),
            (EventKind.CREATE, "new/b"),
            (EventKind.MOVE_FROM, "old/a"),
            (EventKind.MOVE_TO, "new/c"),
        } <= seen


async def test_a_watch_of_more_folders_than_allowed_is_refused(connect_agent: ConnectAgent, root: Path) -> None:
    for number in range(4100):
        (root / str(number)).mkdir()
    async with opened(connect_agent, root) as files:
        with pytest.raises(FileFailed) as failed:
            async with files.watch("/", recursive=True):
                pass
        assert failed.value.errno == errno.ENOSPC
        async with files.watch("/"):
            pass


async def test_a_watched_folder_that_is_removed_ends_the_watch(connect_agent: ConnectAgent, root: Path) -> None:
    (root / "folder").mkdir()
    async with opened(connect_agent, root) as files:
        with pytest.raises(FileFailed) as failed:
            async with asyncio.timeout(20), files.watch("folder") as events:
                (root / "folder").rmdir()
                async for _ in events:
                    pass
        assert failed.value.errno == errno.ENOENT


async def test_an_operation_that_is_killed_is_broken_and_no_success(connect_agent: ConnectAgent, root: Path) -> None:
    (root / "large").write_bytes(bytes(20 * MIB))
    async with connect_agent() as agent, agent.session() as session:
        files = agent.files(session, root)
        with pytest.raises(ChannelBroken, match="killed"):
            async with files.open_read("large") as reader:
                os.kill(reader._process.pid, 9)
                async for _ in reader:
                    pass


async def test_listening_ports_are_listed(connect_agent: ConnectAgent, root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with opened(connect_agent, root) as files:
            assert ("127.0.0.1", listener.getsockname()[1], os.getuid()) in [
                (port.address, port.port, port.uid) for port in await files.ports()
            ]
