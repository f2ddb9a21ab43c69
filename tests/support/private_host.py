"""A network of the tests' own in place of the host's: interfaces, rules, forwarding and the folders that name them.

Tests of networks make interfaces and rules on "the host" and compare it before and after. In a network namespace of
their own they disturb neither this machine nor another test run beside them. Source: unshare(2), setns(2).
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from belljar.node.machines.host.threads import machine_threads

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000
#: Folders in which belljar and ip(8) keep what belongs to one network namespace.
_FOLDERS = (Path("/run/netns"), Path("/run/belljar/network"))
_libc = ctypes.CDLL(None, use_errno=True)


class PrivateHost:
    """A network namespace, and a mount namespace that this whole process is in from now on."""

    def __init__(self) -> None:
        """Raises OSError where namespaces may not be made."""
        self._shared = os.open("/proc/self/ns/net", os.O_RDONLY)
        _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET), "unshare")
        self._own = os.open("/proc/self/ns/net", os.O_RDONLY)
        subprocess.run(["mount", "--make-rslave", "/"], check=True, timeout=20)
        for folder in _FOLDERS:
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tests", folder], check=True, timeout=20)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True, timeout=20)
        self._switch(self._shared)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be in the private network: this thread, and the threads and processes that it starts.

        The threads of machines and networks are new ones meanwhile: those that exist are in the other network.
        """
        executor = machine_threads._executor
        machine_threads._executor = ThreadPoolExecutor(executor._max_workers)
        self._switch(self._own)
        try:
            yield
        finally:
            self._switch(self._shared)
            machine_threads._executor.shutdown()
            machine_threads._executor = executor

    def _switch(self, namespace: int) -> None:
        _check(_libc.setns(namespace, _CLONE_NEWNET), "setns")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
