"""Opens the TAP device of a machine's network slot, inside the slot's namespace.

A hypervisor needs only the descriptor, so it can run in a jail without any network.
Source: the kernel's Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from belljar.model.errors import HostError
from belljar.node.machines.host.descriptors import check_descriptors
from belljar.node.machines.host.namespace import (
    enter_user_namespace,
    in_fresh_thread,
    run_in_namespace,
    unshare_network,
)
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import GUEST_MAC, NetworkSlot

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_ISOLATED_TAP = "tap0"
_HELPER_SECONDS = 30
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


def open_tap(slot: NetworkSlot) -> int:
    """Return a descriptor of the slot's TAP device, the caller's to close. Blocks for 0.1 ms. Raises HostError."""
    try:
        if slot.device is not None:
            return os.dup(slot.device)
        return run_in_namespace(Path(slot.namespace), lambda: attach_tap(slot.tap))
    except OSError as error:
        raise HostError(f"cannot open the machine's network device: {error}") from error


async def enter_tap(slot: NetworkSlot | None, stack: AsyncExitStack) -> int | None:
    """Return a descriptor of the slot's TAP device, closed with `stack`; None without a slot. Raises HostError."""
    return None if slot is None else await _enter(lambda: open_tap(slot), stack)


async def enter_isolated_tap(stack: AsyncExitStack) -> int:
    """Return a TAP device for a snapshot source, alone in a namespace that ends with the descriptor.

    Each clone gets the device of its own slot, which is of the same kind to QEMU. Raises HostError.
    """

    def make() -> int:
        unshare_network()
        return attach_tap(_ISOLATED_TAP)

    work = (lambda: in_fresh_thread(make)) if os.geteuid() == 0 else _make_in_helper
    try:
        return await _enter(work, stack)
    except OSError as error:
        raise HostError(f"cannot make a network device for a snapshot: {error}") from error


async def enter_isolated_slot(stack: AsyncExitStack) -> NetworkSlot:
    """Return a slot with such a device, for a hypervisor that opens its device itself; it ends with `stack`.

    Its namespace has no name. Raises HostError.
    """

    def make() -> int:
        unshare_network()
        os.close(attach_tap(_ISOLATED_TAP, persist=True))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    try:
        namespace = await _enter(lambda: in_fresh_thread(make), stack)
    except OSError as error:
        raise HostError(f"cannot make a network device for a snapshot: {error}") from error
    return NetworkSlot(
        namespace=Path(f"/proc/{os.getpid()}/fd/{namespace}"),
        tap=_ISOLATED_TAP,
        guest_mac=GUEST_MAC,
        guest_address="",
        gateway="",
        nameservers=(),
    )


def _make_in_helper() -> int:
    """Return such a device from a helper process that is root in its own user namespace. Blocks. Raises OSError."""
    check_descriptors()
    parent_end, child_end = socket.socketpair()
    with parent_end, child_end:
        parent_end.settimeout(_HELPER_SECONDS)
        code = f"import sys; from {__name__} import send_isolated_tap; send_isolated_tap(int(sys.argv[1]))"
        command = [sys.executable, "-P", "-c", code, str(child_end.fileno())]
        run = subprocess.run(
            command, pass_fds=[child_end.fileno()], capture_output=True, text=True, timeout=_HELPER_SECONDS, check=False
        )
        if run.returncode != 0:
            raise OSError((run.stderr.strip().splitlines() or ["no reason given"])[-1])
        _, (descriptor,), _, _ = socket.recv_fds(parent_end, 1, 1)
        os.set_inheritable(descriptor, False)
        return descriptor


def send_isolated_tap(channel: int) -> None:
    """Make the device in the helper process, and send its descriptor over the socket `channel`. Raises OSError."""
    enter_user_namespace()
    with socket.socket(fileno=channel) as replies:
        socket.send_fds(replies, [b"."], [attach_tap(_ISOLATED_TAP)])


async def _enter(work: Callable[[], int], stack: AsyncExitStack) -> int:
    """Return the descriptor that blocking `work` opens, closed with `stack`."""
    descriptor = await uninterrupted(in_thread(work), os.close)
    stack.callback(os.close, descriptor)
    return descriptor


def attach_tap(name: str, *, persist: bool = False) -> int:
    """Return a descriptor of the TAP device `name` in the calling thread's namespace; make it if it is missing.

    `persist`: the device stays after the descriptor is closed. Frames carry a virtio header, so that each end may
    leave checksums and segmentation to the other. Raises OSError.
    """
    descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        if persist:
            fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
