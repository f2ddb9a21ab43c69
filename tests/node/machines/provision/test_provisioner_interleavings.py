"""The provisioner under every interleaving that hypothesis finds: each machine has one job, and each is ended.

The hypervisor's machines are tokens whose starts, restores and ends are suspended until the test lets them go on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import structlog.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from belljar.model.errors import DiskFull, HostError, MachineDied, MachineError, MachineTimeout, NetworkError
from belljar.node.machines.protocol import BadSnapshot, Death, DeathCause, Hypervisor, MachineSpec, Shape
from belljar.node.machines.provision import (
    clone_source,
    cold_boot,
    idle_snapshots,
    pool,
    provisioner,
    snapshot_clones,
    snapshot_maker,
    waiting_processes,
    warm_clone,
)
from belljar.node.machines.provision.pool import WarmPool
from belljar.node.machines.provision.provisioner import MachineProvisioner
from belljar.node.machines.provision.snapshots import Snapshots
from belljar.node.machines.provision.waiting_processes import WaitingProcesses
from belljar.node.machines.provision.warm_up import WarmUp
from belljar.node.machines.racing import MachineDead
from support.examples import examples
from support.interleaving import Clock, Gates, Steps

NUMBERS = st.integers(0, 7)
KILLED = MachineDead(Death(cause=DeathCause.KILLED, message="killed"))
FAULTS: dict[str, Exception] = {
    "host": HostError("too many open files"),
    "disk": DiskFull("no room"),
    "files": OSError(24, "Too many open files"),
    "network": NetworkError("no slot just now"),
    "killed": KILLED,
    "bad": BadSnapshot("not whole"),
    "died": MachineDied("for an unknown reason"),
    "late": MachineTimeout("for an unknown reason"),
}
#: Faults that say nothing about the snapshot.
HOST_FAULTS = ("host", "disk", "files", "network", "killed")


class Token:
    """A machine; its end takes as long as the test wants."""

    def __init__(self, gates: Gates, number: int) -> None:
        self.id = f"token{number}"
        self.gates = gates
        self.ends = 0
        self.is_usable = True
        self.started = False
        self.jobs: list[int] = []
        self.phases: dict[str, float] = {}
        self.connection = self

    async def death(self) -> Death:
        await asyncio.Event().wait()
        raise AssertionError

    async def attach_script(self, disk: Path) -> None:
        await self.gates.pass_through("attach")

    async def set_clock(self) -> None:
        await asyncio.sleep(0)

    def set_foreground(self) -> None: ...

    def pids(self) -> list[int]:
        return []


class FakeHypervisor:
    name, accelerator, version, identity = "fake", "none", "0", "0"

    def __init__(self, gates: Gates) -> None:
        self.gates = gates
        self.made: list[Token] = []

    @asynccontextmanager
    async def machine(self, spec: MachineSpec, folder: Path | None = None) -> AsyncIterator[Token]:
        token = Token(self.gates, len(self.made))
        self.made.append(token)
        try:
            await self.gates.pass_through("start" if folder is None else "clone")
            token.started = True
            yield token
        finally:
            token.ends += 1
            await self.gates.pass_through("end")

    @asynccontextmanager
    async def clone(self, spec: MachineSpec, folder: Path, process: Token | None = None) -> AsyncIterator[Token]:
        if process is None:
            async with self.machine(spec, folder) as token:
                yield token
            return
        await self.gates.pass_through("clone")
        process.is_usable = False
        yield process

    @asynccontextmanager
    async def waiting_process(self, spec: MachineSpec, folder: Path) -> AsyncIterator[Token]:
        token = Token(self.gates, len(self.made))
        self.made.append(token)
        try:
            await self.gates.pass_through("wait")
            yield token
        finally:
            token.ends += 1
            await self.gates.pass_through("end")

    def release_snapshot(self, folder: Path) -> None: ...


class FakeSnapshots:
    """Snapshots that exist or not; counts how many were made and discarded."""

    folder = Path("/nonexistent")
    boot_timeout_seconds = 60.0

    def __init__(self, gates: Gates) -> None:
        self.gates = gates
        self.present: dict[str, int] = {}
        self.made = 0
        self.discarded = 0

    def key(self, *_: object) -> str:
        return "key"

    def find(self, key: str) -> Path | None:
        return self.folder if key in self.present else None

    def made_at(self, key: str) -> int | None:
        return self.present.get(key)

    def discard(self, key: str, reason: str) -> None:
        del self.present[key]
        self.discarded += 1

    async def make(self, *_: object) -> Path:
        await self.gates.pass_through("make")
        self.made += 1
        self.present["key"] = self.made
        return self.folder

    def clean_up(self) -> None: ...


@pytest.fixture(scope="module", autouse=True)
def script_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    ProvisionerMachine.disk = tmp_path_factory.mktemp("scripts") / "disk"
    ProvisionerMachine.disk.write_bytes(b"script")


class ProvisionerMachine(RuleBasedStateMachine):
    disk: Path

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.gates = Steps(), Gates()
        self.quiet = structlog.testing.capture_logs()
        self.quiet.__enter__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(snapshot_clones, "resume", self.resume)
        self.patch.setattr(cold_boot, "open_connection", self.open)
        for module in (snapshot_clones, clone_source):
            self.patch.setattr(module, "in_thread", self.call)
        for module in (snapshot_clones, provisioner):
            self.patch.setattr(module, "configure_network", self.configure_network)
        self.clock = Clock()
        pooling = (pool, waiting_processes, warm_clone, snapshot_clones)
        for module in (*pooling, clone_source, cold_boot, idle_snapshots, snapshot_maker):
            self.patch.setattr(module, "time", self.clock)
        self.hypervisor = FakeHypervisor(self.gates)
        self.snapshots = FakeSnapshots(self.gates)
        self.jobs: list[asyncio.Task[Any]] = []
        self.running_jobs: Counter[int] = Counter()
        self.faults: Counter[str] = Counter()

    @initialize(pooled=st.booleans(), waits=st.booleans())
    def begin(self, pooled: bool, waits: bool) -> None:
        self.pool = (
            WarmPool(fixed_size=None, max_size=2, memory_mb=1000, has_spare_processor=lambda making: making < 2)
            if pooled
            else None
        )
        waiting = WaitingProcesses(max_size=2, has_spare_processor=lambda _: True) if waits else None
        self.provisioner = MachineProvisioner(cast(Snapshots, self.snapshots), self.pool, waiting)
        self.background = self.steps.start(self.provisioner.run(lambda: 1000.0))

    async def resume(self, clone: Token, *_: object, **__: object) -> Token:
        await self.gates.pass_through("resume")
        return clone

    async def open(self, machine: Token, _: float) -> Token:
        await self.gates.pass_through("open")
        return machine

    async def call(self, work: Any, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        return work(*arguments)

    async def configure_network(self, *_: object) -> None:
        await asyncio.sleep(0)

    async def job(self, number: int) -> str:
        image = cast(Any, type("Image", (), {"name": "x"}))
        spec = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=64), script_disk=self.disk)
        warm_up_steps = WarmUp(disk=self.disk)
        async with self.provisioner.machine(cast(Hypervisor, self.hypervisor), spec, warm_up_steps, 60) as ready:
            token = cast(Token, ready.machine)
            token.jobs.append(number)
            self.running_jobs[number] += 1
            await self.gates.pass_through("job")
            assert token.ends == 0, "the machine was ended under its job"
            return ready.source

    @rule()
    def submit(self) -> None:
        self.jobs.append(self.steps.start(self.job(len(self.jobs))))

    @precondition(lambda self: self.gates.waiting)
    @rule(
        name=st.sampled_from(["start", "wait", "clone", "resume", "open", "attach", "job", "make", "end"]),
        number=NUMBERS,
    )
    def go_on(self, name: str, number: int) -> None:
        self.gates.open(name, number)

    @precondition(lambda self: self.gates.waiting)
    @rule(
        name=st.sampled_from(["start", "wait", "clone", "resume", "open", "attach", "make", "end"]),
        number=NUMBERS,
        fault=st.sampled_from(sorted(FAULTS)),
    )
    def fail(self, name: str, number: int, fault: str) -> None:
        # An end that fails while a start is cancelled reaches the provisioner as a fault of the clone.
        if self.gates.open(name, number, FAULTS[fault]) and name in ("wait", "clone", "resume", "end"):
            self.faults[fault] += 1

    @precondition(lambda self: self.jobs)
    @rule(number=NUMBERS)
    def cancel(self, number: int) -> None:
        self.jobs[number % len(self.jobs)].cancel()

    @rule(mb=st.sampled_from([0.0, 1000.0]))
    def shrink(self, mb: float) -> None:
        self.steps.start(self.provisioner.shrink_to(mb))

    @rule(seconds=st.sampled_from([1.0, 6.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def look(self) -> None:
        if self.pool is not None:
            self.pool._changed.set()
        if self.provisioner.waiting is not None:
            self.provisioner.waiting._changed.set()

    @invariant()
    def holds(self) -> None:
        self.steps.settle(30)
        assert not self.background.done(), self.background
        for token in self.hypervisor.made:
            assert len(token.jobs) <= 1, "a machine was given to two jobs"
            assert token.ends <= 1
        unexplained = sum(count for fault, count in self.faults.items() if fault not in HOST_FAULTS)
        assert self.snapshots.discarded <= unexplained, "a snapshot was discarded for the host's faults"

    def teardown(self) -> None:
        try:
            self.background.cancel()
            for _ in range(300):
                self.steps.settle()
                if not any(
                    self.gates.open(name, 0) for name in ("start", "wait", "clone", "resume", "open", "attach", "job")
                ) and (not self.gates.open("end", 0) and not self.gates.open("make", 0)):
                    break
            self.steps.settle()
            assert all(job.done() for job in self.jobs), self.gates.waiting
            assert self.background.done()
            assert [token.ends for token in self.hypervisor.made] == [1] * len(self.hypervisor.made)
            for job in self.jobs:
                if not job.cancelled() and job.exception() is not None:
                    assert isinstance(job.exception(), (MachineError, HostError, OSError)), job.exception()
            assert self.provisioner.pids() == []
        finally:
            self.patch.undo()
            self.quiet.__exit__(None, None, None)
            self.steps.close()


ProvisionerMachine.TestCase.settings = settings(max_examples=examples(40), stateful_step_count=40, deadline=None)
TestProvisionerInterleavings = ProvisionerMachine.TestCase
