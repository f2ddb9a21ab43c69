"""Opens files for hypervisors so that a compromised hypervisor cannot change them.

Where belljar is not root, a hypervisor has belljar's own user id: a guest that has taken it over owns every file that
it holds open, and could make one writable (fchmod) and open it again (/proc/self/fd). So each file is opened below a
read-only mount, where the kernel refuses both with EROFS for every user. A helper process makes the mount in its own
user and mount namespaces and ends; the mount has no path and lives as long as a descriptor of it.
Under root every machine has a user id of its own, which owns no file, and files are opened directly.

Source: mount(2) on MS_REMOUNT with MS_BIND, mount_namespaces(7); mnt_want_write_file in the kernel's fs/namespace.c.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from belljar.node.machines.host.descriptors import check_descriptors
from belljar.node.machines.host.namespace import check, enter_user_namespace

_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
#: Mount flags that a remount must keep, as numbered by statvfs(3) and by mount(2).
_KEPT = (
    (os.ST_NOSUID, 2),
    (os.ST_NODEV, 4),
    (os.ST_NOEXEC, 8),
    (os.ST_NOATIME, 1024),
    (os.ST_NODIRATIME, 2048),
    (os.ST_RELATIME, 1 << 21),
)
_HELPER_SECONDS = 30
_MAX_FOLDERS = 16
_libc = ctypes.CDLL(None, use_errno=True)


class ReadOnlyFiles:
    """Opens files for hypervisors to read; most of them are below the folder `root`. All methods block."""

    def __init__(self, root: Path, *, own_user: bool | None = None) -> None:
        """`own_user`: whether hypervisors run as belljar's own user; by default when that is not root."""
        self._own_user = os.geteuid() != 0 if own_user is None else own_user
        self._root = root
        self._lock = threading.Lock()
        #: Descriptors of folders on read-only mounts.
        self._folders: OrderedDict[Path, int] = OrderedDict()

    def open(self, path: Path) -> int:
        """Return a descriptor to read the file from, the caller's to close. Raises OSError."""
        if not self._own_user:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        file = path.resolve(strict=True)
        expected = file.stat()
        with self._lock:
            for folder in self._candidates(file):
                with contextlib.suppress(FileNotFoundError):
                    descriptor = self._open_below(folder, file)
                    if is_unchangeable(descriptor) and os.path.samestat(os.fstat(descriptor), expected):
                        return descriptor
                    os.close(descriptor)
        raise OSError(f"{file} cannot be opened read-only for a machine: its folder changed meanwhile")

    def _candidates(self, file: Path) -> Iterator[Path]:
        """Return folders to try: the root if the file is below it, the file's own folder, and that with a new mount."""
        root = self._root.resolve()
        if file.is_relative_to(root):
            yield root
        yield file.parent
        self._forget(file.parent)
        yield file.parent

    def _open_below(self, folder: Path, file: Path) -> int:
        if folder not in self._folders:
            while len(self._folders) >= _MAX_FOLDERS:
                os.close(self._folders.popitem(last=False)[1])
            self._folders[folder] = read_only_folder(folder)
        self._folders.move_to_end(folder)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(file.relative_to(folder), flags, dir_fd=self._folders[folder])

    def _forget(self, folder: Path) -> None:
        descriptor = self._folders.pop(folder, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Close the mounts. Open files stay open."""
        with self._lock:
            for folder in list(self._folders):
                self._forget(folder)


def is_unchangeable(descriptor: int) -> bool:
    """Return whether the file was opened on a read-only mount."""
    return bool(os.fstatvfs(descriptor).f_flag & os.ST_RDONLY)


def read_only_folder(folder: Path) -> int:
    """Return a descriptor of the folder on a read-only mount of its own. Raises OSError."""
    check_descriptors()
    parent_end, child_end = socket.socketpair()
    with parent_end, child_end:
        parent_end.settimeout(_HELPER_SECONDS)
        code = f"import sys; from {__name__} import make_mount; make_mount(int(sys.argv[1]), sys.argv[2])"
        command = [sys.executable, "-P", "-c", code, str(child_end.fileno()), str(folder)]
        try:
            run = subprocess.run(
                command,
                pass_fds=[child_end.fileno()],
                capture_output=True,
                text=True,
                timeout=_HELPER_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise OSError(f"the read-only mount of {folder} timed out after {_HELPER_SECONDS} s") from None
        if run.returncode != 0:
            reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise OSError(f"cannot mount {folder} read-only: {reason}")
        _, (descriptor,), _, _ = socket.recv_fds(parent_end, 1, 1)
        os.set_inheritable(descriptor, False)
        return descriptor


def make_mount(channel: int, folder: str) -> None:
    """Make the mount in the helper process, and send a descriptor of it over the socket `channel`. Raises OSError."""
    enter_user_namespace()
    _mount(None, "/", _MS_REC | _MS_PRIVATE)
    _mount(folder, folder, _MS_BIND | _MS_REC)  # recursive: in a user namespace the kernel allows nothing else
    current = os.statvfs(folder).f_flag
    kept = sum(mount_flag for statvfs_flag, mount_flag in _KEPT if current & statvfs_flag)
    _mount(None, folder, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | kept)
    with socket.socket(fileno=channel) as replies:
        socket.send_fds(replies, [b"."], [os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)])


def _mount(source: str | None, target: str, flags: int) -> None:
    source_path = None if source is None else os.fsencode(source)
    check(_libc.mount(source_path, os.fsencode(target), None, ctypes.c_ulong(flags), None), f"mount {target}")
