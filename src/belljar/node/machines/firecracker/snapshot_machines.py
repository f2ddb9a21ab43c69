"""Firecracker's snapshot sources and clones, over its full snapshots.

A snapshot is a folder: `state` (devices, vCPUs), `memory` (mapped copy-on-write by every clone), `scratch.img` when
there is a scratch disk, and `frozen.json`, written last, with what the load request of a clone needs.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from belljar.model.errors import HostError, MachineDied, MachineError, MachineTimeout
from belljar.node.machines.clone_failure import clone_deaths
from belljar.node.machines.death import is_host_shortage
from belljar.node.machines.disks import ScriptDisk, copy_sparse_file, move_sparse
from belljar.node.machines.firecracker.bodies import (
    MemoryBackend,
    NetworkOverride,
    SnapshotCreate,
    SnapshotLoad,
    VsockOverride,
)
from belljar.node.machines.firecracker.configuration import FORMAT, INTERFACE
from belljar.node.machines.firecracker.confinement import with_advice
from belljar.node.machines.firecracker.folder import MEMORY, SCRATCH, STATE, VSOCK
from belljar.node.machines.firecracker.machine import FirecrackerMachine, FirecrackerProcess
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import BadSnapshot, MachineSpec

_RECORD = "frozen.json"
#: A refusal because of what this host gives the machine, not because of the snapshot's contents.
_DEVICE = re.compile(r"\btap\b|TUN/TAP|KVM|/dev/|vsock|userfault", re.I)


class FirecrackerClone(FirecrackerMachine):
    """The protocol's Clone."""

    def __init__(self, spawned: FirecrackerProcess, script_disk: ScriptDisk) -> None:
        super().__init__(spawned)
        self._script_disk = script_disk

    async def connect(self, timeout_seconds: float) -> None:
        """Connect to the agent, which listens already. Raises BadSnapshot, HostError, MachineError."""
        with clone_deaths():
            await super().connect(timeout_seconds)

    def set_foreground(self) -> None:
        """Implement `Clone.set_foreground`."""
        self._group.set_weight(100)

    async def attach_script(self, script_disk: Path) -> None:
        """Implement `Clone.attach_script`."""
        await self._script_disk.write(script_disk)


class FirecrackerSnapshotSource(FirecrackerClone):
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
        (self._snapshot / _RECORD).write_text(json.dumps({"format": FORMAT, "tap": tap}))


def load_request(snapshot: Path, spec: MachineSpec) -> SnapshotLoad:
    """Return the request that makes a new process a clone of the snapshot. Raises BadSnapshot when it is incomplete."""
    try:
        record = json.loads((snapshot / _RECORD).read_text())
        written_format, tap = record["format"], record["tap"]
        for name in (STATE, MEMORY):
            (snapshot / name).stat()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSnapshot(f"the snapshot in {snapshot} is not whole ({error}); delete it to rebuild") from None
    if written_format != FORMAT:
        raise BadSnapshot(f"the snapshot in {snapshot} has format {written_format}, not {FORMAT}; delete it to rebuild")
    overrides = []
    if spec.slot is not None and spec.slot.tap != tap:
        overrides.append(NetworkOverride(iface_id=INTERFACE, host_dev_name=spec.slot.tap))
    return SnapshotLoad(
        snapshot_path=STATE,
        mem_backend=MemoryBackend(backend_path=MEMORY),
        resume_vm=True,
        network_overrides=tuple(overrides),
        vsock_override=VsockOverride(uds_path=VSOCK),
    )


@contextlib.contextmanager
def load_errors() -> Iterator[None]:
    """Raise Firecracker's refusal of a load request as BadSnapshot, or as HostError when the host is the reason."""
    try:
        with clone_deaths():
            yield
    except (MachineDied, MachineTimeout, BadSnapshot):
        raise
    except MachineError as error:
        if is_host_shortage(error.message) or _DEVICE.search(error.message):
            raise HostError(f"a machine cannot be cloned: {with_advice(error.message)}") from error
        raise BadSnapshot(error.message) from error
