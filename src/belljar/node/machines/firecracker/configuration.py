"""Translates a machine's spec into Firecracker's configuration file."""

from __future__ import annotations

import platform

from belljar.node.machines.firecracker.bodies import (
    BootSource,
    Configuration,
    Drive,
    MachineConfig,
    NetworkInterface,
    RateLimiter,
    TokenBucket,
    Vsock,
)
from belljar.node.machines.firecracker.folder import INITRAMFS, KERNEL, ROOT, SCRATCH, SCRIPT, VSOCK
from belljar.node.machines.protocol import MachineSpec, Shape

#: Changes whenever older snapshots become unusable.
FORMAT = 1
#: The guest's address in AF_VSOCK. Each machine has a socket of its own, so all may have the same address.
GUEST_CID = 3
INTERFACE = "eth0"
_REFILL_MS = 1000


def configuration(spec: MachineSpec) -> Configuration:
    """Return the configuration of `spec`; paths are names in the machine's folder."""
    limiter = disk_limiter(spec.shape)
    # Their order is vda, vdb, vdc. No drive is the "root device": the initramfs mounts the root file system.
    drives = [
        Drive(drive_id="root", path_on_host=ROOT, is_read_only=True, rate_limiter=limiter),
        Drive(drive_id="script", path_on_host=SCRIPT, is_read_only=True, rate_limiter=limiter),
    ]
    if spec.shape.disk_mb is not None:
        drives.append(Drive(drive_id="scratch", path_on_host=SCRATCH, is_read_only=False, rate_limiter=limiter))
    return Configuration(
        machine_config=MachineConfig(vcpu_count=spec.shape.vcpus, mem_size_mib=spec.shape.memory_mb),
        boot_source=BootSource(kernel_image_path=KERNEL, initrd_path=INITRAMFS, boot_args=kernel_command_line()),
        drives=tuple(drives),
        vsock=Vsock(guest_cid=GUEST_CID, uds_path=VSOCK),
        network_interfaces=_network(spec),
    )


def kernel_command_line() -> str:
    """Return the command line of a quiet kernel that resets at a panic and does not probe devices that are absent.

    Firecracker's default has `nomodule`, but Debian's kernel needs its modules. Firecracker adds `pci=off` by itself.
    """
    options = ["console=ttyS0", "quiet", "loglevel=4", "panic=-1", "random.trust_cpu=on"]
    if platform.machine() == "x86_64":
        options += ["reboot=k", "i8042.noaux", "i8042.nomux", "i8042.dumbkbd", "swiotlb=noforce"]
    return " ".join(options)


def disk_limiter(shape: Shape) -> RateLimiter | None:
    """Return the rate limit of each of the machine's disks, or None. It allows a burst of one second's worth."""
    return _limiter(shape.disk_mb_per_second, 1 << 20, shape.disk_iops)


def network_limiter(shape: Shape) -> RateLimiter | None:
    """Return the rate limit of each direction of the network, or None."""
    return _limiter(shape.network_mbit_per_second, 1_000_000 // 8, None)


def _limiter(rate: float | None, unit_bytes: int, operations: int | None) -> RateLimiter | None:
    if rate is None and operations is None:
        return None
    return RateLimiter(
        bandwidth=None if rate is None else TokenBucket(size=int(rate * unit_bytes), refill_time=_REFILL_MS),
        ops=None if operations is None else TokenBucket(size=operations, refill_time=_REFILL_MS),
    )


def _network(spec: MachineSpec) -> tuple[NetworkInterface, ...]:
    if spec.slot is None:
        return ()
    limiter = network_limiter(spec.shape)
    return (
        NetworkInterface(
            iface_id=INTERFACE,
            host_dev_name=spec.slot.tap,
            guest_mac=spec.slot.guest_mac,
            rx_rate_limiter=limiter,
            tx_rate_limiter=limiter,
        ),
    )
