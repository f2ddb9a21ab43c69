"""What a machine needs of its kernel, and whether a kernel has it.

The evidence is the kernel's configuration (embedded, or /boot/config-RELEASE beside it), else names that the compiled
code contains because users of the kernel see them: file systems, drivers in sysfs, files of cgroups. What leaves no
such name is shown by a boot only.
"""

from __future__ import annotations

from dataclasses import dataclass

from belljar.images.kernel_elf import KernelElf
from belljar.images.kernel_modules import KernelModules
from belljar.images.kernel_options import options

QEMU, FIRECRACKER = "QEMU", "Firecracker"


@dataclass(frozen=True, slots=True)
class Need:
    """An option that a kernel must have."""

    #: Its name without CONFIG_.
    option: str
    purpose: str
    #: The module that provides it when it is not built in; None: it must be built in.
    module: str | None = None
    #: Bytes that the kernel contains when it is built in; None: only the configuration shows it.
    marker: bytes | None = None
    #: The only hypervisor that needs it; None: both do.
    hypervisor: str | None = None


NEEDS = (
    Need("BLK_DEV_INITRD", "the initramfs with the agent", marker=b"initramfs...\n"),
    Need("BINFMT_ELF", "programs"),
    Need("DEVTMPFS", "device nodes", marker=b"devtmpfs\0"),
    Need("PROC_FS", "processes of jobs"),
    Need("SYSFS", "finding devices"),
    Need("TMPFS", "the writable layer in memory"),
    Need("UNIX98_PTYS", "terminals", marker=b"devpts\0"),
    Need("VIRTIO_MMIO", "every device", "virtio_mmio", b"virtio-mmio\0"),
    Need("VIRTIO_BLK", "disks", "virtio_blk", b"virtio_blk\0"),
    Need("VIRTIO_NET", "the network", "virtio_net", b"virtio_net\0"),
    Need("EROFS_FS", "the root file system", "erofs", b"erofs\0"),
    Need("OVERLAY_FS", "the writable layer", "overlay", b"overlayfs: "),
    Need("EXT4_FS", "scratch disks", "ext4", b"ext4\0"),
    Need("MEMCG", "the memory limit of jobs", marker=b"oom.group\0"),
    Need("CGROUP_PIDS", "the process limit of jobs", marker=b"fork rejected by pids controller"),
    Need("PID_NS", "jobs that do not see each other's processes", marker=b"pid_for_children\0"),
    Need("IPC_NS", "jobs that do not share memory"),
    Need("SECCOMP_FILTER", "the system calls of jobs", marker=b"actions_avail\0"),
    Need("UNIX", "sockets between programs"),
    Need("INET", "the network"),
    Need("PVH", "the start of the kernel", hypervisor=QEMU),
    Need("ACPI", "finding devices", marker=b"Interpreter enabled", hypervisor=QEMU),
    Need("VIRTIO_CONSOLE", "the agent's port", "virtio_console", b"virtio-ports\0", QEMU),
    Need(
        "VIRTIO_VSOCKETS",
        "the agent's socket",
        "vmw_vsock_virtio_transport",
        b"vmw_vsock_virtio_transport\0",
        FIRECRACKER,
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What a kernel lacks, and the modules that its machines load."""

    #: Each need that is not met, with the reason as a phrase.
    missing: tuple[tuple[Need, str], ...]
    #: The modules to load, in the order of the needs.
    modules: tuple[str, ...]

    def fatal(self) -> list[str]:
        """Return what no machine can do without, as phrases; empty when one of the hypervisors can run the kernel."""
        common = [phrase for need, phrase in self.missing if need.hypervisor is None]
        either = [self.lacking(QEMU), self.lacking(FIRECRACKER)]
        return [*common, *(either[0] + either[1] if all(either) else [])]

    def lacking(self, hypervisor: str) -> list[str]:
        """Return what machines under that hypervisor alone lack, as phrases."""
        return [phrase for need, phrase in self.missing if need.hypervisor == hypervisor]


def check_needs(elf: KernelElf, configuration: str | None, modules: KernelModules | None) -> Findings:
    """Return what the kernel lacks. `configuration`: its options; None when unknown. `modules`: its loadable ones."""
    values = None if configuration is None else options(configuration)
    missing, loaded = [], []
    for need in NEEDS:
        state = _state(need, elf, values, modules)
        if state == "module":
            assert need.module is not None
            loaded.append(need.module)
        elif state:
            missing.append((need, f"CONFIG_{need.option} ({need.purpose}{'' if state == 'no' else f'; {state}'})"))
    return Findings(missing=tuple(missing), modules=tuple(loaded))


def _state(need: Need, elf: KernelElf, values: dict[str, str] | None, modules: KernelModules | None) -> str:
    """Return nothing when it is built in, `module` when it can be loaded; else `no`, or what makes it missing."""
    if need.option == "PVH":  # a note says more than the option: XEN_PVH gives it too
        return "" if elf.has_pvh_entry else "no"
    value = None if values is None else values.get(f"CONFIG_{need.option}", "n")
    if value == "y":
        return ""
    if value is None:
        if need.marker is None or need.marker in elf:
            return ""
        if modules is not None and need.module in (modules.builtin or ()):
            return ""
    if need.module is not None and modules is not None and need.module in modules.files:
        return "module"
    if value == "m":
        return f"it is a module, {need.module}" if need.module else "it must be built in"
    return "no"
