"""The folder of one machine: the only files of the host that its process sees.

As root it is the jailer's chroot, `DATA_DIR/run/jails/NAME/ID/root`. Files shared between machines are hard links, or
read-only mounts in a mount namespace that ends with the machine; the machine's own files are in the folder. The process
owns the folder, and the guest may have taken it over, so nothing is opened by name after the start: descriptors are
kept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from belljar.model.errors import HostError
from belljar.node.machines.host.owner import is_dead
from belljar.node.machines.host.threads import in_thread
from belljar.system.host_errors import host_errors

log = structlog.get_logger()

# Names in the folder. They are relative to the process's working directory, so a snapshot works in every folder.
KERNEL = "kernel"
INITRAMFS = "initramfs"
ROOT = "root.img"
SCRIPT = "script.img"
SCRATCH = "scratch.img"
CONFIG = "config.json"
API = "api.sock"
VSOCK = "vsock.sock"
LOG = "log"
STATE = "state"
MEMORY = "memory"
#: What a machine that is frozen again writes: the names above are those of what it was restored from.
FROZEN_STATE = "frozen.state"
FROZEN_MEMORY = "frozen.memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """A machine's folder, and the user id of its process (None: belljar's own)."""

    path: Path
    #: A descriptor of it, which stays valid when the path changes.
    descriptor: int
    uid: int | None
    #: The host's files that are mounted in it read-only, by name.
    bound: dict[str, Path] = field(default_factory=dict)

    def show(self, name: str, source: Path) -> None:
        """Show the process a file of the host, read-only: by a hard link, else by a mount. Raises HostError.

        A file that other users may not read is copied.
        """
        try:
            if self.uid is None:
                self.bound[name] = source.resolve(strict=True)
            elif not source.stat().st_mode & stat.S_IROTH:
                shutil.copyfile(source, self.path / name)
                self.give(name, 0o400)
            elif not self._link(name, source):
                self.bound[name] = source.resolve(strict=True)
        except OSError as error:
            raise HostError(
                f"cannot read {source}: {error.strerror}; build the image or upload the script again"
            ) from error

    def _link(self, name: str, source: Path) -> bool:
        """Make a hard link, if the process cannot change the file then; return whether it was made.

        A link costs half a millisecond less than a mount.
        """
        status = source.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return False
        try:
            os.link(source.resolve(strict=True), name, dst_dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EMLINK, errno.EPERM):  # other file system, too many, none allowed
                return False
            raise
        return True

    def write(self, name: str, data: bytes) -> None:
        """Write a file of the machine's own, which its process may read. Raises HostError, DiskFull."""
        with self.created(name) as descriptor, host_errors(f"write a machine's files in {self.path}"):
            _write_all(descriptor, data)
        self.give(name, 0o400)

    @contextlib.contextmanager
    def created(self, name: str, size: int = 0) -> Iterator[int]:
        """Make a file of `size` zeros and provide a descriptor of it. Raises HostError, DiskFull."""
        with host_errors(f"write a machine's files in {self.path}"):
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.descriptor)
            try:
                os.ftruncate(descriptor, size)
            except OSError:
                os.close(descriptor)
                raise
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def give(self, name: str, mode: int) -> None:
        """Give the process a file with this mode: 0o400 to read, 0o600 to write too."""
        os.chmod(name, mode, dir_fd=self.descriptor)
        if self.uid is not None:
            os.chown(name, self.uid, self.uid, dir_fd=self.descriptor)

    def check_own(self, *names: str) -> None:
        """Raise HostError for a name that is no plain file of the machine's own, such as a link to another file."""
        for name in names:
            status = os.lstat(name, dir_fd=self.descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise HostError(f"unexpected file type or link count of {name} in the jail directory")

    @contextlib.contextmanager
    def opened(self, name: str) -> Iterator[int]:
        """Provide a descriptor that reads a plain file of the machine's own. Raises HostError for another kind."""
        self.check_own(name)
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.descriptor)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def has(self, name: str) -> bool:
        """Return whether there is something of this name."""
        try:
            os.lstat(name, dir_fd=self.descriptor)
        except FileNotFoundError:
            return False
        return True

    def remove(self, *names: str) -> None:
        """Remove files if they are there."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self.descriptor)

    def take_ownership(self, file: Path) -> None:
        """Make belljar the owner of a file that the process wrote, for other machines to read."""
        if self.uid is not None:
            os.chown(file, os.geteuid(), os.getegid())
        file.chmod(0o444)

    def pipe(self, name: str) -> int:
        """Make a named pipe that the process writes to; return a descriptor of it, the caller's to close."""
        with host_errors(f"write a machine's files in {self.path}"):
            os.mkfifo(name, 0o600, dir_fd=self.descriptor)
            self.give(name, 0o600)
            # Opened for writing too, so it never reaches its end and the process always finds a reader.
            return os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(data)


@asynccontextmanager
async def machine_folder(base: Path, name: str, machine_id: str, uid: int | None) -> AsyncIterator[Folder]:
    """Make a folder for one machine, and remove it with its contents at the end. Raises HostError, DiskFull."""
    parent = base / name / machine_id
    path = parent / "root"
    with host_errors(f"write a machine's files in {base}"):
        for folder in (base, base / name):
            folder.mkdir(parents=True, exist_ok=True, mode=0o755)
        parent.mkdir(mode=0o755)
    descriptor = -1
    try:
        with host_errors(f"write a machine's files in {base}"):
            path.mkdir(mode=0o700)
            descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        yield Folder(path=path, descriptor=descriptor, uid=uid)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        await in_thread(_remove, parent)


def _remove(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("machine_folder_removal_failed", folder=str(folder), error=str(error))


def clear_folders(base: Path) -> int:
    """Remove the folders of dead owners' machines, kill processes that run in them, and return the number removed."""
    removed = 0
    for folder in sorted(base.glob("*/*")) if base.is_dir() else ():
        owner, dash, _ = folder.name.rpartition("-")
        if dash and is_dead(owner) and not folder.is_symlink():
            _kill_processes(folder / "root")
            _remove(folder)
            removed += 1
    return removed


def _kill_processes(root: Path) -> None:
    """Kill every process with this root directory: they remain when a jailer's parent was killed."""
    try:
        expected = root.lstat()  # a link in its place is no process's root directory
    except OSError:
        return
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if os.path.samestat((process / "root").stat(), expected):
                os.kill(int(process.name), signal.SIGKILL)
