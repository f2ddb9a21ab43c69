"""A worker's sandboxes from claim to end, with a real store and real agents as processes: deadlines, losses, leaks."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from belljar.control.store.projects import SqlProjects
from belljar.link.sandboxes import SandboxMachine
from belljar.model.errors import MachineError
from belljar.model.sandbox import EndReason, Sandbox, SandboxStatus
from belljar.model.sandbox_errors import SandboxEnded
from belljar.model.sandbox_values import ProcessExit, ProcessRequest
from belljar.model.secrets import SecretUse, SecretValue
from support.worker_harness import WorkerHarness, idle, opened_harness

ENDS = (SandboxStatus.ENDED, SandboxStatus.LOST)


def reason(sandbox: Sandbox) -> EndReason | None:
    return sandbox.end.reason if sandbox.end is not None else None


async def run(machine: SandboxMachine, *args: str) -> tuple[int | None, bytes]:
    process = await machine.start(ProcessRequest(args=args, stdin=b""))
    out = b""
    async for piece in machine.output(process.id):
        if isinstance(piece, ProcessExit):
            return piece.exit_code, out
        out += piece.data
    raise AssertionError("the output had no end")


async def test_a_sandbox_lives_from_its_creation_to_its_deletion(harness: WorkerHarness) -> None:
    async with harness.working() as worker:
        sandbox, machine = await harness.running_sandbox()
        assert sandbox.node == "w1" and sandbox.machine is not None and sandbox.machine.source == "boot"
        assert worker.capacity.jobs == 1
        assert await run(machine, "sh", "-c", "echo x > f; cat f") == (0, b"x\n")
        assert await run(machine, "cat", "f") == (0, b"x\n")  # the same machine
        await harness.delete_sandbox(sandbox)
        ended = await harness.sandbox_until(sandbox, *ENDS)
        assert (ended.status, reason(ended)) == (SandboxStatus.ENDED, EndReason.DELETED)
        await idle(worker)
    assert harness.hypervisor.alive == 0 and harness.leftovers() == []


async def test_it_ends_at_its_deadline_and_later_when_extended(harness: WorkerHarness) -> None:
    async with harness.working():
        short = await harness.create_sandbox(lifetime_seconds=2)
        longer, machine = await harness.running_sandbox(lifetime_seconds=2)
        await harness.sandbox_queue.store.extend("mine", longer.id, 600)
        harness.sandbox_queue.changes.orders.notify()
        ended = await harness.sandbox_until(short, *ENDS)
        assert (ended.status, reason(ended)) == (SandboxStatus.ENDED, EndReason.LIFETIME)
        await asyncio.sleep(1)
        assert (await run(machine, "true"))[0] == 0
        await harness.delete_sandbox(longer)
        await harness.sandbox_until(longer, *ENDS)
    assert harness.hypervisor.alive == 0


async def test_it_ends_when_idle_and_not_while_it_is_used(harness: WorkerHarness) -> None:
    async with harness.working():
        used, machine = await harness.running_sandbox(idle_seconds=0.5)
        process = await machine.start(ProcessRequest(args=("sleep", "1.5"), stdin=b""))  # a foreground command
        background, other = await harness.running_sandbox(idle_seconds=0.5)
        await other.start(ProcessRequest(args=("sleep", "1000"), stdin=b"", background=True))
        ended = await harness.sandbox_until(background, *ENDS)
        assert (ended.status, reason(ended)) == (SandboxStatus.ENDED, EndReason.IDLE)
        assert (await machine.wait(process.id, 30)).exit is not None
        assert reason(await harness.sandbox_until(used, *ENDS)) is EndReason.IDLE


async def test_a_machine_that_dies_loses_its_sandbox_with_the_reason(harness: WorkerHarness) -> None:
    async with harness.working() as worker:
        sandbox, machine = await harness.running_sandbox()
        waiting = asyncio.create_task(run(machine, "sleep", "1000"))
        await asyncio.sleep(0.1)
        harness.hypervisor.made[-1].process.kill()
        lost = await harness.sandbox_until(sandbox, *ENDS)
        assert (lost.status, reason(lost)) == (SandboxStatus.LOST, EndReason.MACHINE_DIED)
        assert lost.end is not None and "died" in lost.end.message
        (error,) = await asyncio.gather(waiting, return_exceptions=True)
        assert isinstance(error, Exception)
        with pytest.raises(SandboxEnded):
            await machine.processes()
        await idle(worker)


async def test_a_machine_that_does_not_start_is_tried_again_and_then_reported(harness: WorkerHarness) -> None:
    harness.sandbox_wait_seconds = 2
    async with harness.working():
        harness.faults.refuse("provisioner.machine", lambda: MachineError("no luck"), times=1)
        sandbox, _ = await harness.running_sandbox()
        harness.faults.refuse("provisioner.machine", lambda: MachineError("no luck at all"))
        failed = await harness.sandbox_until(await harness.create_sandbox(), *ENDS)
        assert (failed.status, reason(failed)) == (SandboxStatus.ENDED, EndReason.START_FAILED)
        assert failed.end is not None and failed.end.message == "no luck at all"
        missing = await harness.sandbox_until(await harness.create_sandbox(image_digest="0" * 64), *ENDS, seconds=30)
        assert reason(missing) is EndReason.NO_ROOM  # no node has its image
        harness.faults.clear()
        await harness.delete_sandbox(sandbox)


async def test_it_waits_for_room_and_gives_up_in_time(harness: WorkerHarness) -> None:
    harness.sandbox_wait_seconds = 2
    async with harness.working(vcpus=2) as worker:
        first, _ = await harness.running_sandbox(vcpus=2)
        second = await harness.create_sandbox(vcpus=2)
        refused = await harness.sandbox_until(second, *ENDS, seconds=30)
        assert (refused.status, reason(refused)) == (SandboxStatus.ENDED, EndReason.NO_ROOM)
        third = await harness.create_sandbox(vcpus=2)
        await harness.delete_sandbox(first)
        assert (await harness.sandbox_until(third, SandboxStatus.RUNNING, *ENDS)).status is SandboxStatus.RUNNING
        job = await harness.submit("exit 0", max_attempts=1)
        await asyncio.sleep(0.2)
        assert (await harness.get(job)).status == "queued"  # sandboxes and jobs share the node's room
        await harness.delete_sandbox(third)
        assert (await harness.ended(job)).status == "succeeded"
        await idle(worker)


async def test_it_is_deleted_while_its_machine_starts(harness: WorkerHarness) -> None:
    async with harness.working() as worker:
        rule = harness.faults.hang("hypervisor")
        sandbox = await harness.create_sandbox()
        async with asyncio.timeout(10):
            while not rule.met:
                await asyncio.sleep(0.01)
        await harness.delete_sandbox(sandbox)
        assert reason(await harness.sandbox_until(sandbox, *ENDS)) is EndReason.DELETED
        await idle(worker)
        harness.faults.clear()


async def test_a_stopped_worker_loses_its_sandboxes_and_says_so(harness: WorkerHarness) -> None:
    async with harness.working():
        sandbox, _ = await harness.running_sandbox()
    lost = await harness.sandbox_until(sandbox, *ENDS)
    assert (lost.status, reason(lost)) == (SandboxStatus.LOST, EndReason.WORKER_STOPPED)
    assert harness.hypervisor.alive == 0 and harness.leftovers() == []


async def test_what_a_dead_worker_held_is_lost_when_the_next_one_starts(harness: WorkerHarness) -> None:
    harness.faults.refuse("sandbox_link.sandbox_ended")  # as for a worker that is killed: nothing more is written
    async with harness.working():
        sandbox, _ = await harness.running_sandbox()
    assert (await harness.sandbox_until(sandbox, SandboxStatus.RUNNING)).fence == 1
    harness.faults.clear()
    async with harness.working():
        lost = await harness.sandbox_until(sandbox, *ENDS)
        assert (lost.status, reason(lost)) == (SandboxStatus.LOST, EndReason.NODE_LOST)


async def test_a_node_that_cannot_renew_kills_its_machine_before_the_lease_ends(agent: Path, tmp_path: Path) -> None:
    async with opened_harness(tmp_path / "data", agent, lease_seconds=1.5) as harness, harness.working() as worker:
        sandbox, machine = await harness.running_sandbox()
        harness.faults.refuse("sandbox_link.renew_sandboxes")
        await idle(worker, seconds=30)
        assert harness.hypervisor.alive == 0
        with pytest.raises(SandboxEnded):
            await machine.processes()
        lost = await harness.sandbox_until(sandbox, *ENDS, seconds=30)
        assert (lost.status, reason(lost)) == (SandboxStatus.LOST, EndReason.NODE_LOST)


async def test_its_secrets_are_variables_of_every_command_and_masked_in_output(harness: WorkerHarness) -> None:
    await SqlProjects(harness.database).create("mine")
    await harness.secrets.set("mine", "TOKEN", SecretValue(b"s3cret"))
    secrets = (SecretUse(name="TOKEN", env="MY_TOKEN"),)
    async with harness.working():
        sandbox, machine = await harness.running_sandbox(secrets=secrets)
        assert await run(machine, "sh", "-c", 'printf %s "${#MY_TOKEN}$MY_TOKEN" a') == (0, b"6***a")
        assert sandbox.secret_versions == {"TOKEN": 1}
        assert "s3cret" not in sandbox.model_dump_json()
        _, shown = await harness.running_sandbox(secrets=secrets, mask_secrets=False)
        assert await run(shown, "sh", "-c", 'printf %s "$MY_TOKEN"') == (0, b"s3cret")


async def test_a_hundred_sandboxes_come_and_go_and_leave_nothing(harness: WorkerHarness) -> None:
    async def live(number: int) -> EndReason | None:
        sandbox, machine = await harness.running_sandbox(project=f"p{number % 3}")
        assert await run(machine, "sh", "-c", f"echo {number}") == (0, f"{number}\n".encode())
        if number % 4 == 0:
            process = await machine.start(ProcessRequest(args=("sleep", "1000"), stdin=b"", background=True))
            await machine.signal(process.id, "SIGTERM")
        await harness.delete_sandbox(sandbox)
        return reason(await harness.sandbox_until(sandbox, *ENDS))

    async with harness.working(vcpus=16, memory_mb=65536) as worker:
        for first in range(0, 100, 10):
            reasons = await asyncio.gather(*(live(number) for number in range(first, first + 10)))
            assert set(reasons) == {EndReason.DELETED}
        await idle(worker)
        assert harness.sandbox_queue.machines._machines == {}
    assert harness.hypervisor.alive == 0 and len(harness.hypervisor.made) == 100
    assert harness.leftovers() == []
