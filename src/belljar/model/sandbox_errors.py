"""The errors of calls to a sandbox.

The first paragraph of each docstring, "cause; what to do", is the class's entry in docs/errors.md.
"""

from __future__ import annotations

import errno as errnos
import os

from belljar.model.errors import BelljarError, Conflict, HostError, InvalidOption, NotFound


class SandboxEnded(Conflict):
    """The sandbox has ended, `reason` says why; create another one."""

    code = "sandbox_ended"


class SandboxPaused(Conflict):
    """The sandbox is paused, or is being paused; resume it first."""

    code = "sandbox_paused"


class SandboxNotReady(Conflict):
    """The machine of the sandbox is being started; wait until its status is running."""

    code = "sandbox_not_ready"


class SandboxUnreachable(HostError):
    """The node of the sandbox cannot be reached from this server now; try again."""

    code = "sandbox_unreachable"


class NoRoom(HostError):
    """No node has room for the machine; try again after `retry_after` seconds, end other sandboxes, or ask for less."""

    code = "no_room"


class NoSandboxNode(BelljarError):
    """This server runs without a worker and has no sandboxes; use a server that was started without --no-worker."""

    code = "no_sandbox_node"
    status = 501


class TooManySandboxes(BelljarError):
    """The project has as many sandboxes as it may; end some, or have the setting max_sandboxes_per_project raised."""

    code = "too_many_sandboxes"
    status = 429


class TooManySnapshots(BelljarError):
    """The project has as many snapshots as it may; delete some, or have max_snapshots_per_project raised."""

    code = "too_many_snapshots"
    status = 429


class SnapshotUnusable(Conflict):
    """What was kept of the sandbox is damaged, not on the node, or of another hypervisor; delete it, create another."""

    code = "snapshot_unusable"


class SecretsInMemory(Conflict):
    """The sandbox has secrets, whose values are in its memory; send `"secrets": "keep"` to have them copied with it."""

    code = "secrets_in_memory"


class StreamBroken(BelljarError):
    """A stream of the sandbox broke off: what came until then is not all, its end is unknown; look and try again."""

    code = "stream_broken"
    status = 502


class ProcessNotFound(NotFound):
    """The sandbox has no command of this number, or has forgotten it; list its processes."""

    code = "process_not_found"


class ProcessEnded(Conflict):
    """The command has ended: it takes no input and no signal; read its exit."""

    code = "process_ended"


class TooManyProcesses(BelljarError):
    """The sandbox runs as many commands or connections as it may; end one first."""

    code = "too_many_processes"
    status = 429


class ContextNotFound(NotFound):
    """The sandbox has no context of this id, or it was deleted; list its contexts, or create one."""

    code = "context_not_found"


class ContextBusy(Conflict):
    """The context runs code; wait for its end, interrupt it, or use another context."""

    code = "context_busy"


class ContextDied(Conflict):
    """The process of the context has ended, and its variables are lost; the message says how; restart or delete it."""

    code = "context_died"


class TooManyContexts(BelljarError):
    """The sandbox has as many contexts as it may; delete one first."""

    code = "too_many_contexts"
    status = 429


class CannotStart(InvalidOption):
    """The machine could not start the command: no such program, folder or permission; correct args, cwd or user."""

    code = "cannot_start"


class PortRefused(BelljarError):
    """No program of the sandbox accepts connections on the port, or the connection was lost; start one, list ports."""

    code = "port_refused"
    status = 502


class InvalidArchive(BelljarError):
    """The upload is no tar archive, is damaged, or has members that lead out of the folder; correct the archive."""

    code = "invalid_archive"
    status = 422


class FileError(BelljarError):
    """A file operation failed in the sandbox; `errno` has Linux's name of the cause; correct the path or its mode."""

    code = "file_error"
    status = 422

    def __init__(self, path: str, number: int) -> None:
        shown = path.encode(errors="replace").decode()[:200]
        super().__init__(f"{shown}: {os.strerror(number)}", errno=errnos.errorcode.get(number, str(number)))
        self.number = number


class FileMissing(FileError):
    """The sandbox has no file of this path; list its folder."""

    code = "file_not_found"
    status = 404


class FileForbidden(FileError):
    """The user may not do this with the file, or the file system is read-only; use another user or path."""

    code = "file_forbidden"
    status = 403


class FileConflict(FileError):
    """There is something else at the path: a file, a folder, or entries in it; remove it first, or allow to replace."""

    code = "file_conflict"
    status = 409


class FileDiskFull(FileError):
    """The sandbox's disk or memory for files is full; remove files, or create it with a larger disk_mb."""

    code = "file_disk_full"
    status = 507


class TooManyFolders(BelljarError):
    """The folder has more folders below it than can be watched; watch parts of it, or not recursively."""

    code = "too_many_folders"
    status = 422


_KINDS: dict[int, type[FileError]] = {
    errnos.ENOENT: FileMissing,
    errnos.EACCES: FileForbidden,
    errnos.EPERM: FileForbidden,
    errnos.EROFS: FileForbidden,
    errnos.EEXIST: FileConflict,
    errnos.EISDIR: FileConflict,
    errnos.ENOTDIR: FileConflict,
    errnos.ENOTEMPTY: FileConflict,
    errnos.ETXTBSY: FileConflict,
    errnos.ENOSPC: FileDiskFull,
    errnos.EDQUOT: FileDiskFull,
}


def file_error(path: str, number: int) -> FileError:
    """Return the error for a failed file operation with the guest's errno."""
    return _KINDS.get(number, FileError)(path, number)


def classes() -> list[type[BelljarError]]:
    """Return the classes of this module, each with a code of its own."""
    return [each for each in globals().values() if isinstance(each, type) and each.__module__ == __name__]
