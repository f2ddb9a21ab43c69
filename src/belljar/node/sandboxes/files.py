"""The files of a sandbox for its callers: `SandboxFiles` over the session's file operations."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import AsyncGenerator, AsyncIterator

from belljar.model.sandbox_errors import TooManyFolders
from belljar.model.sandbox_values import FileChange, FileEntry, FileEvent, FileKind, GuestUser, WriteOptions
from belljar.node.guest.file_records import EventKind, FileType
from belljar.node.guest.files import Entry, FileFailed, FileReader, Files
from belljar.node.guest.session import Session
from belljar.node.sandboxes.calls import WORK_SECONDS, Calls, check_string, check_user, patient, prompt

_KINDS = {
    FileType.FILE: FileKind.FILE,
    FileType.FOLDER: FileKind.FOLDER,
    FileType.LINK: FileKind.LINK,
    FileType.FIFO: FileKind.FIFO,
    FileType.SOCKET: FileKind.SOCKET,
}
_CHANGES = {
    EventKind.CREATE: FileChange.CREATED,
    EventKind.WRITE: FileChange.WRITTEN,
    EventKind.REMOVE: FileChange.REMOVED,
    EventKind.MOVE_FROM: FileChange.MOVED_FROM,
    EventKind.MOVE_TO: FileChange.MOVED_TO,
    EventKind.ATTRIBUTES: FileChange.ATTRIBUTES,
    EventKind.OVERFLOW: FileChange.OVERFLOW,
}
_OPTIONS = WriteOptions()


class OpenFile:
    """A file that is being read: `FileContent`."""

    def __init__(self, reader: FileReader, calls: Calls) -> None:
        self.entry = _entry(reader.entry)
        self._reader = reader
        self._calls = calls

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with self._calls.translated():
            async for piece in prompt(aiter(self._reader)):
                yield piece


class GuestFiles:
    """The files of one session. `user` is the image's."""

    def __init__(self, session: Session, calls: Calls, user: GuestUser) -> None:
        self._session = session
        self._calls = calls
        self._user = user

    def attach(self, session: Session) -> None:
        """Go on in a new session of the same machine."""
        self._session = session

    async def stat(self, path: str, *, follow: bool = True, user: GuestUser | None = None) -> FileEntry:
        async with self._calls.answered():
            return _entry(await self._files(path, user).stat(path, follow=follow))

    async def list(
        self, path: str, *, depth: int = 1, user: GuestUser | None = None
    ) -> AsyncGenerator[FileEntry, None]:
        async with (
            self._calls.admitted(),
            contextlib.aclosing(self._files(path, user).list(path, depth=depth)) as entries,
        ):
            async for entry in prompt(entries):
                yield _entry(entry)

    @contextlib.asynccontextmanager
    async def read(
        self, path: str, *, offset: int = 0, length: int | None = None, user: GuestUser | None = None
    ) -> AsyncIterator[OpenFile]:
        async with (
            self._calls.answered() as deadline,
            self._files(path, user).open_read(path, offset=offset, length=length) as reader,
        ):
            deadline.reschedule(None)  # the reader's pieces have their own
            yield OpenFile(reader, self._calls)

    async def write(
        self,
        path: str,
        pieces: AsyncIterator[bytes],
        options: WriteOptions = _OPTIONS,
        *,
        user: GuestUser | None = None,
    ) -> FileEntry:
        async with self._calls.answered() as deadline:
            files = self._files(path, user)
            writing = files.open_write(
                path,
                mode=options.mode,
                atomic=options.atomic and not options.append and options.offset is None,
                append=options.append,
                exclusive=options.exclusive,
                parents=options.parents,
                offset=options.offset,
            )
            async with writing as writer:
                async for piece in patient(pieces, deadline):
                    await writer.write(piece)
            assert writer.entry is not None
            return _entry(writer.entry)

    async def move(self, path: str, destination: str, *, replace: bool = True, user: GuestUser | None = None) -> None:
        check_string(destination, "destination")
        async with self._calls.answered():
            await self._files(path, user).move(path, destination, replace=replace)

    async def remove(self, path: str, *, recursive: bool = False, user: GuestUser | None = None) -> None:
        async with self._calls.answered(WORK_SECONDS):
            await self._files(path, user).remove(path, recursive=recursive)

    async def mkdir(
        self, path: str, *, mode: int = 0o755, parents: bool = False, user: GuestUser | None = None
    ) -> None:
        async with self._calls.answered():
            await self._files(path, user).mkdir(path, mode=mode, parents=parents)

    async def chmod(self, path: str, mode: int, *, user: GuestUser | None = None) -> None:
        async with self._calls.answered():
            await self._files(path, user).chmod(path, mode)

    @contextlib.asynccontextmanager
    async def watch(
        self, path: str, *, recursive: bool = False, user: GuestUser | None = None
    ) -> AsyncIterator[AsyncIterator[FileEvent]]:
        async with (
            self._calls.answered(WORK_SECONDS) as deadline,
            _few_folders(path),
            self._files(path, user).watch(path, recursive=recursive) as events,
        ):
            deadline.reschedule(None)  # it is watched; what happens may take any time

            async def changes() -> AsyncIterator[FileEvent]:
                with self._calls.translated():
                    async for event in events:
                        if event.kind in _CHANGES:
                            yield FileEvent(change=_CHANGES[event.kind], path=event.path)

            yield changes()

    async def archive(self, path: str, *, user: GuestUser | None = None) -> AsyncGenerator[bytes, None]:
        async with self._calls.admitted(), contextlib.aclosing(self._files(path, user).archive(path)) as pieces:
            async for piece in prompt(pieces):
                yield piece

    async def extract(self, path: str, pieces: AsyncIterator[bytes], *, user: GuestUser | None = None) -> None:
        async with self._calls.answered() as deadline:
            await self._files(path, user).extract(path, patient(pieces, deadline))

    def _files(self, path: str, user: GuestUser | None) -> Files:
        check_string(path, "path")
        who = check_user(user, self._user)
        return Files(self._session, root="/", uid=who.uid, gid=who.gid)


@contextlib.asynccontextmanager
async def _few_folders(path: str) -> AsyncIterator[None]:
    """Raise TooManyFolders where the kernel has no room for more watches, which it reports like a full disk."""
    try:
        yield
    except FileFailed as error:
        if error.errno != errno.ENOSPC:
            raise
        raise TooManyFolders(
            f"{path[:200]} has too many folders below it to watch them all; watch parts of it, or not recursively"
        ) from error


def _entry(entry: Entry) -> FileEntry:
    return FileEntry(
        path=entry.path,
        kind=_KINDS.get(entry.type, FileKind.DEVICE),
        size_bytes=entry.size,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        modified_ns=entry.modified_ns,
        target=entry.target or None,
        readable=entry.is_readable,
    )
