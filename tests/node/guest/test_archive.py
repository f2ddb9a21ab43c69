"""Trees of files as tar archives, out of the guest and into it."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from belljar.node.guest.archive import InvalidArchive
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
