"""Named network namespaces, as `ip netns` creates and lists them: files below /run/netns with a namespace mounted on.

The file's name has the slot's owner and number; creating the file reserves the number. Sources: ip-netns(8), mount(2).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from belljar.model.errors import NetworkError
from belljar.node.machines.host.namespace import check, in_fresh_thread, unshare_network
from belljar.node.network.layout import NAMESPACES, namespace_name, parse_namespace_name

T = TypeVar("T")

_MS_BIND, _MS_REC, _MS_SHARED = 4096, 16384, 1 << 20
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def list_slots() -> list[tuple[str, str, int]]:
    """Return name, owner and number of every slot's namespace on this host, of any owner."""
    try:
        names = [path.name for path in NAMESPACES.iterdir()]
    except FileNotFoundError:
        return []
    return [(name, *parsed) for name in names if (parsed := parse_namespace_name(name)) is not None]


def reserve_number(owner: str, max_slots: int) -> int:
    """Reserve the lowest free number on this host by creating its file. Call it under the host's lock.

    Raises NetworkError when all are in use.
    """
    _share_namespaces_folder()
    taken = {number for _, _, number in list_slots()}
    for number in range(max_slots):
        if number not in taken:
            (NAMESPACES / namespace_name(owner, number)).touch(exist_ok=False)
            return number
    raise NetworkError(f"all {max_slots} networks are in use; run fewer jobs at once, or set a larger network_range")


def _share_namespaces_folder() -> None:
    """Make the folder a shared mount, as `ip netns add` does, so that other mount namespaces see later changes."""
    NAMESPACES.mkdir(mode=0o755, exist_ok=True)
    if _mount(None, NAMESPACES, _MS_SHARED | _MS_REC) == errno.EINVAL:  # not a mount point yet
        for source, flags in ((NAMESPACES, _MS_BIND | _MS_REC), (None, _MS_SHARED | _MS_REC)):
            if (number := _mount(source, NAMESPACES, flags)) != 0:
                raise NetworkError(f"cannot prepare {NAMESPACES}: {os.strerror(number)}")


def _mount(source: Path | None, target: Path, flags: int) -> int:
    """Mount, and return 0 or an errno."""
    source_path = str(source).encode() if source is not None else b""
    result = _libc.mount(source_path, str(target).encode(), b"none", ctypes.c_ulong(flags), None)
    return 0 if result == 0 else ctypes.get_errno()


def create(path: Path, work: Callable[[], T]) -> T:
    """Mount a new namespace on an existing file, and return the result of `work` inside it. Raises OSError."""

    def leave_and_work() -> T:
        unshare_network()
        own = Path(f"/proc/self/task/{threading.get_native_id()}/ns/net")
        if (number := _mount(own, path, _MS_BIND)) != 0:
            raise OSError(number, f"mount {path}: {os.strerror(number)}")
        return work()

    return in_fresh_thread(leave_and_work)


def remove(path: Path) -> None:
    """Unmount and remove a namespace's file; it ends with the last process in it. Idempotent. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_dev != path.parent.stat().st_dev:
            check(_libc.umount2(str(path).encode(), _MNT_DETACH), f"umount {path}")
        path.unlink()
