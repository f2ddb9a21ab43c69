"""Work in another network namespace, in a thread of its own: the process itself never changes its namespaces.

Only a process started for that purpose enters a user namespace. There it is root over its own namespaces, and has no
power over the rest of the host (user_namespaces(7)).

Source: setns(2), network_namespaces(7). Python has os.setns only from 3.12 on.
"""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> None:
    """Raise OSError if a call of the C library failed; `what` names the call."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def in_fresh_thread(work: Callable[[], T]) -> T:
    """Return the result of `work` from a new thread, which may change its namespaces: they end with it. Blocks.

    Raises OSError when no thread can be started.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 (raised again in the thread that waits)
            errors.append(error)

    thread = threading.Thread(target=run, name="belljar-namespace", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, f"no thread can be started: {os.strerror(errno.EAGAIN)}") from error
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def run_in_namespace(namespace: Path, work: Callable[[], T]) -> T:
    """Return the result of `work`, called in the network namespace mounted at that path. Blocks. Raises OSError."""

    def enter_and_work() -> T:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            check(_libc.setns(descriptor, _CLONE_NEWNET), f"setns {namespace}")
        finally:
            os.close(descriptor)
        return work()

    return in_fresh_thread(enter_and_work)


def unshare_network() -> None:
    """Move the calling thread, which must be new, into a new network namespace. Raises OSError."""
    check(_libc.unshare(_CLONE_NEWNET), "unshare")


def enter_user_namespace() -> None:
    """Move this process, which must have one thread, into new user, network and mount namespaces, as root there.

    Raises OSError where the host does not let its users do so.
    """
    uid, gid = os.geteuid(), os.getegid()
    check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWNS), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
