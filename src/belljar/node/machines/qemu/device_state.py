"""The state of a stopped machine's devices, as QEMU writes it to a file of bounded size."""

from __future__ import annotations

import fcntl
import os
from types import TracebackType

from belljar.model.errors import MachineError
from belljar.node.machines.qemu.memory import new_memory

#: The state of a microvm has about a quarter of a megabyte.
_MAX_BYTES = 64 << 20
#: An empty description of the state, which QEMU expects behind it (QEMU_VM_VMDESCRIPTION in its migration/savevm.h).
_DESCRIPTION = b"\x06\x00\x00\x00\x00"


class DeviceState:
    """A context manager that owns the file. The guest may have taken over its QEMU, which cannot make it larger."""

    def __enter__(self) -> DeviceState:
        self._file = new_memory(_MAX_BYTES)
        try:
            fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
            #: The descriptor for QEMU. Its position, which QEMU's copy shares, tells how much was written.
            self.writer = os.open(f"/proc/self/fd/{self._file}", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.writer)
        os.close(self._file)

    def read(self) -> bytes:
        """Return what QEMU wrote. Raises MachineError when that is nothing, or not all."""
        length = os.lseek(self.writer, 0, os.SEEK_CUR)
        if not 0 < length < _MAX_BYTES:
            raise MachineError(f"the state of the machine's devices has {length} bytes; it cannot be kept")
        return os.pread(self._file, length, 0) + _DESCRIPTION
