"""The helper process of rootless.py: root in user, network and mount namespaces of its own.

    python -m belljar.node.network.rootless_process SOCKET OWNER LAYOUT

It sends `ready` or an error message on the socket, then serves requests until the other end is closed. Each request
carries the socket for its reply. It serves only the belljar process that started it, and its /run is a file system of
its own, so that nothing it creates has a name outside.
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
from belljar.node.machines.host.namespace import check, enter_user_namespace, run_in_namespace
from belljar.node.machines.host.tap import attach_tap
from belljar.node.network.flows.reading import reading_to_json
from belljar.node.network.kernel_backend import KernelBackend
from belljar.node.network.layout import TAP, Layout, layout_from_json
from belljar.node.network.policy import NetworkRule
from belljar.node.network.slot import KernelSlot

_MS_REC, _MS_PRIVATE = 16384, 1 << 18
_MAX_REQUEST_BYTES = 256 * 1024
_MAX_THREADS = 8
_libc = ctypes.CDLL(None, use_errno=True)

Reply = tuple[dict[str, Any], list[int]]


class RootlessHelper:
    """The helper's side of RootlessBackend: one method for each request.

    A method returns JSON values, and descriptors that are closed once sent.
    """

    def __init__(self, owner: str, layout: Layout) -> None:
        self._owner = owner
        self._layout = layout
        self._backend: KernelBackend | None = None
        self._slots: dict[int, KernelSlot] = {}

    def methods(self) -> dict[str, Callable[..., Reply]]:
        """Return the methods that a request may name."""
        methods = (self.open, self.create, self.apply_policy, self.run, self.read, self.read_flows, self.remove)
        return {method.__name__: method for method in methods}

    def open(self, exceptions: list[tuple[str, int | None]]) -> Reply:
        """Open the backend with these private exceptions, as pairs of network and port."""
        rules = [NetworkRule(IPv4Network(network), port) for network, port in exceptions]
        self._backend = KernelBackend(self._owner, self._layout, rules)
        self._backend.open()
        return {}, []

    def create(self) -> Reply:
        """Create a slot; return its number, its namespace and the descriptors of its DNS sockets and TAP."""
        assert self._backend is not None
        slot = self._backend.create_slot()
        self._slots[slot.number] = slot
        tap = run_in_namespace(slot.path, lambda: attach_tap(TAP))
        dns_sockets = [slot.dns_sockets.udp.detach(), slot.dns_sockets.tcp.detach()]
        return {"number": slot.number, "namespace": str(slot.path)}, [*dns_sockets, tap]

    def apply_policy(self, number: int, commands: str, mbit: float | None) -> Reply:
        """Apply the commands of a policy to a slot."""
        self._slots[number].apply_commands(commands, mbit)
        return {}, []

    def run(self, number: int, commands: str) -> Reply:
        """Run nftables commands in a slot."""
        self._slots[number].run(commands)
        return {}, []

    def read(self, number: int) -> Reply:
        """Return the arguments of `parse_traffic` for a slot."""
        tap_bytes, counters, refused_destinations = self._slots[number].read_counters()
        return {"bytes": tap_bytes, "counters": counters, "refused_destinations": refused_destinations}, []

    def read_flows(self, number: int) -> Reply:
        """Return the flows of a slot, for `reading_from_json`."""
        return reading_to_json(self._slots[number].read_flows()), []

    def remove(self, number: int) -> Reply:
        """Remove a slot."""
        self._slots[number].remove()
        del self._slots[number]
        return {}, []


def _send_reply(work: Callable[[], Reply], replies: socket.socket) -> None:
    descriptors: list[int] = []
    with replies:
        try:
            reply, descriptors = work()
        except BelljarError as error:
            reply = {"error": error.message}
        except Exception as error:  # noqa: BLE001 (sent to the caller)
            reply = {"error": f"{type(error).__name__}: {error}"}
        try:
            socket.send_fds(replies, [json.dumps(reply).encode()], descriptors)
        except OSError:
            pass  # the caller has stopped waiting
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


def _serve(control: socket.socket, helper: RootlessHelper) -> None:
    methods = helper.methods()
    with ThreadPoolExecutor(_MAX_THREADS) as threads:
        while True:
            request, descriptors, _, _ = socket.recv_fds(control, _MAX_REQUEST_BYTES, 1)
            if not request:
                return
            request_fields = json.loads(request)
            work = functools.partial(methods[request_fields.pop("method")], **request_fields)
            threads.submit(_send_reply, work, socket.socket(fileno=descriptors[0]))


def _mount_own_run() -> None:
    """Mount an own /run, which holds the namespaces' names and belljar's shared state."""
    check(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "mount /")
    check(_libc.mount(b"none", b"/run", b"tmpfs", ctypes.c_ulong(0), b"mode=755"), "mount /run")


def main() -> None:
    """Run the helper."""
    channel, owner, layout = sys.argv[1:]
    with socket.socket(fileno=int(channel)) as control:
        try:
            enter_user_namespace()
            _mount_own_run()
        except OSError as error:
            control.send(str(error).encode())
            return
        control.send(b"ready")
        _serve(control, RootlessHelper(owner, layout_from_json(json.loads(layout))))
    # The kernel removes the namespaces, and everything in them, when this process exits.
    os._exit(0)


if __name__ == "__main__":
    main()
