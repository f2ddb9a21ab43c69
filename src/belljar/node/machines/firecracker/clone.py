"""A Firecracker process that loads a snapshot: as soon as it can, or when it is told to after it has waited.

Its API waits, with one request made and the connection kept, so a clone costs the request that loads its snapshot.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import structlog

from belljar.model.errors import HostError, MachineDied, MachineError, MachineTimeout
from belljar.node.machines.clone_failure import clone_deaths
from belljar.node.machines.death import is_host_shortage
from belljar.node.machines.disks import ScriptDisk
from belljar.node.machines.firecracker.api import FirecrackerApi
from belljar.node.machines.firecracker.bodies import MemoryBackend, NetworkOverride, SnapshotLoad, VsockOverride
from belljar.node.machines.firecracker.configuration import FORMAT, INTERFACE
from belljar.node.machines.firecracker.confinement import with_advice
from belljar.node.machines.firecracker.folder import MEMORY, STATE, VSOCK
from belljar.node.machines.firecracker.machine import FirecrackerProcess, FirecrackerScriptMachine
from belljar.node.machines.host.usage import is_stopped
from belljar.node.machines.protocol import BadSnapshot, MachineSpec

log = structlog.get_logger()

#: The file of a snapshot that says what its clones' request needs.
RECORD = "frozen.json"
#: A refusal because of what this host gives the machine, not because of the snapshot's contents.
_DEVICE = re.compile(r"\btap\b|TUN/TAP|KVM|/dev/|vsock|userfault", re.I)


class FirecrackerClone(FirecrackerScriptMachine):
    """The protocol's WaitingProcess until it loads its snapshot, and its Clone from then on."""

    def __init__(self, spawned: FirecrackerProcess, script_disk: ScriptDisk, request: SnapshotLoad) -> None:
        """`request` makes the process the clone."""
        super().__init__(spawned, script_disk)
        self._request = request
        self._api: FirecrackerApi | None = None
        self._connections = AsyncExitStack()
        self._is_loaded = False

    async def open_api(self) -> None:
        """Wait for the process's API, and connect to it. Raises HostError, MachineError."""
        started = time.monotonic()
        self._api = await self._connections.enter_async_context(self.api())
        self._record("socket", started)

    async def load_snapshot(self) -> None:
        """Load the snapshot, and run the guest. Raises BadSnapshot, HostError, MachineError."""
        assert self._api is not None
        self._is_loaded = True
        started = time.monotonic()
        with load_errors():
            async with self.with_death():
                await self._api.load_snapshot(self._request)
        self._record("load", started)
        await self._connections.aclose()

    async def take_over(self, timeout_seconds: float) -> bool:
        """Have a process that waited load the snapshot; return False when it no longer can. Raises BadSnapshot."""
        if not self.is_usable:
            return False
        assert self._api is not None
        try:
            # A load may take as long as the disk, so another request shows first that the process still answers.
            await self._api.call("GET", "/", timeout_seconds=timeout_seconds)
            await self.load_snapshot()
        except BadSnapshot:
            raise
        except (MachineError, HostError) as error:
            log.warning("waiting_process_lost", machine=self.id, error=error.message)
            return False
        return True

    @property
    def is_usable(self) -> bool:
        """Implement `WaitingProcess.is_usable`."""
        return not self._is_loaded and self._process.returncode is None and not is_stopped(self.pids())

    async def connect(self, timeout_seconds: float) -> None:
        """Connect to the agent, which listens already. Raises BadSnapshot, HostError, MachineError."""
        started = time.monotonic()
        with clone_deaths():
            await super().connect(timeout_seconds)
        self._record("connect", started)

    async def kill(self) -> None:
        """Implement `Machine.kill`."""
        await super().kill()
        await self._connections.aclose()

    def _record(self, step: str, started: float) -> None:
        self.phases[step] = round((time.monotonic() - started) * 1000, 3)


def load_request(snapshot: Path, spec: MachineSpec) -> SnapshotLoad:
    """Return the request that makes a new process a clone of the snapshot. Raises BadSnapshot when it is incomplete."""
    try:
        record = json.loads((snapshot / RECORD).read_text())
        written_format, tap = record["format"], record["tap"]
        for name in (STATE, MEMORY):
            (snapshot / name).stat()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadSnapshot(f"the snapshot in {snapshot} is not whole ({error}); delete it to rebuild") from None
    if written_format != FORMAT:
        raise BadSnapshot(f"the snapshot in {snapshot} has format {written_format}, not {FORMAT}; delete it to rebuild")
    return _request(spec if spec.slot is not None and spec.slot.tap != tap else replace(spec, slot=None))


def restore_request(spec: MachineSpec) -> SnapshotLoad:
    """Return the request that makes a new process the machine whose parts are in its folder."""
    return _request(spec)


def _request(spec: MachineSpec) -> SnapshotLoad:
    overrides = []
    if spec.slot is not None:
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
