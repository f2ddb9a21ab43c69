"""Sandboxes that are paused, resumed, copied and forked in real machines: what only memory, clock and devices show."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest

from belljar.control.api.services import Services
from belljar.control.sandboxes.request import ForkRequest, SandboxRequest
from belljar.link.sandboxes import SandboxMachine
from belljar.model.job import Resources
from belljar.model.log_stream import LogStream
from belljar.model.sandbox import EndReason, Sandbox, SandboxStatus
from belljar.model.sandbox_errors import SandboxPaused
from belljar.model.sandbox_values import ProcessExit, ProcessOutput, ProcessRequest, TerminalSize
from belljar.node.machines.host.usage import children
from end_to_end.test_sandbox_machines import create, node, run, until

pytestmark = pytest.mark.vm

CYCLES = 5
FORKS = 3
#: Counts in its memory, listens on a port, and answers with its count.
COUNTER = """
import os, socket, threading, time
server = socket.create_server(("127.0.0.1", 7000))
secret, count = os.urandom(16).hex(), 0
def answer():
    while True:
        client, _ = server.accept()
        client.sendall(f"{count} {secret} {time.time()} {time.monotonic()}".encode())
        client.close()
threading.Thread(target=answer, daemon=True).start()
while True:
    count += 1
    print(count, flush=True)
    time.sleep(0.05)
"""
#: Writes random bytes without a pause until it is stopped.
DRAWING = """
import os
with open("/tmp/drawn", "w", buffering=1) as drawn:
    while not os.path.exists("/tmp/enough"):
        for _ in range(100):
            print(os.urandom(16).hex(), file=drawn)
"""
#: Everything that must differ between machines that had the same memory.
NAMES = "head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo; cat /proc/sys/kernel/random/uuid; hostname"


def hypervisors() -> list[int]:
    return [pid for pid in children(os.getpid()) if b"qemu-system" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def count_of(machine: SandboxMachine) -> tuple[int, str, float, float]:
    """The counter's count, its secret, and the times of its clocks."""
    async with machine.connect(7000) as stream:
        answer = b"".join([data async for data in stream]).decode()
    count, secret, now, monotonic = answer.split()
    return int(count), secret, float(now), float(monotonic)


async def pause_and_resume(services: Services, sandbox: Sandbox, seconds: float = 0) -> SandboxMachine:
    paused = await services.freezing.pause("mine", sandbox.id)
    assert paused.status is SandboxStatus.PAUSED and paused.frozen is not None
    async with asyncio.timeout(60):
        while hypervisors():  # also one that is being frozen into a snapshot of the image
            await asyncio.sleep(0.05)
    await asyncio.sleep(seconds)
    return await resume(services, sandbox)


async def resume(services: Services, sandbox: Sandbox) -> SandboxMachine:
    await services.freezing.request_resume("mine", sandbox.id)
    running = await until(services, sandbox, SandboxStatus.RUNNING, SandboxStatus.PAUSED)
    assert running.status is SandboxStatus.RUNNING, running.problem
    return services.sandbox_queue.machines.get(running)


async def remove(services: Services, *sandboxes: Sandbox) -> None:
    for sandbox in sandboxes:
        await services.sandboxes.delete("mine", sandbox.id)
    for sandbox in sandboxes:
        await until(services, sandbox, SandboxStatus.ENDED)


async def test_a_sandbox_goes_on_after_every_pause_and_so_do_its_copies(built_images: Path, tmp_path: Path) -> None:
    async with node(tmp_path / "data", built_images) as services:
        await services.projects.create("mine")
        sandbox = await until(services, await create(services), SandboxStatus.RUNNING)
        machine = services.sandbox_queue.machines.get(sandbox)
        await run(machine, "echo kept > /tmp/f; sync")
        counter = await machine.start(ProcessRequest(args=("python3", "-c", COUNTER), background=True))
        shell = await machine.start(ProcessRequest(args=("sh",), terminal=TerminalSize(columns=80, rows=24)))
        foreground = await machine.start(
            ProcessRequest(args=("sh", "-c", "seq 200000; read x; echo $x"), background=False)
        )
        while 7000 not in {port.port for port in await machine.ports()}:
            await asyncio.sleep(0.1)
        names, counts = {await run(machine, NAMES)}, [(await count_of(machine))[0]]
        _, secret, _, monotonic = await count_of(machine)
        stored = []
        for cycle in range(CYCLES):
            before = machine
            machine = await pause_and_resume(services, sandbox, seconds=3 if cycle == 1 else 0)
            with pytest.raises(SandboxPaused):
                await before.processes()
            count, again, now, later = await count_of(machine)
            assert again == secret and abs(now - time.time()) < 2
            assert monotonic < later < monotonic + 120
            counts.append(count)
            names.add(await run(machine, NAMES))
            assert await run(machine, "cat /tmp/f") == "kept"
            stored.append(sum(pack.stat().st_size for pack in (tmp_path / "data/frozen").rglob("*.pack")))
        assert counts == sorted(counts) and counts[-1] < counts[0] + 600  # it stood still while it was paused
        assert len(names) == CYCLES + 1
        assert stored[1] - stored[0] < stored[0] / 2  # only what had changed

        await machine.write_input(shell.id, b"stty size; exit 3\n")
        assert (await machine.wait(shell.id, 60)).exit.exit_code == 3
        await machine.write_input(foreground.id, b"done\n")
        output = b"".join(await whole(machine, foreground.id))
        assert output == b"".join(b"%d\n" % number for number in range(1, 200_001)) + b"done\n"
        kept = [piece async for piece in first(machine, counter.id, 5)]
        assert [piece.offset for piece in kept] == sorted(piece.offset for piece in kept)

        reading = asyncio.create_task(run(machine, "sleep 2; echo whole"))
        await asyncio.sleep(0.5)
        drawing = await machine.start(ProcessRequest(args=("python3", "-c", DRAWING), background=True))
        forks = await services.freezing.fork("mine", sandbox.id, ForkRequest(count=FORKS))
        running = [await until(services, fork, SandboxStatus.RUNNING) for fork in forks]
        assert await reading == "whole"  # a snapshot breaks no stream off
        machines = [services.sandbox_queue.machines.get(fork) for fork in running]
        assert len({await run(each, NAMES) for each in (machine, *machines)}) == FORKS + 1
        await nothing_is_drawn_twice([machine, *machines], drawing.id)
        assert {(await count_of(each))[1] for each in (machine, *machines)} == {secret}
        assert {await run(each, "cat /tmp/f") for each in machines} == {"kept"}
        await run(machines[0], "echo mine > /tmp/f")
        assert await run(machines[1], "cat /tmp/f") == "kept"
        await pause_one_of(services, running[0])
        await remove(services, *running)

        snapshot = await services.freezing.snapshot("mine", sandbox.id, keep_secrets=False)
        made = await services.sandboxes.create("mine", SandboxRequest(snapshot=snapshot.id))
        made = await until(services, made, SandboxStatus.RUNNING)
        assert (await count_of(services.sandbox_queue.machines.get(made)))[1] == secret
        await remove(services, made)

        await services.freezing.pause("mine", sandbox.id)
        alter(tmp_path / "data/frozen")
        await services.freezing.request_resume("mine", sandbox.id)
        refused = await until(services, sandbox, SandboxStatus.PAUSED)
        assert refused.problem is not None and refused.problem.code == "snapshot_unusable"
        await remove(services, sandbox)


async def nothing_is_drawn_twice(machines: list[SandboxMachine], process_id: int) -> None:
    """What a program drew before it was copied is in every copy; from then on each has bytes of its own."""
    drawn = []
    for each in machines:
        await run(each, "touch /tmp/enough")
        exited = (await each.wait(process_id, 60)).exit
        assert exited is not None and exited.exit_code == 0
        drawn.append((await run(each, "cat /tmp/drawn")).split())
    common = next(place for place, lines in enumerate(zip(*drawn, strict=False)) if len(set(lines)) > 1)
    own = [each[common:] for each in drawn]
    assert all(own) and len({line for lines in own for line in lines}) == sum(len(lines) for lines in own)


async def pause_one_of(services: Services, fork: Sandbox) -> None:
    """A fork is a sandbox like any other: it is paused and resumed while others run."""
    await services.freezing.pause("mine", fork.id)
    machine = await resume(services, fork)
    assert await run(machine, "cat /tmp/f") == "mine"


async def test_a_disk_is_kept_too(built_images: Path, tmp_path: Path) -> None:
    async with node(tmp_path / "data", built_images) as services:
        await services.projects.create("mine")
        resources = Resources(vcpus=1, memory_mb=256, disk_mb=64)
        sandbox = await until(services, await create(services, resources=resources), SandboxStatus.RUNNING)
        machine = services.sandbox_queue.machines.get(sandbox)
        digest = await run(machine, "head -c 20000000 /dev/urandom > big; sync; sha256sum < big")
        for _ in range(2):
            machine = await pause_and_resume(services, sandbox)
            await run(machine, "echo 3 > /proc/sys/vm/drop_caches || true")
            assert await run(machine, "sha256sum < big") == digest
        await remove(services, sandbox)
        ended = await services.sandboxes.get("mine", sandbox.id)
        assert ended.end is not None and ended.end.reason is EndReason.DELETED
        assert json.dumps(ended.public())


async def whole(machine: SandboxMachine, process_id: int) -> list[bytes]:
    pieces = [piece async for piece in machine.output(process_id, stdout_from=0)]
    assert isinstance(pieces[-1], ProcessExit)
    return [piece.data for piece in pieces if isinstance(piece, ProcessOutput) and piece.stream is LogStream.STDOUT]


async def first(machine: SandboxMachine, process_id: int, count: int):  # type: ignore[no-untyped-def]
    async for piece in machine.output(process_id):
        yield piece
        count -= 1
        if not count:
            return


def alter(folder: Path) -> None:
    for pack in folder.rglob("*.pack"):
        data = bytearray(pack.read_bytes())
        data[len(data) // 2] ^= 1
        pack.write_bytes(data)
