"""Removes what a killed belljar left on this host: cgroups, with the processes in them, and device nodes.

Machines end with the process that made them: bubblewrap asks the kernel for it, and their agents power off when the
host's end of the stream closes. This module removes the rest, and kills hypervisors that survived all the same.
"""

from __future__ import annotations

import os
from pathlib import Path

from belljar.node.machines.firecracker.folder import clear_folders
from belljar.node.machines.host.cgroup import PARENT, Hierarchy, find_hierarchies, remove_group
from belljar.node.machines.host.jail import KVM_NODES
from belljar.node.machines.host.owner import is_dead
from belljar.node.machines.host.threads import in_thread


async def clear_leftovers(
    hierarchies: list[Hierarchy] | None = None, nodes: Path = KVM_NODES, *, jails: Path | None = None
) -> int:
    """Remove what belongs to dead owners; return the number of removed groups, nodes and folders.

    `jails`: the folder of all Firecracker machines' folders.
    """
    removed = await in_thread(clear_folders, jails) if jails is not None else 0
    for hierarchy in find_hierarchies() if hierarchies is None else hierarchies:
        parent = hierarchy.folder / PARENT
        for folder in parent.iterdir() if parent.is_dir() else ():
            if folder.is_dir() and _owner_is_dead(folder.name):
                await remove_group(folder)
                removed += 1
    for node in nodes.iterdir() if nodes.is_dir() and os.access(nodes, os.W_OK) else ():
        if _owner_is_dead(node.name):
            node.unlink(missing_ok=True)
            removed += 1
    return removed


def _owner_is_dead(name: str) -> bool:
    owner, dot, _ = name.partition(".")
    return bool(dot) and is_dead(owner)
