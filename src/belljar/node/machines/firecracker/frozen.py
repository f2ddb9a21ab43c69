"""Machines that are frozen and machines that go on from there: Firecracker's full snapshots.

A frozen machine is a folder: `state` (devices, vCPUs), `memory` (mapped by every clone, each keeping what it changes to
itself), `scratch.img` when there is a scratch disk, and `frozen.json`, written last, with what a clone must be told.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from belljar.model.errors import HostError, MachineDied, MachineError, MachineTimeout
from belljar.node.machines.ends import is_the_hosts
from belljar.node.machines.firecracker.bodies import (
    MemoryBackend,
    NetworkOverride,
    SnapshotCreate,
    SnapshotLoad,
    VsockOverride,
)
from belljar.node.machines.firecracker.configuration import FORMAT, INTERFACE
from belljar.node.machines.firecracker.confinement import explain
from belljar.node.machines.firecracker.folder import MEMORY, SCRATCH, STATE, VSOCK
from belljar.node.machines.firecracker.machine import FirecrackerMachine
from belljar.node.machines.firecracker.sparse import copy_sparse, move_sparse, overwrite
from belljar.node.machines.host.cgroup import Group
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.host.threads import in_thread
from belljar.node.machines.protocol import SCRIPT_DISK_BYTES, BadSnapshot, MachineSpec

_RECORD = "frozen.json"
#: A refusal that is about what this host gives the machine, not about what is in the snapshot.
_DEVICE = re.compile(r"\btap\b|TUN/TAP|KVM|/dev/|vsock|userfault", re.I)


class _Unscripted(FirecrackerMachine):
    """A machine whose script disk is a file of its own, to be written while it runs."""

    _script: int
    _script_bytes = 0
    _group: Group

    def gives_scripts_to(self, script: int, group: Group) -> None:
        """A descriptor of that file, and the group that bounds the machine's processes."""
        self._script, self._group = script, group

    def set_foreground(self) -> None:
        """As the protocol says."""
        self._group.set_weight(100)

    async def insert(self, script_disk: Path) -> None:
        """Write the script's file system over the disk. Raises HostError, DiskFull."""
        self._script_bytes = await uninterrupted(
            in_thread(overwrite, self._script, script_disk, most=SCRIPT_DISK_BYTES, before=self._script_bytes)
        )


class FirecrackerClone(_Unscripted):
    """The protocol's Clone."""


class FirecrackerTemplate(_Unscripted):
    """The protocol's Template."""

    _into: Path
    _spec: MachineSpec

    def freezes_into(self, folder: Path, spec: MachineSpec) -> None:
        self._into, self._spec = folder, spec

    async def freeze(self) -> None:
        """Pause, write state and memory, and lay them into the folder. Raises MachineError, HostError, DiskFull."""
        async with self.api() as api:
            await api.pause()
            await api.create_snapshot(SnapshotCreate(snapshot_path=STATE, mem_file_path=MEMORY))
        await self.kill()  # nobody is left who could change what is kept now
        await in_thread(self._keep)

    def _keep(self) -> None:
        self._into.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._folder.check_own(STATE, MEMORY)
        for name in (STATE, MEMORY):
            move_sparse(self._folder.path / name, self._into / name)
        if self._spec.shape.disk_mb is not None:
            copy_sparse(self._folder.path / SCRATCH, self._into / SCRATCH)
        for name in (STATE, MEMORY):
            # Every clone's user may read it, and reaches it only where it is shown: the folder is belljar's alone.
            self._folder.take(self._into / name)
        tap = self._spec.slot.tap if self._spec.slot is not None else None
        (self._into / _RECORD).write_text(json.dumps({"format": FORMAT, "tap": tap}))


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What Firecracker says when it does not load a snapshot: BadSnapshot, or HostError when the host is why."""
    try:
        yield
    except (MachineDied, MachineTimeout):
        raise
    except MachineError as error:
        if is_the_hosts(error.message) or _DEVICE.search(error.message):
            raise HostError(f"a machine cannot be cloned: {explain(error.message)}") from error
        raise BadSnapshot(error.message) from error


def loading(folder: Path, spec: MachineSpec) -> SnapshotLoad:
    """What a fresh process is told to become a clone of the machine in `folder`.

    Raises BadSnapshot when it is not whole.
    """
    try:
        record = json.loads((folder / _RECORD).read_text())
        written_format, tap = record["format"], record["tap"]
        for name in (STATE, MEMORY):
            (folder / name).stat()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSnapshot(f"the snapshot in {folder} is not whole ({error}); remove it, it is made again") from None
    if written_format != FORMAT:
        raise BadSnapshot(f"the snapshot in {folder} is another belljar's; remove it, it is made again")
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
