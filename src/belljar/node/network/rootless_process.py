"""The process in which a user who is not root has slots: root in user, network and mount namespaces of its own.

    python -m belljar.node.network.rootless_process SOCKET OWNER LAYOUT

It says `ready` on the socket, or why not, and then does what it is told there until the other end is closed. Each
request brings the socket for its answer. It is belljar's own program, and talks to belljar alone. Nothing that it makes
has a name outside of it: its /run is a file system of its own.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Network
from typing import Any

from belljar.model.errors import BelljarError
from belljar.node.machines.host.namespace import become_own_root, check, inside
from belljar.node.machines.host.tap import attach_tap
from belljar.node.network.host import HostSide
from belljar.node.network.layout import TAP, Layout, layout_of
from belljar.node.network.policy import NetworkRule
from belljar.node.network.slot import Slot

_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_MAX_REQUEST_BYTES = 256 * 1024
_AT_ONCE = 8
_libc = ctypes.CDLL(None, use_errno=True)

Answer = tuple[dict[str, Any], list[int]]


class RootlessHelper:
    """Does what it is told; verbs are methods. Each answers with values and with descriptors, which are closed then."""

    def __init__(self, owner: str, layout: Layout) -> None:
        self._owner = owner
        self._layout = layout
        self._host: HostSide | None = None
        self._slots: dict[int, Slot] = {}

    def verbs(self) -> dict[str, Callable[..., Answer]]:
        each = (self.open, self.make, self.open_for, self.run, self.read, self.remove)
        return {method.__name__: method for method in each}

    def open(self, excepted: list[tuple[str, int | None]]) -> Answer:
        rules = [NetworkRule(IPv4Network(network), port) for network, port in excepted]
        self._host = HostSide(self._owner, self._layout, rules)
        self._host.open()
        return {}, []

    def make(self) -> Answer:
        assert self._host is not None
        slot = self._host.make_slot()
        self._slots[slot.number] = slot
        tap = inside(slot.path, lambda: attach_tap(TAP))
        ears = [slot.ears.udp.detach(), slot.ears.tcp.detach()]
        return {"number": slot.number, "namespace": str(slot.path)}, [*ears, tap]

    def open_for(self, number: int, commands: str, mbit: float | None) -> Answer:
        self._slots[number].open_by(commands, mbit)
        return {}, []

    def run(self, number: int, commands: str) -> Answer:
        self._slots[number].run(commands)
        return {}, []

    def read(self, number: int) -> Answer:
        passed, counters, refused_to = self._slots[number].read()
        return {"bytes": passed, "counters": counters, "refused_to": refused_to}, []

    def remove(self, number: int) -> Answer:
        self._slots[number].remove()
        del self._slots[number]
        return {}, []


def _answer(work: Callable[[], Answer], replies: socket.socket) -> None:
    descriptors: list[int] = []
    with replies:
        try:
            answer, descriptors = work()
        except BelljarError as error:
            answer = {"error": error.message}
        except Exception as error:  # noqa: BLE001 (whoever asked is told)
            answer = {"error": f"{type(error).__name__}: {error}"}
        try:
            socket.send_fds(replies, [json.dumps(answer).encode()], descriptors)
        except OSError:
            pass  # who asked waits no more
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _serve(control: socket.socket, root: RootlessHelper) -> None:
    verbs = root.verbs()
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        while True:
            request, descriptors, _, _ = socket.recv_fds(control, _MAX_REQUEST_BYTES, 1)
            if not request:
                return
            asked = json.loads(request)
            work = functools.partial(verbs[asked.pop("verb")], **asked)
            threads.submit(_answer, work, socket.socket(fileno=descriptors[0]))


def _have_own_run() -> None:
    """A /run of this process's own: names of namespaces, and what belljar notes of a host's state."""
    check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "mount /")
    check(_libc.mount(b"none", b"/run", b"tmpfs", ctypes.c_ulong(0), b"mode=755"), "mount /run")


def main() -> None:
    """Be the process."""
    channel, owner, layout = sys.argv[1:]
    with socket.socket(fileno=int(channel)) as control:
        try:
            become_own_root()
            _have_own_run()
        except OSError as error:
            control.send(str(error).encode())
            return
        control.send(b"ready")
        _serve(control, RootlessHelper(owner, layout_of(json.loads(layout))))
    # What is left goes with the namespaces, and the kernel ends those with this process.
    os._exit(0)


if __name__ == "__main__":
    main()
