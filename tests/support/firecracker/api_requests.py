"""A conversation with the agent of a machine, as far as these tests need one."""

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
    """A small machine; its script disk is the root image, which is an erofs image like any script's."""
    return MachineSpec(
        image=image,
        shape=Shape(vcpus=1, memory_mb=memory_mb, **shape),  # type: ignore[arg-type]
        script_disk=None if frozen else image.root,
    )


class _Kept:
    """Keeps the output."""

    def __init__(self) -> None:
        self.data = bytearray()

    async def write(self, stream: Stream, data: bytes) -> None:
        self.data += data

    def full(self, stream: Stream) -> bool:
        return False


async def opened(machine: Machine) -> AgentConnection:
    """A session with a machine that boots; when it dies first, the reason is the test's failure."""
    connection = AgentConnection(machine.reader, machine.writer)
    opening, dying = asyncio.create_task(connection.open(BOOT_SECONDS)), asyncio.create_task(machine.death())
    await asyncio.wait({opening, dying}, return_when=asyncio.FIRST_COMPLETED)
    if dying.done():
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        raise AssertionError(f"{dying.result()}\n{bytes(machine.console.data).decode(errors='replace')}")
    dying.cancel()
    opening.result()
    return connection


async def run(connection: AgentConnection, script: str, *, seconds: float = 60) -> str:
    """What a shell command prints; it must succeed."""
    kept = _Kept()
    command = Command(argv=["sh", "-c", script], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"})
    async with asyncio.timeout(seconds):
        exited = await connection.run(command, b"", kept, lambda _: None)
    assert exited.exit_code == 0, kept.data.decode(errors="replace")
    return kept.data.decode()


def requests_of(data_dir: Path) -> list[str]:
    """The requests that the one machine that runs now was told, as the stand-in keeps them."""
    logs = list((data_dir / "run" / "jails").glob("*/*/root/requests.log"))
    assert len(logs) <= 1
    return logs[0].read_text().splitlines() if logs else []
