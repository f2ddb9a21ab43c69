"""Starting jails, and thinking better of it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from belljar.images.catalog import Images
from belljar.node.machines.host.jail import kill_tree, spawn
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.settings import Settings
from support.firecracker.api_requests import spec_of

_BUBBLEWRAP = ["bwrap", "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/", "sleep", "600"]


@pytest.mark.process
async def test_a_jail_whose_start_is_cancelled_at_any_moment_is_ended() -> None:
    """Its inside must not outlive it: the pipe that both hold comes to its end."""
    for number in range(60):
        task = asyncio.create_task(spawn(_BUBBLEWRAP, stderr=asyncio.subprocess.PIPE))
        await asyncio.sleep(number / 20_000)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=30)
        assert done
        if not task.cancelled():  # it was quicker
            process = task.result()
            kill_tree(process.pid)
            await asyncio.wait_for(process.wait(), 30)


async def test_a_second_cancellation_does_not_break_the_ending_of_the_first() -> None:
    task = asyncio.create_task(spawn(["sleep", "600"], stderr=asyncio.subprocess.PIPE))
    await asyncio.sleep(0)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    done, _ = await asyncio.wait({task}, timeout=30)
    assert done and task.cancelled()


@pytest.mark.vm
async def test_a_machine_of_qemu_whose_start_is_cancelled_at_any_moment_ends(data_dir: Path) -> None:
    hypervisor = QemuHypervisor(Settings(data_dir=data_dir), "tcg")
    spec = spec_of(Images(data_dir).get("shell"))

    async def start() -> None:
        async with hypervisor.machine(spec) as machine:
            await machine.death()

    for number in range(30):
        task = asyncio.create_task(start())
        await asyncio.sleep(number / 1000)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=60)
        assert done
