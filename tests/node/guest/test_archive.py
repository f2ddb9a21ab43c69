"""Trees of files as tar archives, out of the guest and into it."""

from __future__ import annotations

import errno
import io
import os
import tarfile
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from belljar.node.guest.archive import InvalidArchive, decode
from belljar.node.guest.channel import ChannelBroken
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


async def whole(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def one(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 1000):
        yield data[at : at + 1000]


async def test_a_tree_goes_out_as_a_tar_archive_and_in_again(connect_agent: ConnectAgent, root: Path) -> None:
    source, target = root / "source", root / "target"
    (source / ("deep" * 40) / "er").mkdir(parents=True)
    (source / ("deep" * 40) / "er/file").write_bytes(os.urandom(300_000))
    (source / "empty").write_bytes(b"")
    (source / "ü").write_text("umlaut")
    (source / "link").symlink_to("x" * 200)
    (source / "run").write_text("#!/bin/sh")
    (source / "run").chmod(0o755)
    os.mkfifo(source / "fifo")
    target.mkdir()
    async with opened(connect_agent, root) as files:
        data = await whole(files.archive("source"))
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            names = set(tar.getnames())
        await files.extract("target", one(data))
    expected = {path.relative_to(source).as_posix() for path in source.rglob("*")} - {"fifo"}
    assert names == expected == {path.relative_to(target).as_posix() for path in target.rglob("*")}
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        if path.is_symlink():
            assert copy.readlink() == path.readlink()
        elif path.is_file():
            assert copy.read_bytes() == path.read_bytes()
            assert copy.stat().st_mode == path.stat().st_mode
            assert int(copy.stat().st_mtime) == int(path.stat().st_mtime)


def tar_of(*entries: tuple[str, bytes, bytes, str], format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, kind, data, target in entries:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(data), target
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize("format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
async def test_archives_of_every_format_and_hard_links_are_extracted(
    connect_agent: ConnectAgent, root: Path, format: int
) -> None:
    long = "/".join(["long" * 10] * 3)
    data = tar_of(
        ("./", tarfile.DIRTYPE, b"", ""),
        (f"./{long}/a", tarfile.REGTYPE, b"content", ""),
        ("b", tarfile.REGTYPE, b"linked", ""),
        ("d/e", tarfile.LNKTYPE, b"", "b"),
        ("c", tarfile.SYMTYPE, b"", "../secret"),
        format=format,
    )
    async with opened(connect_agent, root) as files:
        await files.extract("/", one(data))
    assert (root / long / "a").read_bytes() == b"content"
    assert (root / "d/e").read_bytes() == b"linked" and (root / "b").stat().st_nlink == 2
    assert os.readlink(root / "c") == "../secret"


async def test_an_archive_cannot_write_through_its_own_links(connect_agent: ConnectAgent, root: Path) -> None:
    outside = str(root.parent)
    data = tar_of(
        ("out", tarfile.SYMTYPE, b"", outside),
        ("up", tarfile.SYMTYPE, b"", ".."),
        ("out/planted", tarfile.REGTYPE, b"x", ""),
        ("up/planted", tarfile.REGTYPE, b"x", ""),
        ("hard", tarfile.LNKTYPE, b"", "up/secret"),
    )
    async with opened(connect_agent, root) as files:
        with pytest.raises(FileFailed):
            await files.extract("/", one(data))
    assert sorted(os.listdir(root.parent)) == ["root", "secret"]
    assert not (root / "hard").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"x" * 1024, "no tar archive"),
        (tar_of(("a", tarfile.REGTYPE, b"x" * 5000, ""))[:3000], "breaks off"),
        (b"", "breaks off"),
        (tar_of(("../a", tarfile.REGTYPE, b"x", "")), "leads out"),
        (tar_of(("a", tarfile.CHRTYPE, b"", "")), "neither a file"),
        (tar_of(("x" * 5000, tarfile.REGTYPE, b"", "")), "too long"),
    ],
)
async def test_an_archive_that_cannot_be_extracted_says_why(
    connect_agent: ConnectAgent, root: Path, data: bytes, message: str
) -> None:
    async with opened(connect_agent, root) as files:
        with pytest.raises(InvalidArchive, match=message):
            await files.extract("/", one(data))
    assert os.listdir(root.parent) and not (root.parent / "a").exists()


async def test_a_file_that_shrinks_while_it_is_archived_is_an_error(connect_agent: ConnectAgent, root: Path) -> None:
    (root / "large").write_bytes(bytes(20 * MIB))
    async with opened(connect_agent, root) as files:
        with pytest.raises((FileFailed, ChannelBroken)):
            async for piece in files.archive("/"):
                if piece:
                    os.truncate(root / "large", 0)


async def test_a_file_that_grows_while_it_is_archived_is_cut_at_its_size(
    connect_agent: ConnectAgent, root: Path
) -> None:
    (root / "log").write_bytes(b"a" * 3 * MIB)
    async with opened(connect_agent, root) as files:
        data = b""
        async for piece in files.archive("/"):
            data += piece
            with (root / "log").open("ab") as log:
                log.write(b"b" * 1000)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        (member,) = tar.getmembers()
        content = tar.extractfile(member)
        assert content is not None and len(content.read()) == member.size >= 3 * MIB


def header(name: str, kind: bytes, size: int) -> bytes:
    """A tar header whose size may be negative, in the format's base 256."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = kind
    block[124:136] = (size % 256**12).to_bytes(12, "big") if size < 0 else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize(("name", "kind"), [("global", b"g"), ("extended", b"x"), ("./", b"0"), ("file", b"0")])
async def test_a_negative_size_is_refused(name: str, kind: bytes) -> None:
    with pytest.raises(InvalidArchive, match="size of -512 bytes"):
        await whole(decode(one(header(name, kind, -512) + bytes(2048))))


@pytest.mark.parametrize("size", ["²", "-1", "9" * 19, "9" * 5000, ""])
async def test_a_size_in_an_extended_header_that_is_none_is_refused(size: str) -> None:
    text = f" size={size}\n".encode()
    length = next(n for n in range(len(text), len(text) + 8) if n == len(text) + len(str(n)))
    data = f"{length}".encode() + text
    archive = header("x", b"x", len(data)) + data + bytes(-len(data) % 512) + header("file", b"0", 0)
    with pytest.raises(InvalidArchive):
        await whole(decode(one(archive)))


async def test_extended_headers_without_an_entry_take_no_memory() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for number in range(200):
            data = b"60012 " + f"key{number:06}=".encode().ljust(60005, b"x") + b"\n"
            data = data[:60012]
            assert len(data) == 60012
            yield header("x", b"x", len(data)) + data + bytes(-len(data) % 512)

    tracemalloc.start()
    try:
        with pytest.raises(InvalidArchive, match="breaks off"):
            await whole(decode(endless()))
        assert tracemalloc.get_traced_memory()[1] < 2 * MIB
    finally:
        tracemalloc.stop()


async def test_an_exclusive_atomic_write_replaces_nothing(connect_agent: ConnectAgent, root: Path) -> None:
    (root / "file").write_text("old")
    async with opened(connect_agent, root) as files:
        with pytest.raises(FileFailed) as refused:
            async with files.open_write("file", atomic=True, exclusive=True) as writer:
                await writer.write(b"new")
        assert refused.value.errno == errno.EEXIST
        async with files.open_write("other", atomic=True, exclusive=True) as writer:
            await writer.write(b"new")
    assert {path.name: path.read_text() for path in root.iterdir()} == {"file": "old", "other": "new"}
