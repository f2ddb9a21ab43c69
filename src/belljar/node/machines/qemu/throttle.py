"""Limits on what a disk may do, as QEMU's throttle groups. Source: QEMU's docs/throttle.txt."""

from __future__ import annotations

from belljar.node.machines.protocol import Shape


def throttled(shape: Shape, disk: str) -> tuple[list[str], str]:
    """The arguments that make a disk's group, and the name of the node that the group's filter is put over.

    Without a limit there are none, and the node is the disk itself. A burst of one second's worth is let through, as
    Firecracker's token buckets do.
    """
    limits = {}
    if shape.disk_mb_per_second is not None:
        limits["bps-total"] = int(shape.disk_mb_per_second * (1 << 20))
    if shape.disk_iops is not None:
        limits["iops-total"] = shape.disk_iops
    if not limits:
        return [], disk
    words = [f"throttle-group,id=limit-{disk}", *(f"x-{name}={value}" for name, value in limits.items())]
    return ["-object", ",".join(words)], f"{disk}-file"


def throttle_filter(disk: str, node: str) -> str:
    """The node `disk`, whose operations pass through its group on their way to `node`."""
    return f"driver=throttle,node-name={disk},throttle-group=limit-{disk},file={node}"
