"""The folder that is one machine's whole world: what its process sees of the host's files, and nothing else.

As root it is the jailer's chroot, `DATA_DIR/run/jails/NAME/ID/root`. What is shared between machines is linked into it,
or bound read-only in a mount namespace that ends with the machine; what is its own lies in it. The process owns the
folder and may be the guest's by now, so nothing in it is opened by name after the start: descriptors are kept.
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
from belljar.settings.storage import StorageSettings
from belljar.system.host_errors import host_errors

log = structlog.get_logger()

# Names in the folder. The process runs in it, and they are relative, so that a snapshot holds in every folder.
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Folder:
    """A machine's folder, and whom its process runs as (None: as belljar itself)."""

    path: Path
    #: A descriptor of it, which stays good whatever its name is.
    descriptor: int
    uid: int | None
    #: What is bound into it read-only: name → the host's file.
    bound: dict[str, Path] = field(default_factory=dict)

    def show(self, name: str, source: Path) -> None:
        """Show the process a file of the host, read-only: by a hard link, else by a mount. Raises HostError.

        A file that others may not read is copied.
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
        """A link costs half a millisecond less than a mount; the process must not be able to change the file."""
        status = source.stat()
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            return False
        try:
            os.link(source.resolve(strict=True), name, dst_dir_fd=self.descriptor)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EMLINK, errno.EPERM):  # elsewhere, too many, or no links at all
                return False
            raise
        return True

    def write(self, name: str, data: bytes) -> None:
        """A file of the machine's own, which its process may read. Raises HostError, DiskFull."""
        with (
            self.created(name) as descriptor,
            host_errors("write a machine's files"),
            os.fdopen(descriptor, "wb", closefd=False) as file,
        ):
            file.write(data)
        self.give(name, 0o400)

    @contextlib.contextmanager
    def created(self, name: str, size: int = 0) -> Iterator[int]:
        """A new file of the machine's own and a descriptor of it; `size` zeros. Raises HostError, DiskFull."""
        with host_errors("write a machine's files"):
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
        """Let the process have a file: to read (0o400) or to write too (0o600)."""
        os.chmod(name, mode, dir_fd=self.descriptor)
        if self.uid is not None:
            os.chown(name, self.uid, self.uid, dir_fd=self.descriptor)

    def check_own(self, *names: str) -> None:
        """Raises HostError for what is no plain file of the machine's own: a link to something else, perhaps."""
        for name in names:
            status = os.lstat(name, dir_fd=self.descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
                raise HostError(f"{name} of a machine is not what it should be; something tampers with it")

    def take(self, file: Path) -> None:
        """Make a file that the process wrote belljar's own, for other machines to read."""
        if self.uid is not None:
            os.chown(file, os.geteuid(), os.getegid())
        file.chmod(0o444)

    def pipe(self, name: str) -> int:
        """A named pipe that the process writes to; returns our descriptor of it, for the caller to close."""
        with host_errors("write a machine's files"):
            os.mkfifo(name, 0o600, dir_fd=self.descriptor)
            self.give(name, 0o600)
            # For writing too: it then never comes to an end, and the process never finds it without a reader.
            return os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.descriptor)


def jails(settings: StorageSettings) -> Path:
    """The folder of all machines' folders: the jailer's --chroot-base-dir."""
    return settings.paths.jails


@asynccontextmanager
async def machine_folder(base: Path, name: str, machine_id: str, uid: int | None) -> AsyncIterator[Folder]:
    """A folder for one machine, gone with all that is in it at the end. Raises HostError, DiskFull."""
    place = base / name / machine_id
    path = place / "root"
    with host_errors("write a machine's files"):
        for each in (base, base / name):
            each.mkdir(parents=True, exist_ok=True, mode=0o755)
        place.mkdir(mode=0o755)
    descriptor = -1
    try:
        with host_errors("write a machine's files"):
            path.mkdir(mode=0o700)
            descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        yield Folder(path=path, descriptor=descriptor, uid=uid)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
        await in_thread(_remove, place)


def _remove(place: Path) -> None:
    try:
        shutil.rmtree(place)
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("machine_folder_left", folder=str(place), error=str(error))


def clear_folders(base: Path) -> int:
    """Remove the folders of machines whose owners are dead, and end what still runs in them; returns how many."""
    removed = 0
    for place in sorted(base.glob("*/*")) if base.is_dir() else ():
        owner, dash, _ = place.name.rpartition("-")
        if dash and is_dead(owner) and not place.is_symlink():
            _end_inhabitants(place / "root")
            _remove(place)
            removed += 1
    return removed


def _end_inhabitants(root: Path) -> None:
    """Kill every process whose root directory this is: what a jailer's parent left when it was killed."""
    try:
        wanted = root.lstat()  # of a link that was put in its place: nobody's root directory
    except OSError:
        return
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if os.path.samestat((process / "root").stat(), wanted):
                os.kill(int(process.name), signal.SIGKILL)
