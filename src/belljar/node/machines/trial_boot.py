"""Boots an image once at the end of its build, to tell what is wrong with a kernel before a job needs it."""

from __future__ import annotations

import re

from belljar.model.errors import ImageBuildError, MachineError
from belljar.model.image import Image
from belljar.node.machines.boot import NoClock, open_connection
from belljar.node.machines.protocol import Console, Hypervisor, MachineSpec, Shape

_MAX_TRIES = 3
_SHOWN_LINES = 4
_SHOWN_CHARACTERS = 200
#: What the agent prints before it gives up (guest/agent/boot.c), and what the kernel lacks then.
_HINTS = (
    (r"belljar-agent: /dev/vda: ", "it found no disk: CONFIG_VIRTIO_BLK, CONFIG_VIRTIO_MMIO and CONFIG_ACPI find it"),
    (r"belljar-agent: port: ", "it found no port to the host: CONFIG_VIRTIO_CONSOLE (QEMU), CONFIG_VIRTIO_VSOCKETS"),
    (r"belljar-agent: /rom: ", "it cannot mount the root file system: CONFIG_EROFS_FS"),
    (r"belljar-agent: /rw: ", "it cannot mount the writable layer: CONFIG_TMPFS, CONFIG_EXT4_FS"),
    (r"belljar-agent: /newroot: ", "it cannot mount the writable layer: CONFIG_OVERLAY_FS"),
    (r"belljar-agent: /cgroup: ", "it cannot bound jobs: CONFIG_MEMCG, CONFIG_CGROUP_PIDS"),
    (r"belljar-agent: /modules/", "it does not load a module: the modules must be those built with it"),
    (r"No working init found|Requested init .* failed", "it cannot start the agent: CONFIG_BINFMT_ELF"),
    (r"Unable to mount root fs", "it does not read the initramfs: CONFIG_BLK_DEV_INITRD, CONFIG_RD_*"),
    (r"Out of memory|System is deadlocked on memory", "it needs more memory than the machine has"),
)


async def try_boot(
    hypervisor: Hypervisor, image: Image, memory_mb: int, boot_timeout_seconds: float, *, boots: int = 3
) -> None:
    """Boot so many machines, one after the other, until their agents answer: some faults show only now and then.

    Raises ImageBuildError with the reason and the last lines of the console when one does not boot; HostError.
    """
    for number in range(1, boots + 1):
        try:
            await _boot_once(hypervisor, image, memory_mb, boot_timeout_seconds)
        except ImageBuildError as error:
            raise ImageBuildError(f"boot {number} of {boots}: {error.message}") from None


async def _boot_once(hypervisor: Hypervisor, image: Image, memory_mb: int, boot_timeout_seconds: float) -> None:
    """Boot a machine until its agent answers. One without a clock is replaced, twice at most."""
    # The script disk may be any readable file.
    shape = Shape(vcpus=1, memory_mb=memory_mb)
    spec = MachineSpec(image=image, shape=shape, script_disk=image.root)
    for tries in range(1, _MAX_TRIES + 1):
        async with hypervisor.machine(spec) as machine:
            try:
                await open_connection(machine, boot_timeout_seconds)
                return
            except NoClock:
                if tries == _MAX_TRIES:
                    raise
            except MachineError as error:
                raise ImageBuildError(_failure(image, hypervisor, error, machine.console)) from None


def _failure(image: Image, hypervisor: Hypervisor, error: MachineError, console: Console) -> str:
    text = console.data.decode(errors="replace")
    hint = next((f"; {hint}" for pattern, hint in _HINTS if re.search(pattern, text)), "")
    return (
        f"a machine with the kernel {image.manifest.kernel.origin} does not boot under {hypervisor.name}: "
        f"{error.message}{hint}; its console: {last_lines(text)}"
    )


def last_lines(console: str) -> str:
    """Return the end of a console for a message of one line, without the kernel's times."""
    lines = [re.sub(r"^\[ *\d+\.\d+\] ", "", line.strip()) for line in console.splitlines()]
    shown = [line[:_SHOWN_CHARACTERS] for line in lines if line][-_SHOWN_LINES:]
    return " | ".join(shown) or "empty; CONFIG_SERIAL_8250_CONSOLE makes the kernel print to it"
