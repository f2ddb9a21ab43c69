"""QEMU's command line for one machine: a microvm with virtio-mmio devices; what it opens comes as descriptors."""

from __future__ import annotations

import json
from dataclasses import dataclass

from belljar.node.machines.protocol import Shape
from belljar.node.machines.qemu.throttle import throttle_filter, throttled

#: Megabytes of translated code that TCG keeps at most; the default of a gigabyte is memory that a machine may take. A
#: Node.js that starts fills 64: all is thrown away then and translated again, which makes it three times as slow.
TB_SIZE_MB = 128


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the machine is made of. A clone's must be what its template's was."""

    shape: Shape
    accelerator: str
    #: Of the host's time stamp counter, which a guest under emulation must be told (tsc.py); None where it need not be.
    tsc_khz: int | None
    #: Of its network device, if it has one.
    guest_mac: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Descriptors:
    """File descriptors that QEMU inherits."""

    kernel: int | None
    initramfs: int | None
    root: int
    script: int
    scratch: int | None
    memory: int | None
    state: int | None
    #: A second QMP monitor, for what a clone is told before anybody watches it.
    orders: int | None
    agent: int
    qmp: int
    console: int
    #: Of the slot's TAP device.
    tap: int | None = None


def arguments(hardware: Hardware, descriptors: Descriptors) -> list[str]:
    """QEMU's arguments, after the executable."""
    shape, accelerator = hardware.shape, hardware.accelerator
    return [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        # ACPI is how Debian's kernel finds the devices; without the clock the guest begins in 1970.
        "-machine",
        f"microvm,acpi=on,rtc=on,usb=off{'' if descriptors.memory is None else ',memory-backend=memory'}",
        *_accelerator(accelerator),
        "-smp",
        str(shape.vcpus),
        "-m",
        f"{shape.memory_mb}M",
        *_memory(shape, descriptors),
        *_kernel(hardware, descriptors),
        *_disks(shape, descriptors),
        "-device",
        "virtio-serial-device,max_ports=2",
        "-chardev",
        f"socket,id=agent,fd={descriptors.agent}",
        "-device",
        "virtserialport,chardev=agent,name=belljar",
        "-chardev",
        f"socket,id=console,fd={descriptors.console}",
        "-serial",
        "chardev:console",
        "-chardev",
        f"socket,id=qmp,fd={descriptors.qmp}",
        "-mon",
        "chardev=qmp,mode=control",
        "-object",
        "rng-builtin,id=entropy",
        "-device",
        "virtio-rng-device,rng=entropy",
        *_network(descriptors.tap, hardware.guest_mac),
    ]


def _memory(shape: Shape, descriptors: Descriptors) -> list[str]:
    """Memory in a file is a template's, shared so that the file gets what the guest writes, or a clone's, private."""
    if descriptors.memory is None:
        return []
    share = "on" if descriptors.state is None else "off"
    place = f"mem-path=/proc/self/fd/{descriptors.memory}"
    argv = ["-object", f"memory-backend-file,id=memory,size={shape.memory_mb}M,{place},share={share}"]
    if descriptors.state is not None:
        argv += ["-incoming", "defer", "-chardev", f"socket,id=orders,fd={descriptors.orders}"]
        argv += ["-mon", "chardev=orders,mode=control"]
    return argv


def restore_orders(state: int) -> bytes:
    """QMP commands that make a clone of a QEMU that waits for them: written before it is there, read when it is.

    The state has all but the memory in it (x-ignore-shared); the guest goes on by itself when it has been read.
    """
    ignore_shared = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
    orders: list[dict[str, object]] = [
        {"execute": "qmp_capabilities"},
        {"execute": "migrate-set-capabilities", "arguments": ignore_shared},
        # Nobody needs to be told where the machine is now: its slot knows, and its first packets are to be its job's.
        {"execute": "migrate-set-parameters", "arguments": {"announce-rounds": 0}},
        {"execute": "migrate-incoming", "arguments": {"uri": f"fd:{state}"}},
    ]
    return b"".join(json.dumps(order).encode() + b"\n" for order in orders)


def _kernel(hardware: Hardware, descriptors: Descriptors) -> list[str]:
    if descriptors.kernel is None:
        return []
    return [
        "-kernel",
        f"/proc/self/fd/{descriptors.kernel}",
        "-initrd",
        f"/proc/self/fd/{descriptors.initramfs}",
        "-append",
        kernel_command_line(hardware.accelerator, hardware.tsc_khz),
    ]


def _accelerator(accelerator: str) -> list[str]:
    if accelerator == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    return ["-accel", f"tcg,thread=multi,tb-size={TB_SIZE_MB}", "-cpu", "max"]


def kernel_command_line(accelerator: str, tsc_khz: int | None) -> str:
    """A quiet kernel that resets at a panic; under emulation it is told the clock's frequency (tsc.py says why)."""
    words = ["console=ttyS0", "quiet", "loglevel=4", "panic=-1", "reboot=t", "random.trust_cpu=on"]
    if accelerator == "tcg" and tsc_khz is not None:
        # The counter is the host's own; on a busy host the guest's watchdog would come to doubt it.
        words += [f"tsc_early_khz={tsc_khz}", "tsc=reliable"]
    if accelerator == "tcg":
        # What costs an emulated guest much and gives it nothing: fences against a processor's speculation, which the
        # emulator has not got, and zeros in memory that the host gave as zeros.
        words += ["mitigations=off", "init_on_alloc=0"]
    return " ".join(words)


def _network(tap: int | None, guest_mac: str | None) -> list[str]:
    """The guest's device on the slot's TAP; without one the guest has none."""
    if tap is None:
        return []
    device = f"virtio-net-device,netdev=net,mac={guest_mac}"
    return ["-netdev", f"tap,id=net,fd={tap},vhost=off", "-device", device]


def _disks(shape: Shape, descriptors: Descriptors) -> list[str]:
    """vda the root filesystem, vdb the script, vdc the scratch disk if there is one."""
    disks = [("root", descriptors.root, True), ("script", descriptors.script, True)]
    if descriptors.scratch is not None:
        disks.append(("scratch", descriptors.scratch, False))
    argv = []
    for number, (name, descriptor, read_only) in enumerate(disks, start=1):
        access = "on" if read_only else "off"
        argv += ["-add-fd", f"fd={descriptor},set={number}"]
        limits, node = throttled(shape, name)
        argv += limits
        argv += [
            "-blockdev",
            f"driver=raw,node-name={node},read-only={access},auto-read-only=off,discard=unmap,"
            f"file.driver=file,file.filename=/dev/fdset/{number},file.locking=off",
        ]
        if node != name:
            argv += ["-blockdev", f"{throttle_filter(name, node)},read-only={access}"]
        # A full disk on the host is an I/O error in the guest, not a machine that stands still.
        argv += ["-device", f"virtio-blk-device,drive={name},werror=report,rerror=report"]
    return argv
