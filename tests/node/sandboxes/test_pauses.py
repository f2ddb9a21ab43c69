"""Pauses, resumes and copies of a worker's sandboxes, with a real store and real agents whose processes stand still."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import select, type_coerce

from belljar.control.flows.service import FlowService
from belljar.control.store.metadata import UtcTime
from belljar.control.store.schema import NOW_US
from belljar.control.store.usage_series import SqlUsageSeries
from belljar.link.sandboxes import FreezeRequest, SandboxMachine
from belljar.model.errors import Conflict, DiskFull, HostError
from belljar.model.flows import FlowReport, FlowTotals
from belljar.model.ids import new_id
from belljar.model.log_stream import LogStream
from belljar.model.sandbox import EndReason, Sandbox, SandboxStatus
from belljar.model.sandbox_errors import SandboxEnded, SandboxPaused, StreamBroken
from belljar.model.sandbox_values import GuestUser, ProcessExit, ProcessOutput, ProcessRequest
from belljar.node.frozen.store import FrozenStore
from belljar.node.frozen.unused import UnusedFrozen
from belljar.node.sandboxes.freezes import MAX_WAITING
from belljar.node.worker.job_network import JobNetwork
from support.link_calls import NODE
from support.worker_harness import WorkerHarness, idle

ENDS = (SandboxStatus.ENDED, SandboxStatus.LOST)
USER = GuestUser(uid=os.getuid(), gid=os.getgid())
ENV = {"PATH": os.environ["PATH"]}


async def started(harness: WorkerHarness, **fields: Any) -> tuple[Sandbox, SandboxMachine]:
    return await harness.running_sandbox(user=USER, env=ENV, **fields)


def request(text: str, **fields: Any) -> ProcessRequest:
    return ProcessRequest(args=("sh", "-c", text), cwd="/tmp", **fields)


async def pause(harness: WorkerHarness, sandbox: Sandbox, machine: SandboxMachine) -> Sandbox:
    await machine.freeze(FreezeRequest(id=new_id("snap"), pause=True))
    return await harness.sandbox_until(sandbox, SandboxStatus.PAUSED)


async def resume(harness: WorkerHarness, sandbox: Sandbox) -> SandboxMachine:
    await harness.sandbox_queue.pauses.request_resume("mine", sandbox.id)
    harness.sandbox_queue.changes.waiting.notify()
    found = await harness.sandbox_until(sandbox, SandboxStatus.RUNNING, SandboxStatus.PAUSED, *ENDS)
    assert found.status is SandboxStatus.RUNNING, (found.problem, found.end)
    return harness.sandbox_queue.machines.get(found)


async def output(machine: SandboxMachine, process_id: int) -> bytes:
    """The whole of a command's output, to its end."""
    pieces = [piece async for piece in machine.output(process_id, stdout_from=0)]
    assert isinstance(pieces[-1], ProcessExit)
    return b"".join(each.data for each in pieces if isinstance(each, ProcessOutput) and each.stream is LogStream.STDOUT)


def files(harness: WorkerHarness) -> list[str]:
    return [path.name for path in harness.settings.paths.frozen.rglob("*") if path.is_file()]


async def test_commands_go_on_after_each_pause_with_their_input_output_and_exits(harness: WorkerHarness) -> None:
    async with harness.working() as worker:
        sandbox, machine = await started(harness)
        echo = await machine.start(request("while read l; do echo got $l; done", background=True))
        ended = await machine.start(request("echo early; exit 9", stdin=b""))
        await machine.wait(ended.id, 30)
        large = await machine.start(request("sleep 0.3; wc -c", stdin=bytes(600_000)))
        unread = await machine.start(request("seq 100000", stdin=b""))
        for number in range(3):
            await machine.write_input(echo.id, b"%d\n" % number)
            before = await machine.process(echo.id)
            paused = await pause(harness, sandbox, machine)
            assert paused.paused_at is not None and paused.frozen is not None and paused.frozen.node == "w1"
            await idle(worker)  # nothing is held for it
            assert harness.hypervisor.alive == 0
            with pytest.raises(SandboxPaused):
                await machine.processes()
            machine = await resume(harness, sandbox)
            after = await machine.process(echo.id)
            assert (after.pid, after.started_at, after.args) == (before.pid, before.started_at, before.args)
        await machine.end_input(echo.id)
        assert await output(machine, echo.id) == b"got 0\ngot 1\ngot 2\n"
        assert await output(machine, ended.id) == b"early\n"
        assert (await machine.process(ended.id)).exit.exit_code == 9
        assert (await output(machine, large.id)).strip() == b"600000"
        assert (await output(machine, unread.id)).split() == [b"%d" % number for number in range(1, 100_001)]
        fresh = await machine.start(request("echo fresh", stdin=b""))
        assert fresh.id not in {echo.id, ended.id, large.id, unread.id}
        assert await output(machine, fresh.id) == b"fresh\n"
        await harness.delete_sandbox(sandbox)
        await harness.sandbox_until(sandbox, *ENDS)


async def test_paused_time_counts_for_no_limit(harness: WorkerHarness) -> None:
    async with harness.working():
        sandbox, machine = await started(harness, lifetime_seconds=600, idle_seconds=600)
        paused = await pause(harness, sandbox, machine)
        assert paused.paused_at is not None
        await asyncio.sleep(1)
        before = await database_now(harness)
        machine = await resume(harness, sandbox)
        running = await harness.sandbox_until(sandbox, SandboxStatus.RUNNING)
        assert running.expires_at - paused.expires_at >= before - paused.paused_at
        assert (await machine.activity()).idle_seconds < 600
        await harness.delete_sandbox(sandbox)
        await harness.sandbox_until(sandbox, *ENDS)


async def database_now(harness: WorkerHarness) -> datetime:
    """The time by the clock that limits are counted by."""
    now = select(type_coerce(NOW_US, UtcTime))
    return await harness.database.reading(lambda connection: connection.execute(now).scalar_one())


async def test_a_copy_breaks_nothing_off(harness: WorkerHarness) -> None:
    async with harness.working():
        sandbox, machine = await started(harness)
        process = await machine.start(request("for i in 1 2 3 4 5 6; do echo $i; sleep 0.2; done", stdin=b""))
        reading = asyncio.create_task(output(machine, process.id))
        for _ in range(3):
            copies = [machine.freeze(FreezeRequest(id=new_id("snap"), pause=False)) for _ in range(2)]
            frozen = await asyncio.gather(*copies)
            assert len({each.id for each in frozen}) == 2
        assert await reading == b"1\n2\n3\n4\n5\n6\n"
        assert (await harness.sandbox_until(sandbox, SandboxStatus.RUNNING)).fence == 1
        await harness.delete_sandbox(sandbox)
        await harness.sandbox_until(sandbox, *ENDS)


async def test_two_pauses_at_once_are_one(harness: WorkerHarness) -> None:
    async with harness.working():
        sandbox, machine = await started(harness)
        answers = await asyncio.gather(
            *(machine.freeze(FreezeRequest(id=new_id("snap"), pause=True)) for _ in range(3)), return_exceptions=True
        )
        assert [type(each) for each in answers[1:]] == [SandboxPaused, SandboxPaused]
        paused = await harness.sandbox_until(sandbox, SandboxStatus.PAUSED)
        assert paused.frozen == answers[0]


@contextlib.contextmanager
def writing(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> Any:
    """Have the store fail, or with None wait until it is stopped; yield an event that tells when it was called."""
    called, real = threading.Event(), FrozenStore.write

    def write(*_: Any, is_stopped: Any, **__: Any) -> None:
        called.set()
        if error is not None:
            raise error
        while not is_stopped():
            pass
        raise InterruptedError("the freezing was stopped")

    monkeypatch.setattr(FrozenStore, "write", write)
    yield called
    monkeypatch.setattr(FrozenStore, "write", real)


async def test_without_room_on_the_disk_it_goes_on(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    async with harness.working():
        sandbox, machine = await started(harness)
        process = await machine.start(request("read l; echo $l"))
        reading = asyncio.create_task(output(machine, process.id))
        for is_pause in (True, False):
            with writing(monkeypatch, DiskFull("no room for it")), pytest.raises(DiskFull, match="no room for it"):
                await machine.freeze(FreezeRequest(id=new_id("snap"), pause=is_pause))
        running = await harness.sandbox_until(sandbox, SandboxStatus.RUNNING)
        assert running.paused_at is None and harness.sandbox_queue.machines.get(running) is machine
        await machine.write_input(process.id, b"whole\n")
        assert await reading == b"whole\n"
        await pause(harness, sandbox, machine)


async def test_it_is_deleted_while_it_is_written(harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    async with harness.working() as worker:
        sandbox, machine = await started(harness)
        with writing(monkeypatch, None) as called:
            freezing = asyncio.create_task(machine.freeze(FreezeRequest(id=new_id("snap"), pause=True)))
            assert await asyncio.to_thread(called.wait, 10)
            await harness.delete_sandbox(sandbox)
            ended = await harness.sandbox_until(sandbox, *ENDS)
        assert ended.end is not None and ended.end.reason is EndReason.DELETED
        with pytest.raises(SandboxEnded):
            await freezing
        await idle(worker)
    assert files(harness) == []


async def test_without_room_on_the_node_it_stays_paused(harness: WorkerHarness) -> None:
    harness.sandbox_wait_seconds = 2
    async with harness.working(vcpus=2):
        sandbox, machine = await started(harness, vcpus=2)
        await pause(harness, sandbox, machine)
        other, _ = await started(harness, vcpus=2)
        await harness.sandbox_queue.pauses.request_resume("mine", sandbox.id)
        again = await harness.sandbox_until(sandbox, SandboxStatus.PAUSED, seconds=30)
        assert again.problem is not None and again.problem.code == "no_room" and again.paused_at is not None
        await harness.delete_sandbox(other)
        await harness.sandbox_until(other, *ENDS)
        machine = await resume(harness, sandbox)
        assert await machine.processes() == ()
        assert (await harness.sandbox_until(sandbox, SandboxStatus.RUNNING)).problem is None


async def test_what_cannot_be_read_stays_paused_and_says_why(harness: WorkerHarness) -> None:
    async with harness.working() as worker:
        sandbox, machine = await started(harness)
        await pause(harness, sandbox, machine)
        (pack,) = harness.settings.paths.frozen.rglob("*.pack")
        whole = pack.read_bytes()
        pack.write_bytes(bytes(len(whole)))
        await harness.sandbox_queue.pauses.request_resume("mine", sandbox.id)
        harness.sandbox_queue.changes.waiting.notify()
        refused = await harness.sandbox_until(sandbox, SandboxStatus.PAUSED)
        assert refused.problem is not None and refused.problem.code == "snapshot_unusable"
        await idle(worker)
        pack.write_bytes(whole)
        await resume(harness, sandbox)
        await harness.delete_sandbox(sandbox)
        await harness.sandbox_until(sandbox, *ENDS)


async def test_what_was_kept_before_the_worker_died_is_paused_when_the_next_one_starts(harness: WorkerHarness) -> None:
    refused = harness.faults.refuse("sandbox_link.sandbox_paused", lambda: HostError("the control plane is away"))
    async with harness.working():
        sandbox, machine = await started(harness)
        freezing = asyncio.create_task(machine.freeze(FreezeRequest(id=new_id("snap"), pause=True)))
        while not refused.met:
            await asyncio.sleep(0.01)
    with pytest.raises(SandboxPaused):
        await freezing
    assert (await harness.sandbox_until(sandbox, SandboxStatus.PAUSING)).fence == 1
    harness.faults.clear()
    async with harness.working():
        await harness.sandbox_until(sandbox, SandboxStatus.PAUSED)
        machine = await resume(harness, sandbox)
        await harness.delete_sandbox(sandbox)
        await harness.sandbox_until(sandbox, *ENDS)


async def test_a_worker_that_dies_before_all_was_kept_has_lost_it(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.faults.refuse("sandbox_link.sandbox_ended")  # as for a worker that is killed: nothing more is written
    with writing(monkeypatch, None) as called:
        async with harness.working():
            sandbox, machine = await started(harness)
            freezing = asyncio.create_task(machine.freeze(FreezeRequest(id=new_id("snap"), pause=True)))
            assert await asyncio.to_thread(called.wait, 10)
        await asyncio.gather(freezing, return_exceptions=True)
    harness.faults.clear()
    async with harness.working():
        lost = await harness.sandbox_until(sandbox, *ENDS)
        assert lost.end is not None and lost.end.reason is EndReason.NODE_LOST
    assert files(harness) == []


async def test_a_machine_that_dies_while_it_is_frozen_is_lost(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness.working():
        sandbox, machine = await started(harness)
        process = await machine.start(request("sleep 1000", stdin=b""))
        reading = asyncio.create_task(output(machine, process.id))
        await asyncio.sleep(0.1)
        with writing(monkeypatch, HostError("no")) as called:
            freezing = asyncio.create_task(machine.freeze(FreezeRequest(id=new_id("snap"), pause=True)))
            while not called.is_set():
                await asyncio.sleep(0)
            harness.hypervisor.made[-1].process.kill()
            lost = await harness.sandbox_until(sandbox, *ENDS)
        assert lost.end is not None and lost.end.reason is EndReason.MACHINE_DIED
        (failure,) = await asyncio.gather(freezing, return_exceptions=True)
        assert isinstance(failure, Exception)
        with pytest.raises(StreamBroken):
            await reading


async def test_only_what_is_needed_is_kept(harness: WorkerHarness) -> None:
    unused = UnusedFrozen(harness.sandbox_queue.link, NODE, FrozenStore(harness.settings.paths.frozen), 0)
    async with harness.working():
        sandbox, machine = await started(harness)
        await machine.freeze(FreezeRequest(id=new_id("snap"), pause=False))  # of which nobody wants a copy
        assert await unused.remove() == 1
        await pause(harness, sandbox, machine)
        assert await unused.remove() == 0
        machine = await resume(harness, sandbox)
        assert await unused.remove() == 0  # the next pause builds on it
        await pause(harness, sandbox, machine)
        assert await unused.remove() == 1
        await harness.sandbox_queue.store.request_end(None, sandbox.id, EndReason.DELETED, "it was deleted")
        assert await unused.remove() == 1
    assert files(harness) == []


async def test_a_timeout_is_kept_after_a_pause_without_anybody_who_waits(harness: WorkerHarness) -> None:
    async with harness.working():
        sandbox, machine = await started(harness)
        late = await machine.start(request("sleep 1000", stdin=b"", timeout_seconds=2))
        long = await machine.start(request("sleep 1000", stdin=b"", timeout_seconds=600))
        await pause(harness, sandbox, machine)
        machine = await resume(harness, sandbox)
        ended = (await machine.wait(late.id, 60)).exit
        assert ended is not None and ended.timed_out and ended.signal == "SIGKILL"
        assert (await machine.process(long.id)).exit is None
        await pause(harness, sandbox, machine)
        machine = await resume(harness, sandbox)
        assert (await machine.process(late.id)).exit == ended  # it is remembered
        await harness.delete_sandbox(sandbox)
        await harness.sandbox_until(sandbox, *ENDS)


async def test_output_that_nobody_reads_does_not_grow_with_every_copy(harness: WorkerHarness) -> None:
    async with harness.working():
        sandbox, machine = await started(harness)
        process = await machine.start(request("yes", stdin=b""))
        sizes = []
        for _ in range(5):
            await machine.freeze(FreezeRequest(id=new_id("snap"), pause=False))
            await asyncio.sleep(0.3)
            sizes.append((await machine.process(process.id)).stdout_bytes)
        assert sizes[-1] == sizes[1], sizes
        await harness.delete_sandbox(sandbox)
        await harness.sandbox_until(sandbox, *ENDS)


async def test_only_so_many_copies_wait_and_a_pause_does_in_any_case(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with harness.working():
        sandbox, machine = await started(harness)
        with writing(monkeypatch, None) as called:

            def freeze(*, is_pause: bool = False) -> asyncio.Task[Any]:
                return asyncio.create_task(machine.freeze(FreezeRequest(id=new_id("snap"), pause=is_pause)))

            tasks = [freeze()]
            assert await asyncio.to_thread(called.wait, 10)
            tasks += [freeze() for _ in range(MAX_WAITING)]
            await asyncio.sleep(0)
            with pytest.raises(Conflict, match="wait to be made"):
                await freeze()
            tasks[-1].cancel()  # nobody wants that one
            await asyncio.wait([tasks[-1]])
            tasks += [freeze(), freeze(is_pause=True)]
            await asyncio.sleep(0.1)
            assert not any(task.done() for task in tasks[:-3])
            await harness.delete_sandbox(sandbox)
            await harness.sandbox_until(sandbox, *ENDS)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(each, (SandboxEnded, asyncio.CancelledError)) for each in outcomes), outcomes


@pytest.fixture(autouse=True)
async def nothing_is_left(harness: WorkerHarness) -> AsyncIterator[None]:
    yield
    assert harness.hypervisor.alive == 0 and harness.leftovers() == []


async def test_a_pause_keeps_what_the_machine_talked_to_and_used(
    harness: WorkerHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease ends with the pause: both are sent before."""
    report = FlowReport(source="ebpf", totals=FlowTotals(flows=1, bytes_out=5))

    async def finish_flows(_: JobNetwork) -> FlowReport:
        return report

    monkeypatch.setattr(JobNetwork, "finish_flows", finish_flows)
    flows = FlowService.over(harness.database)
    async with harness.working():
        sandbox, machine = await started(harness)
        async with asyncio.timeout(30):
            while not (await machine.usage_series()).seconds:
                await asyncio.sleep(0.05)
        await pause(harness, sandbox, machine)
        assert await flows.get(sandbox.id) == report
        assert (await SqlUsageSeries(harness.database).get(sandbox.id)) is not None
        again = await resume(harness, sandbox)
        await pause(harness, sandbox, again)
        assert (await flows.get(sandbox.id)).totals.bytes_out == 10
