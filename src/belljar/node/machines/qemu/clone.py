"""A QEMU process that loads a snapshot: as soon as it can, or when it is told to after it has waited."""

from __future__ import annotations

import time

import structlog

from belljar.model.errors import MachineError
from belljar.node.machines.clone_failure import clone_deaths
from belljar.node.machines.disks import ScriptDisk
from belljar.node.machines.host.usage import is_stopped
from belljar.node.machines.qemu.command import load_command, prepare_commands
from belljar.node.machines.qemu.machine import QemuProcess, QemuScriptMachine
from belljar.node.machines.qemu.orders import Orders
from belljar.node.machines.racing import run_unless_dead

log = structlog.get_logger()


class QemuClone(QemuScriptMachine):
    """The protocol's WaitingProcess until it loads its snapshot, and its Clone from then on."""

    def __init__(self, spawned: QemuProcess, script_disk: ScriptDisk, state: int, tap: int | None = None) -> None:
        """`state`: the number of the descriptor in which QEMU has the snapshot's device state.

        `tap`: the descriptor of its network device. The device takes no second one while this is open.
        """
        super().__init__(spawned, script_disk)
        self.tap = tap
        assert spawned.restore is not None
        self._orders = Orders(spawned.restore)
        self._state = state
        self._is_loaded = False

    def load_snapshot(self) -> None:
        """Have a process that was just started load the snapshot, and run the guest.

        The outcome is the guest's answer or the machine's death.
        """
        self._is_loaded = True
        self._orders.send([*prepare_commands(), load_command(self._state)])

    async def prepare(self, timeout_seconds: float) -> None:
        """Wait until the process can load the snapshot at once. Raises HostError, MachineError."""
        with clone_deaths():
            await run_unless_dead(self, self._orders.execute(prepare_commands(), timeout_seconds))
        self.phases.clear()  # nobody waited for them

    async def take_over(self, timeout_seconds: float) -> bool:
        """Have a process that waited load the snapshot, and run the guest; return False when it no longer can."""
        if not self.is_usable:
            return False
        self._is_loaded = True
        started = time.monotonic()
        try:
            await run_unless_dead(self, self._orders.execute([load_command(self._state)], timeout_seconds))
        except MachineError as error:
            log.warning("waiting_process_lost", machine=self.id, error=error.message)
            return False
        self.phases["load"] = round((time.monotonic() - started) * 1000, 3)
        return True

    @property
    def is_usable(self) -> bool:
        """Implement `WaitingProcess.is_usable`."""
        return not self._is_loaded and self._process.returncode is None and not is_stopped(self.pids())
