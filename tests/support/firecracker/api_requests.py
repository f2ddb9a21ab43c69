"""Talks to the agent of a machine, as far as these tests need it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from belljar.model.image import Image
from belljar.node.guest.command import Command
from belljar.node.guest.connection import AgentConnection
from belljar.node.guest.wire import Stream
from belljar.node.machines.protocol import Machine, MachineSpec, Shape

BOOT_SECONDS = 60


def spec_of(image: Image, *, memory_mb: int = 128, frozen: bool = False, **shape: object) -> MachineSpec:
    """Return a small machine; its script disk is the root image, an erofs image like any script's."""
    return MachineSpec(
        image=image,
        shape=Shape(vcpus=1, memory_mb=memory_mb, **shape),  # type: ignore[arg-type]
        script_disk=None if frozen else image.root,
    )


class _Output:
    """Collects the output."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, stream: Stream, data: bytes) -> None:
        self.data += data

    def full(self, stream: Stream) -> bool:
        return False


async def opened(machine: Machine) -> AgentConnection:
    """Return the connection to a machine that boots; if it dies first, fail the test with the reason."""
    connection = AgentConnection(machine.reader, machine.writer)
    opening, death = asyncio.create_task(connection.open(BOOT_SECONDS)), asyncio.create_task(machine.death())
    await asyncio.wait({opening, death}, return_when=asyncio.FIRST_COMPLETED)
    if death.done():
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        raise AssertionError(f"{death.result()}\n{bytes(machine.console.data).decode(errors='replace')}")
    death.cancel()
    opening.result()
    return connection


async def run(connection: AgentConnection, script: str, *, seconds: float = 60) -> str:
    """Return the output of a shell command, which must succeed."""
    output = _Output()
    command = Command(argv=["sh", "-c", script], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    async with asyncio.timeout(seconds):
        exited = await connection.run(command, b"", output, lambda _: None)
    assert exited.exit_code == 0, output.data.decode(errors="replace")
    return output.data.decode()


def requests_of(data_dir: Path) -> list[str]:
    """Return the requests to the only running machine, as logged by the fake."""
    logs = list((data_dir / "run" / "jails").glob("*/*/root/requests.log"))
    assert len(logs) <= 1
    return logs[0].read_text().splitlines() if logs else []
