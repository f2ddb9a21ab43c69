"""Builds QEMU's command line for one machine: a microvm with virtio-mmio devices that opens inherited descriptors."""

from __future__ import annotations

from dataclasses import dataclass

from belljar.node.machines.protocol import Shape
from belljar.node.machines.qemu.orders import QmpCommand
from belljar.node.machines.qemu.throttle import throttle_filter, throttle_group

#: Limit of TCG's cache of translated code, in megabytes, instead of the default of a gigabyte per machine. With 64 a
#: starting Node.js fills the cache; everything is then translated again, which makes it three times as slow.
TB_SIZE_MB = 128
#: Without "fast" string instructions: the emulator copies a byte at a time for them, and the guest's kernel and
#: libraries prefer them for every copy when the processor has them.
_EMULATED_CPU = "max,-erms,-fsrm"


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine's hardware. A clone's must equal its snapshot source's."""

    shape: Shape
    accelerator: str
    #: Frequency of the host's time stamp counter, which an emulated guest cannot measure (tsc.py); None under KVM.
    tsc_khz: int | None
    #: Address of its network device, if it has one.
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
    #: A second QMP monitor, which loads a clone's snapshot.
    restore: int | None
    agent: int
    qmp: int
    console: int
    #: The slot's TAP device.
    tap: int | None = None


def arguments(
    hardware: Hardware, descriptors: Descriptors, *, bare_state: bool = False, owns_memory: bool = False
) -> list[str]:
    """Return QEMU's arguments, without the executable.

    `bare_state`: whether the state to load is that of the devices alone (xen-save-devices-state).
    `owns_memory`: whether a machine that loads a state writes to its memory's file, instead of mapping it privately.
    """
    shape, accelerator = hardware.shape, hardware.accelerator
    return [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-no-reboot",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        # Debian's kernel finds the devices by ACPI; without the clock the guest's time starts in 1970.
        "-machine",
        f"microvm,acpi=on,rtc=on,usb=off{'' if descriptors.memory is None else ',memory-backend=memory'}",
        *_accelerator(accelerator),
        "-smp",
        str(shape.vcpus),
        "-m",
        f"{shape.memory_mb}M",
        *_memory(shape, descriptors, owns_memory=owns_memory),
        *(["-global", "migration.send-configuration=off"] if bare_state else []),
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


def _memory(shape: Shape, descriptors: Descriptors, *, owns_memory: bool) -> list[str]:
    """Return arguments for memory in a file: a snapshot source writes to the file, a clone maps it privately."""
    if descriptors.memory is None:
        return []
    share = "on" if owns_memory or descriptors.state is None else "off"
    path = f"mem-path=/proc/self/fd/{descriptors.memory}"
    argv = ["-object", f"memory-backend-file,id=memory,size={shape.memory_mb}M,{path},share={share}"]
    if descriptors.state is not None:
        argv += ["-incoming", "defer", "-chardev", f"socket,id=orders,fd={descriptors.restore}"]
        argv += ["-mon", "chardev=orders,mode=control"]
    return argv


def prepare_commands() -> list[QmpCommand]:
    """Return the QMP commands after which a QEMU that waits for a snapshot's state can load it.

    The state holds everything except the memory (x-ignore-shared).
    """
    ignore_shared = {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}
    return [
        {"execute": "qmp_capabilities"},
        {"execute": "migrate-set-capabilities", "arguments": ignore_shared},
        # No announcement on the network: the slot knows the machine, and its first packets must be its job's.
        {"execute": "migrate-set-parameters", "arguments": {"announce-rounds": 0}},
    ]


def load_command(state: int) -> QmpCommand:
    """Return the QMP command that loads a state from the descriptor `state`; the guest runs as soon as it is loaded."""
    return {"execute": "migrate-incoming", "arguments": {"uri": f"fd:{state}"}}


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
    return ["-accel", f"tcg,thread=multi,tb-size={TB_SIZE_MB}", "-cpu", _EMULATED_CPU]


def kernel_command_line(accelerator: str, tsc_khz: int | None) -> str:
    """Return the command line of a quiet kernel that resets at a panic.

    Under emulation it contains the frequency of the time stamp counter (tsc.py says why).
    """
    options = ["console=ttyS0", "quiet", "loglevel=4", "panic=-1", "reboot=t", "random.trust_cpu=on"]
    if accelerator == "tcg" and tsc_khz is not None:
        # The counter is the host's; without tsc=reliable the guest's watchdog distrusts it on a busy host.
        options += [f"tsc_early_khz={tsc_khz}", "tsc=reliable"]
    if accelerator == "tcg":
        # Useless work that costs an emulated guest much: barriers against speculation, which the emulator does not do,
        # and clearing memory that the host provides as zeros.
        options += ["mitigations=off", "init_on_alloc=0"]
    return " ".join(options)


def _network(tap: int | None, guest_mac: str | None) -> list[str]:
    """Return arguments for the guest's device on the slot's TAP; none without a TAP."""
    if tap is None:
        return []
    device = f"virtio-net-device,netdev=net,mac={guest_mac}"
    return ["-netdev", f"tap,id=net,fd={tap},vhost=off", "-device", device]


def _disks(shape: Shape, descriptors: Descriptors) -> list[str]:
    """Return arguments for vda, the root filesystem, vdb, the script, and vdc, the scratch disk if there is one."""
    disks = [("root", descriptors.root, True), ("script", descriptors.script, True)]
    if descriptors.scratch is not None:
        disks.append(("scratch", descriptors.scratch, False))
    argv = []
    for number, (name, descriptor, read_only) in enumerate(disks, start=1):
        access = "on" if read_only else "off"
        argv += ["-add-fd", f"fd={descriptor},set={number}"]
        limits, node = throttle_group(shape, name)
        argv += limits
        argv += [
            "-blockdev",
            f"driver=raw,node-name={node},read-only={access},auto-read-only=off,discard=unmap,"
            f"file.driver=file,file.filename=/dev/fdset/{number},file.locking=off",
        ]
        if node != name:
            argv += ["-blockdev", f"{throttle_filter(name, node)},read-only={access}"]
        # A full disk on the host becomes an I/O error in the guest; by default QEMU would stop the machine.
        argv += ["-device", f"virtio-blk-device,drive={name},werror=report,rerror=report"]
    return argv
