"""Firecracker's snapshot sources, over its full snapshots.

A snapshot is a folder: `state` (devices, vCPUs), `memory` (mapped copy-on-write by every clone), `scratch.img` when
there is a scratch disk, and `frozen.json`, written last, with what the load request of a clone needs (clone.py).
"""

from __future__ import annotations

import json
from pathlib import Path

from belljar.node.machines.disks import ScriptDisk, copy_sparse_file, move_sparse
from belljar.node.machines.firecracker.bodies import SnapshotCreate
from belljar.node.machines.firecracker.clone import RECORD
from belljar.node.machines.firecracker.configuration import FORMAT
from belljar.node.machines.firecracker.folder import MEMORY, SCRATCH, STATE
from belljar.node.machines.firecracker.machine import FirecrackerProcess, FirecrackerScriptMachine
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import MachineSpec


class FirecrackerSnapshotSource(FirecrackerScriptMachine):
    """The protocol's SnapshotSource."""

    def __init__(self, spawned: FirecrackerProcess, script_disk: ScriptDisk, snapshot: Path, spec: MachineSpec) -> None:
        """`snapshot`: the folder that takes the snapshot."""
        super().__init__(spawned, script_disk)
        self._snapshot, self._spec = snapshot, spec

    async def freeze(self) -> None:
        """Implement `SnapshotSource.freeze`. Raises MachineError, HostError, DiskFull."""
        async with self.api() as api:
            await api.pause()
            await api.create_snapshot(SnapshotCreate(snapshot_path=STATE, mem_file_path=MEMORY))
        await self.kill()  # a running process could still change the files that are kept
        await in_thread(self._keep)

    def _keep(self) -> None:
        """Move the files that the process wrote into the snapshot."""
        self._snapshot.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder.check_own(STATE, MEMORY)
        for name in (STATE, MEMORY):
            move_sparse(self._folder.path / name, self._snapshot / name)
        if self._spec.shape.disk_mb is not None:
            copy_sparse_file(self._folder.path / SCRATCH, self._snapshot / SCRATCH)
        for name in (STATE, MEMORY):
            # Readable by every clone's user, but reachable only where it is shown: the snapshot's folder is private.
            self._folder.take_ownership(self._snapshot / name)
        tap = self._spec.slot.tap if self._spec.slot is not None else None
        (self._snapshot / RECORD).write_text(json.dumps({"format": FORMAT, "tap": tap}))
