"""Rate limits of disks as QEMU's throttle groups. Source: QEMU's docs/throttle.txt."""

from __future__ import annotations

from belljar.node.machines.protocol import Shape


def throttle_group(shape: Shape, disk: str) -> tuple[list[str], str]:
    """Return the arguments that make a disk's group, and the name of the node below the group's filter.

    Without a limit there are no arguments, and the node is the disk itself. A burst of one second's worth passes, as
    with Firecracker's token buckets.
    """
    limits = {}
    if shape.disk_mb_per_second is not None:
        limits["bps-total"] = int(shape.disk_mb_per_second * (1 << 20))
    if shape.disk_iops is not None:
        limits["iops-total"] = shape.disk_iops
    if not limits:
        return [], disk
    options = [f"throttle-group,id=limit-{disk}", *(f"x-{name}={value}" for name, value in limits.items())]
    return ["-object", ",".join(options)], f"{disk}-file"


def throttle_filter(disk: str, node: str) -> str:
    """Return the definition of node `disk`, whose operations pass through its group on their way to `node`."""
    return f"driver=throttle,node-name={disk},throttle-group=limit-{disk},file={node}"
