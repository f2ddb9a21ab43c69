"""Files in the guest. Each operation is a small process of the agent that runs as the sandbox's user, in its view of
the file system; a link never leads out of the root that the operation works below. Nothing here touches a file of the
host.
"""

from __future__ import annotations

import contextlib
import errno as errnos
import os
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from belljar.node.guest import archive
from belljar.node.guest.channel import ChannelBroken
from belljar.node.guest.file_records import EventKind, FileType, OperationOutput, Record, RecordKind
from belljar.node.guest.process import Process, ProcessEnded
from belljar.node.guest.session import Session

_ALL = (1 << 63) - 1
#: Ports with their addresses; a hostile guest would never end.
_MAX_PORTS = 10_000


class FileFailed(Exception):
    """A file operation failed in the guest: its errno and the path."""

    def __init__(self, errno: int, path: str) -> None:
        super().__init__(f"{path}: {os.strerror(errno)}")
        self.errno = errno
        self.path = path


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder or link. Its path is as the guest sent it: relative to the listed folder, or as it was given."""

    type: FileType
    mode: int
    uid: int
    gid: int
    size: int
    modified_ns: int
    path: str
    #: Where a link leads; "" for everything else.
    target: str
    #: False for a folder whose entries cannot be listed.
    is_readable: bool = True


@dataclass(frozen=True, slots=True)
class Event:
    """A change below a watched folder; the path is relative to it."""

    kind: EventKind
    path: str


@dataclass(frozen=True, slots=True)
class ListeningPort:
    """A TCP port that a program of the sandbox listens on."""

    address: str
    port: int
    uid: int


class FileReader:
    """A file that is being read."""

    def __init__(self, entry: Entry, output: OperationOutput, process: Process, path: str) -> None:
        #: The file when it was opened; it may change while it is read.
        self.entry = entry
        self._output = output
        self._process = process
        self._path = path

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the bytes to their end. Raises FileFailed, ChannelBroken."""
        async for piece in self._output.pieces():
            yield piece
        await _finish(self._process, self._path)


class FileWriter:
    """A file that is being written."""

    def __init__(self, process: Process, path: str) -> None:
        #: The file, once it is complete.
        self.entry: Entry | None = None
        self._process = process
        self._path = path

    async def write(self, data: bytes) -> None:
        """Append to what was written. Raises FileFailed when the guest could not write, ChannelBroken."""
        try:
            await self._process.write(data)
        except ProcessEnded:
            await _finish(self._process, self._path)
            raise


class Files:
    """Files below a root in the guest, as one of its users sees them. Paths are relative to the root."""

    def __init__(self, session: Session, *, root: str = "/", uid: int = 1000, gid: int = 1000) -> None:
        self._session = session
        self._root = root
        self._uid = uid
        self._gid = gid

    async def stat(self, path: str, *, follow: bool = True) -> Entry:
        """Describe a path; with `follow`, what a link leads to. Raises FileFailed, ChannelBroken, MachineError."""
        async with self._open("stat", path, _flag(follow)) as process:
            record = await OperationOutput(process).record()
            await _finish(process, path)
        return _entry(record)

    async def list(self, path: str, *, depth: int = 1) -> AsyncGenerator[Entry, None]:
        """Yield what is in a folder, and to a depth of at most 128 below it, in no order; links are not followed.

        Raises FileFailed, ChannelBroken, MachineError.
        """
        async with self._open("list", path, str(depth)) as process:
            output = OperationOutput(process)
            while (record := await output.record()) is not None:
                yield _entry(record)
            await _finish(process, path)

    @contextlib.asynccontextmanager
    async def open_read(self, path: str, *, offset: int = 0, length: int | None = None) -> AsyncIterator[FileReader]:
        """Open a regular file to read `length` bytes (None: all) from `offset` on.

        Raises FileFailed (EISDIR, EOPNOTSUPP for a FIFO or device), ChannelBroken, MachineError.
        """
        async with self._open("read", path, str(offset), str(_ALL if length is None else length)) as process:
            output = OperationOutput(process)
            record = await output.record()
            if record is None:
                await _finish(process, path)
            yield FileReader(_entry(record), output, process, path)

    @contextlib.asynccontextmanager
    async def open_write(
        self,
        path: str,
        *,
        mode: int = 0o644,
        atomic: bool = False,
        append: bool = False,
        exclusive: bool = False,
        parents: bool = False,
        offset: int | None = None,
    ) -> AsyncIterator[FileWriter]:
        """Open a file to write; it is complete when the block ends without an exception.

        `atomic`: readers see the old file or the whole new one; an exception leaves the old one. `mode` is for a new
        file. `offset`: write there and keep the rest. Raises FileFailed, ChannelBroken, MachineError.
        """
        flags = "a" * append + "t" * atomic + "x" * exclusive + "p" * parents + "o" * (offset is not None)
        async with self._open("write", path, flags, str(mode & 0o777), str(offset or 0)) as process:
            writer = FileWriter(process, path)
            yield writer
            with contextlib.suppress(ProcessEnded):
                await process.end_input()
            record = await OperationOutput(process).record()
            await _finish(process, path)
            writer.entry = _entry(record)

    async def move(self, path: str, destination: str, *, replace: bool = True) -> None:
        """Rename; between file systems it fails (EXDEV). Raises FileFailed, ChannelBroken, MachineError."""
        await self._run("move", path, destination, _flag(replace))

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """Remove a file, link or empty folder, with `recursive` a folder to a depth of 128; links are not followed.

        Raises FileFailed, ChannelBroken, MachineError.
        """
        await self._run("remove", path, _flag(recursive))

    async def mkdir(self, path: str, *, mode: int = 0o755, parents: bool = False) -> None:
        """Make a folder. Raises FileFailed (EEXIST when there is something), ChannelBroken, MachineError."""
        await self._run("mkdir", path, str(mode & 0o777), _flag(parents))

    async def chmod(self, path: str, mode: int) -> None:
        """Change the mode of what a path leads to. Raises FileFailed, ChannelBroken, MachineError."""
        await self._run("chmod", path, str(mode & 0o7777))

    @contextlib.asynccontextmanager
    async def watch(self, path: str, *, recursive: bool = False) -> AsyncIterator[AsyncIterator[Event]]:
        """Watch a folder; the block begins once it is watched, and what happens from then on is yielded.

        Raises FileFailed (ENOSPC: more than 4,096 folders), ChannelBroken, MachineError.
        """
        async with self._open("watch", path, _flag(recursive)) as process:
            output = OperationOutput(process)
            if await output.record() is None:
                await _finish(process, path)
            yield _events(output, process, path)

    async def archive(self, path: str) -> AsyncGenerator[bytes, None]:
        """Yield a tar archive of a folder's content, made on the host. Sockets, FIFOs and devices are left out.

        Raises FileFailed (EACCES: a file that the user cannot read, ESTALE: a file that became shorter),
        ChannelBroken, MachineError; the archive is complete only without an exception.
        """
        async with self._open("archive", path) as process:
            output = OperationOutput(process)
            ended = False
            while (record := await output.record()) is not None:
                ended = record.kind is RecordKind.END
                async for piece in archive.encode(record, output):
                    yield piece
            await _finish(process, path)
            if not ended:
                raise ChannelBroken("the archive broke off")
            yield archive.END

    async def extract(self, path: str, pieces: AsyncIterator[bytes]) -> None:
        """Extract a tar archive (not compressed) into a folder that exists; the host parses it.

        Files and links replace what has their name; owners are the sandbox's user. Raises InvalidArchive, FileFailed,
        ChannelBroken, MachineError.
        """
        async with self._open("extract", path) as process:
            try:
                async for data in archive.decode(pieces):
                    await process.write(data)
                await process.write(Record(RecordKind.END).encode())
                await process.end_input()
            except ProcessEnded:
                pass  # its exit says why
            await _finish(process, path)

    async def ports(self) -> tuple[ListeningPort, ...]:
        """Return the TCP ports that programs of the sandbox listen on. Raises ChannelBroken, MachineError."""
        found: list[ListeningPort] = []
        async with self._session.open_operation(["ports"], uid=self._uid, gid=self._gid) as process:
            output = OperationOutput(process)
            while (record := await output.record()) is not None:
                if record.kind is not RecordKind.PORT:
                    raise ChannelBroken("the file operation described no port")
                if len(found) == _MAX_PORTS:
                    raise ChannelBroken(f"the sandbox told more than {_MAX_PORTS} ports")
                found.append(ListeningPort(record.path, record.size, record.uid))
            await _finish(process, "/proc/net/tcp")
        return tuple(found)

    def _open(self, name: str, path: str, *arguments: str) -> contextlib.AbstractAsyncContextManager[Process]:
        for text in (path, *arguments):
            if "\0" in text:
                raise FileFailed(errnos.EINVAL, text)
        return self._session.open_operation([name, self._root, path, *arguments], uid=self._uid, gid=self._gid)

    async def _run(self, name: str, path: str, *arguments: str) -> None:
        async with self._open(name, path, *arguments) as process:
            await _finish(process, path)


async def _events(output: OperationOutput, process: Process, path: str) -> AsyncIterator[Event]:
    while (record := await output.record()) is not None:
        if record.kind is not RecordKind.EVENT:
            raise ChannelBroken("the file operation described no event")
        yield Event(EventKind(record.type), record.path)
    await _finish(process, path)


async def _finish(process: Process, path: str) -> None:
    """Raise FileFailed unless the operation ended well, ChannelBroken when it was killed."""
    exited = await process.wait()
    if exited.exit_code is None:
        raise ChannelBroken(f"the file operation on {path} was killed (signal {exited.signal})")
    if exited.exit_code:
        raise FileFailed(exited.exit_code, path)


def _entry(record: Record | None) -> Entry:
    if record is None or record.kind not in (RecordKind.ENTRY, RecordKind.UNREADABLE):
        raise ChannelBroken("the file operation described no file")
    return Entry(
        FileType(record.type),
        record.mode,
        record.uid,
        record.gid,
        record.size,
        record.modified_ns,
        record.path,
        record.target,
        record.kind is RecordKind.ENTRY,
    )


def _flag(value: bool) -> str:
    return "1" if value else "0"
