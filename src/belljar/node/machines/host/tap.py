"""The machine's end of a network slot: its TAP device, opened inside the slot's namespace.

The descriptor is all that a hypervisor needs; it may sit in a jail without any network.
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
from belljar.node.machines.host.faults import check_descriptors
from belljar.node.machines.host.namespace import become_own_root, in_fresh_thread, inside, leave_to_new
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import GUEST_MAC, NetworkSlot

_DEVICE = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_DEAD_END = "tap0"
_MAKER_SECONDS = 30
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000


def open_tap(slot: NetworkSlot) -> int:
    """A descriptor of the slot's TAP device, the caller's to close. Blocks for about 0.1 ms. Raises HostError."""
    try:
        if slot.device is not None:
            return os.dup(slot.device)
        return inside(Path(slot.namespace), lambda: attach_tap(slot.tap))
    except OSError as error:
        raise HostError(f"cannot open the machine's network device: {error}") from error


async def opened_tap(slot: NetworkSlot | None, stack: AsyncExitStack) -> int | None:
    """The same, closed with `held`; None without a slot. Raises HostError."""
    return None if slot is None else await _opened(lambda: open_tap(slot), stack)


async def dead_end(stack: AsyncExitStack) -> int:
    """A TAP device for a template, whose network leads nowhere: alone in a namespace that goes with the descriptor.

    Its clones are given others; to QEMU they are the same kind of thing. Raises HostError.
    """

    def make() -> int:
        leave_to_new()
        return attach_tap(_DEAD_END)

    work = (lambda: in_fresh_thread(make)) if os.geteuid() == 0 else made_by_own_root
    try:
        return await _opened(work, stack)
    except OSError as error:
        raise HostError(f"cannot make a template's network device: {error}") from error


async def dead_end_slot(stack: AsyncExitStack) -> NetworkSlot:
    """The same as a slot, for a hypervisor that opens its device itself: a namespace without a name, gone with `held`.

    Raises HostError.
    """

    def make() -> int:
        leave_to_new()
        os.close(attach_tap(_DEAD_END, persist=True))
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    try:
        namespace = await _opened(lambda: in_fresh_thread(make), stack)
    except OSError as error:
        raise HostError(f"cannot make a template's network device: {error}") from error
    return NetworkSlot(
        namespace=Path(f"/proc/{os.getpid()}/fd/{namespace}"),
        tap=_DEAD_END,
        guest_mac=GUEST_MAC,
        guest_address="",
        gateway="",
        nameservers=(),
    )


def made_by_own_root() -> int:
    """The same device, made by a process that is root in a namespace of its own, for a user who is not. Blocks.

    Raises OSError.
    """
    check_descriptors()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.settimeout(_MAKER_SECONDS)
        code = f"import sys; from {__name__} import make_as_own_root; make_as_own_root(int(sys.argv[1]))"
        command = [sys.executable, "-P", "-c", code, str(theirs.fileno())]
        run = subprocess.run(
            command, pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=_MAKER_SECONDS, check=False
        )
        if run.returncode != 0:
            raise OSError((run.stderr.strip().splitlines() or ["no reason given"])[-1])
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
        os.set_inheritable(descriptor, False)
        return descriptor


def make_as_own_root(channel: int) -> None:
    """What the process of `made_by_own_root` does: send the device over that socket, and end. Raises OSError."""
    become_own_root()
    with socket.socket(fileno=channel) as replies:
        socket.send_fds(replies, [b"."], [attach_tap(_DEAD_END)])


async def _opened(work: Callable[[], int], stack: AsyncExitStack) -> int:
    """The descriptor that blocking `work` opens, closed with `held`."""
    descriptor = await uninterrupted(in_thread(work), os.close)
    stack.callback(os.close, descriptor)
    return descriptor


def attach_tap(name: str, *, persist: bool = False) -> int:
    """A descriptor of the TAP device `name` of the calling thread's namespace, made if it is not there.

    `persist`: it stays when the descriptor is closed. Frames carry a virtio header, so that both ends may leave
    checksums and segmentation to each other. Raises OSError.
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
