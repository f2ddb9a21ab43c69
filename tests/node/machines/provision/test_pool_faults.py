"""The pool when clones are killed, the host lacks a resource, or a snapshot disappears: for real."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from belljar.node.machines.provision import warm_clone as warm_clone_module
from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.provisioner import MachineProvisioner
from support.clone_lab import Lab, converse
from support.running import descendants, name_of

pytestmark = pytest.mark.vm


@asynccontextmanager
async def filling(provisioner: MachineProvisioner, lab: Lab) -> AsyncIterator[WarmPool]:
    assert provisioner.pool is not None
    background = asyncio.create_task(provisioner.run(lambda: 1000.0))
    try:
        provisioner.prepare_for(lab.hypervisor, lab.spec(None), lab.warm_up_steps)
        yield provisioner.pool
    finally:
        background.cancel()
        await asyncio.gather(background, return_exceptions=True)


async def until_full(pool: WarmPool, count: int) -> None:
    async with asyncio.timeout(120):
        while sum(pool.counts().values()) != count:
            await asyncio.sleep(0.02)


async def until_hypervisors(count: int) -> list[int]:
    """Return the hypervisors' ids when there are that many."""
    async with asyncio.timeout(60):
        while len(pids := [pid for pid in descendants(os.getpid()) if "qemu" in name_of(pid)]) < count:
            await asyncio.sleep(0.002)
    return pids


async def test_clones_killed_while_they_are_made_or_wait_are_replaced_and_their_snapshot_stays(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_clone_module, "_RETRY_SECONDS", 0.1)
    folder = await lab.make()
    made_at = lab.snapshots.made_at(folder.name)
    provisioner = lab.with_pool(2)
    async with filling(provisioner, lab) as pool:
        for _ in range(3):
            for pid in await until_hypervisors(1):
                os.kill(pid, signal.SIGKILL)
        await until_full(pool, 2)
        waiting = await until_hypervisors(2)
        for pid in waiting:
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(60):
            while set(waiting) & set(descendants(os.getpid())):
                await asyncio.sleep(0.02)
        await until_full(pool, 2)
    assert lab.snapshots.made_at(folder.name) == made_at


async def test_a_clone_that_lacks_a_resource_of_the_host_does_not_cost_its_snapshot(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warm_clone_module, "_RETRY_SECONDS", 0.1)
    folder = await lab.make()
    made_at = lab.snapshots.made_at(folder.name)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    provisioner = lab.with_pool(1)
    async with filling(provisioner, lab) as pool:
        await until_full(pool, 1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 6, hard))
        try:
            (name,) = pool.counts()
            taken = await pool.take(name)
            assert taken is not None
            async with asyncio.timeout(30):
                while pool._buckets[name].not_before == 0.0:
                    await asyncio.sleep(0.02)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await taken.end()
        await until_full(pool, 1)
    assert lab.snapshots.made_at(folder.name) == made_at


async def test_a_snapshot_removed_while_the_pool_fills_is_made_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_clone_module, "_RETRY_SECONDS", 0.1)
    folder = await lab.make()
    provisioner = lab.with_pool(2)
    async with filling(provisioner, lab) as pool:
        await until_hypervisors(1)
        shutil.rmtree(folder)
        spec = lab.spec(await lab.script("print('ran')"))
        async with provisioner.machine(lab.hypervisor, spec, lab.warm_up_steps, 60) as ready:
            assert (await converse(ready)).stdout == b"ran\n"
        await until_full(pool, 2)
    assert lab.snapshots.find(folder.name) is not None
