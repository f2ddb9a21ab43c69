"""Named network namespaces, as `ip netns` makes and shows them: a file below /run/netns that one is mounted on.

The file's name says whose it is; making it is how a number is taken. Source: ip-netns(8), mount(2).
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
from belljar.node.machines.host.namespace import check, in_fresh_thread, leave_to_new
from belljar.node.network.layout import NAMESPACES, namespace_name, parse_namespace_name

T = TypeVar("T")

_MS_BIND, _MS_REC, _MS_SHARED = 4096, 16384, 1 << 20
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def all_slots() -> list[tuple[str, str, int]]:
    """Name, owner and number of every namespace of a slot on this host, whoever owns it."""
    try:
        names = [path.name for path in NAMESPACES.iterdir()]
    except FileNotFoundError:
        return []
    return [(name, *parsed) for name in names if (parsed := parse_namespace_name(name)) is not None]


def reserve(owner: str, most: int) -> int:
    """Take the lowest number that no slot on this host has, by making its file; to be called under the host's lock.

    Raises NetworkError when all are taken.
    """
    _prepare_folder()
    taken = {number for _, _, number in all_slots()}
    for number in range(most):
        if number not in taken:
            (NAMESPACES / namespace_name(owner, number)).touch(exist_ok=False)
            return number
    raise NetworkError(f"all {most} networks are taken; run fewer jobs at once, or set network_range to a larger one")


def _prepare_folder() -> None:
    """What `ip netns add` does: mounts below are to be seen by other mount namespaces, and their removal too."""
    NAMESPACES.mkdir(mode=0o755, exist_ok=True)
    if _mount(None, NAMESPACES, _MS_SHARED | _MS_REC) == errno.EINVAL:  # no mount point of its own yet
        for source, flags in ((NAMESPACES, _MS_BIND | _MS_REC), (None, _MS_SHARED | _MS_REC)):
            if (number := _mount(source, NAMESPACES, flags)) != 0:
                raise NetworkError(f"cannot prepare {NAMESPACES}: {os.strerror(number)}")


def _mount(source: Path | None, target: Path, flags: int) -> int:
    """0 or an errno."""
    given = str(source).encode() if source is not None else b""
    result = _libc.mount(given, str(target).encode(), b"none", ctypes.c_ulong(flags), None)
    return 0 if result == 0 else ctypes.get_errno()


def make(path: Path, work: Callable[[], T]) -> T:
    """Mount a new namespace on a file that is there and return what `work` returns inside of it. Raises OSError."""

    def leave_and_work() -> T:
        leave_to_new()
        own = Path(f"/proc/self/task/{threading.get_native_id()}/ns/net")
        if (number := _mount(own, path, _MS_BIND)) != 0:
            raise OSError(number, f"mount {path}: {os.strerror(number)}")
        return work()

    return in_fresh_thread(leave_and_work)


def remove(path: Path) -> None:
    """Unmount and remove a namespace's file; the kernel ends it once nobody is in it. Idempotent. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_dev != path.parent.stat().st_dev:
            check(_libc.umount2(str(path).encode(), _MNT_DETACH), f"umount {path}")
        path.unlink()
