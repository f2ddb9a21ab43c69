"""An attempt's limits and endings, against the real agent as a process."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from belljar.model.errors import MachineDied
from belljar.model.flows import FlowAlert, FlowReport
from belljar.model.image import Image, Manifest, Part
from belljar.model.states import Status
from belljar.node.guest import usage_sampler
from belljar.node.guest.command import Command
from belljar.node.guest.usage_sampler import UsageSampler
from belljar.node.machines.host.shielded_stack import uninterrupted
from belljar.node.machines.protocol import MachineSpec, Shape
from belljar.node.machines.provision.provisioner import ProvisionedMachine
from belljar.node.worker.alarm import Alarm
from belljar.node.worker.attempt import attempt
from belljar.node.worker.attempt_end import AttemptEnd, Stop
from belljar.node.worker.job_network import network_use
from belljar.node.worker.outcome import error_of, status_of
from belljar.node.worker.plan import AttemptPlan
from support.agent_process import Listener, ProcessHypervisor
from support.job_queue import queued

PART = Part(sha256="0" * 64, size_bytes=0, origin="nowhere")
MANIFEST = Manifest(
    name="none", architecture="x86_64", digest="0" * 64, kernel=PART, initramfs=PART, root=PART, languages=()
)
NOWHERE = Path("/nonexistent")


@pytest.fixture
def hypervisor(agent: Path) -> ProcessHypervisor:
    return ProcessHypervisor(agent)


def plan(
    folder: Path, *argv: str, timeout_seconds: float = 30, grace_seconds: float = 5, **more: object
) -> AttemptPlan:
    image = Image(manifest=MANIFEST, kernel=NOWHERE, initramfs=NOWHERE, root=NOWHERE)
    spec = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=128), script_disk=NOWHERE)
    command = Command(argv=argv, env={"PATH": "/usr/bin:/bin"}, cwd=str(folder), isolated=False)
    return AttemptPlan(
        machine=spec,
        command=command,
        stdin=b"",
        timeout_seconds=timeout_seconds,
        grace_seconds=grace_seconds,
        boot_timeout_seconds=10,
        max_artifact_bytes=1 << 20,
        max_artifact_count=10,
        **more,  # type: ignore[arg-type]
    )


class SamplingListener(Listener):
    """Keeps the sampler of its attempt."""

    sampler: UsageSampler | None = None

    def on_usage(self, sampler: UsageSampler) -> None:
        self.sampler = sampler


async def run(hypervisor: ProcessHypervisor, wanted: AttemptPlan, listener: Listener | None = None) -> AttemptEnd:
    async with asyncio.timeout(30):
        return await end_of(hypervisor, wanted, listener or Listener(), asyncio.Event())


async def end_of(
    hypervisor: ProcessHypervisor, wanted: AttemptPlan, listener: Listener, cancel: asyncio.Event
) -> AttemptEnd:
    async with attempt(wanted, hypervisor.ready, listener, cancel) as end:
        return end


async def test_a_script_runs_and_its_machine_is_gone(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    listener = Listener()
    end = await run(hypervisor, plan(tmp_path, "sh", "-c", "echo hi; echo no >&2; exit 4"), listener)
    assert end.exited is not None and end.exited.exit_code == 4
    assert (bytes(listener.stdout), bytes(listener.stderr)) == (b"hi\n", b"no\n")
    assert listener.started_count == 1
    assert listener.console_text == b"booted\n"
    assert list(end.phases) == ["boot", "start", "run"]
    assert hypervisor.alive == 0


async def test_usage_is_never_more_than_the_machine_has(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    """The agent is a process here, and says what it sees: more memory than the machine of 128 MB has."""
    large = "x = bytearray(200 << 20)"
    end = await run(hypervisor, plan(tmp_path, sys.executable, "-c", large))
    assert end.exited is not None and end.exited.exit_code == 0
    assert end.exited.max_memory_bytes == 128 << 20


async def test_usage_is_sampled_while_the_script_runs(
    hypervisor: ProcessHypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_sampler, "FIRST_INTERVAL_SECONDS", 0.1)
    listener = SamplingListener()
    await run(hypervisor, plan(tmp_path, "sleep", "0.7"), listener)
    assert listener.sampler is not None
    series = listener.sampler.series()
    assert 2 <= len(series.seconds) <= 7 and series.vcpus == 1
    assert max(series.disk_bytes) > 0


async def test_a_timeout_sends_sigterm_first(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    listener = Listener()
    script = "trap 'echo bye; exit 9' TERM; while :; do sleep 0.05; done"
    end = await run(hypervisor, plan(tmp_path, "sh", "-c", script, timeout_seconds=0.3), listener)
    assert end.stop is Stop.TIMED_OUT
    assert end.exited is not None and end.exited.exit_code == 9
    assert bytes(listener.stdout) == b"bye\n"


async def test_a_script_that_ignores_sigterm_is_killed(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    script = "trap '' TERM; while :; do sleep 0.05; done"
    end = await run(hypervisor, plan(tmp_path, "sh", "-c", script, timeout_seconds=0.3, grace_seconds=0.3))
    assert end.stop is Stop.TIMED_OUT
    assert end.exited is not None and end.exited.signal == signal.SIGKILL


@dataclass
class AlarmedNetwork:
    """The network of a machine whose flows raise an alert."""

    alarm: Alarm = field(default_factory=Alarm)

    async def traffic(self) -> None:
        return None

    async def finish_flows(self) -> FlowReport:
        assert self.alarm.alert is not None
        return FlowReport(source="ebpf", alerts=(self.alarm.alert,))


async def test_an_alert_that_stops_ends_a_running_job_and_says_why(
    hypervisor: ProcessHypervisor, tmp_path: Path
) -> None:
    network, listener = AlarmedNetwork(), Listener()

    async def run_alarmed() -> AttemptEnd:
        wanted = plan(tmp_path, "sleep", "60")
        async with attempt(wanted, hypervisor.ready, listener, asyncio.Event(), network) as end:
            return end

    running = asyncio.create_task(run_alarmed())
    while not listener.started_count:
        await asyncio.sleep(0.01)
    message = "sent 5.0 MB; flow_alert_mb_out is 4"
    network.alarm.ring(FlowAlert(rule="bytes_out", message=message, at=datetime.now(UTC), action="stop"))
    async with asyncio.timeout(10):
        end = await running
    assert end.stop is Stop.ALERT and end.exited is not None and end.exited.signal == signal.SIGTERM
    error = error_of(end, queued())
    assert error is not None and (error.code, status_of(end)) == ("flow_alert", Status.FAILED)
    assert error.message == f"an alert rule stopped the job: it {message}"
    assert network_use(end.traffic, end.flows).alerts[0].message == message


async def test_cancelling_ends_a_running_job(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    cancel, listener = asyncio.Event(), Listener()
    running = asyncio.create_task(end_of(hypervisor, plan(tmp_path, "sleep", "60"), listener, cancel))
    while not listener.started_count:
        await asyncio.sleep(0.01)
    cancel.set()
    async with asyncio.timeout(10):
        end = await running
    assert end.stop is Stop.CANCELLED
    assert hypervisor.alive == 0


async def test_cancelling_before_the_start_boots_nothing(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    cancel = asyncio.Event()
    cancel.set()
    end = await end_of(hypervisor, plan(tmp_path, "true"), Listener(), cancel)
    assert end.stop is Stop.CANCELLED
    assert hypervisor.made == []


async def test_a_machine_that_dies_is_not_the_scripts_failure(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    listener = Listener()
    running = asyncio.create_task(end_of(hypervisor, plan(tmp_path, "sleep", "60"), listener, asyncio.Event()))
    while not listener.started_count:
        await asyncio.sleep(0.01)
    hypervisor.made[0].process.kill()
    async with asyncio.timeout(10):
        with pytest.raises(MachineDied, match="process ended"):
            await running
    assert hypervisor.alive == 0


async def test_a_worker_that_is_stopped_takes_its_machine_along(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    listener = Listener()
    running = asyncio.create_task(end_of(hypervisor, plan(tmp_path, "sleep", "60"), listener, asyncio.Event()))
    while not listener.started_count:
        await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert hypervisor.alive == 0


async def test_artifacts_are_fetched_after_a_failure_too(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    listener = Listener()
    wanted = plan(tmp_path, "sh", "-c", "echo result > out.txt; exit 1", artifacts=("*.txt",))
    end = await run(hypervisor, wanted, listener)
    assert end.exited is not None and end.exited.exit_code == 1
    assert end.collected is not None and end.collected.count == 1
    assert listener.files == {"out.txt": bytearray(b"result\n")}


async def test_a_program_that_is_not_there_is_the_jobs_failure(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    end = await run(hypervisor, plan(tmp_path, "no-such-interpreter"))
    assert end.exited is None
    assert end.not_started is not None and "No such file" in str(end.not_started)


def compiled(folder: Path, compile_script: str, run_script: str, **more: object) -> AttemptPlan:
    wanted = plan(folder, "sh", "-c", run_script, **more)  # type: ignore[arg-type]
    return replace(wanted, compile=replace(wanted.command, argv=("sh", "-c", compile_script), keep=True))


async def test_a_script_is_compiled_and_then_run_in_the_same_machine(
    hypervisor: ProcessHypervisor, tmp_path: Path
) -> None:
    listener = Listener()
    wanted = compiled(tmp_path, "echo building; echo warning >&2; echo made > out; cat", "cat out -; exit 5")
    end = await run(hypervisor, replace(wanted, stdin=b"input"), listener)
    assert end.exited is not None and end.exited.exit_code == 5 and not end.in_compile
    assert bytes(listener.stdout) == b"made\ninput"
    assert sorted(bytes(listener.stderr).splitlines()) == [b"building", b"warning"]
    assert listener.started_count == 1
    assert list(end.phases) == ["boot", "start_compile", "compile", "start", "run"]
    assert len(hypervisor.made) == 1


async def test_a_script_that_does_not_compile_is_not_run(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    listener = Listener()
    wanted = compiled(tmp_path, "echo 'line 3: no' >&2; echo x > half.txt; exit 2", "echo ran", artifacts=("**",))
    end = await run(hypervisor, wanted, listener)
    assert end.in_compile and end.exited is not None and end.exited.exit_code == 2
    assert (bytes(listener.stdout), bytes(listener.stderr)) == (b"", b"line 3: no\n")
    assert listener.started_count == 0 and listener.files == {}
    assert list(end.phases) == ["boot", "start_compile", "compile"]


async def test_a_compiler_has_the_time_limit_of_the_script(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    end = await run(hypervisor, compiled(tmp_path, "sleep 60", "echo ran", timeout_seconds=0.3))
    assert end.stop is Stop.TIMED_OUT and end.in_compile


async def test_a_missing_compiler_is_reported(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    wanted = compiled(tmp_path, "", "echo ran")
    assert wanted.compile is not None
    end = await run(hypervisor, replace(wanted, compile=replace(wanted.compile, argv=("no-such-compiler",))))
    assert end.in_compile and end.not_started is not None and end.exited is None


async def test_cancelling_ends_a_compiler(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    cancel = asyncio.Event()
    wanted = compiled(tmp_path, "touch begun; sleep 60", "echo ran")
    running = asyncio.create_task(end_of(hypervisor, wanted, Listener(), cancel))
    while not (tmp_path / "begun").exists():
        await asyncio.sleep(0.01)
    cancel.set()
    async with asyncio.timeout(10):
        end = await running
    assert end.stop is Stop.CANCELLED and hypervisor.alive == 0


# --- the machine's removal and the block ------------------------------------------------------------------------------


async def test_the_removal_of_the_machine_does_not_wait_for_the_block(
    hypervisor: ProcessHypervisor, tmp_path: Path
) -> None:
    """The block may be waiting for the disk space that the machine holds."""
    async with asyncio.timeout(10):
        async with attempt(plan(tmp_path, "true"), hypervisor.ready, Listener(), asyncio.Event()):
            while hypervisor.alive:
                await asyncio.sleep(0.01)


class SlowRemoval:
    """Machines whose removal takes until `go` is set, and may fail."""

    def __init__(self, hypervisor: ProcessHypervisor, error: Exception | None = None) -> None:
        self.go = asyncio.Event()
        self.removed = False
        self._hypervisor = hypervisor
        self._error = error

    @asynccontextmanager
    async def machine(self, spec: MachineSpec) -> AsyncIterator[ProvisionedMachine]:
        async with self._hypervisor.ready(spec) as provisioned:
            try:
                yield provisioned
            finally:
                await uninterrupted(self._remove())

    async def _remove(self) -> None:
        await self.go.wait()
        self.removed = True
        if self._error is not None:
            raise self._error


async def test_the_block_does_not_wait_for_the_removal_which_ends_before_the_context_does(
    hypervisor: ProcessHypervisor, tmp_path: Path
) -> None:
    machines = SlowRemoval(hypervisor)
    async with asyncio.timeout(10):
        async with attempt(plan(tmp_path, "true"), machines.machine, Listener(), asyncio.Event()) as end:
            assert end.exited is not None and not machines.removed
            asyncio.get_running_loop().call_later(0.1, machines.go.set)
    assert machines.removed and hypervisor.alive == 0


async def test_a_removal_that_fails_is_raised_after_the_block(hypervisor: ProcessHypervisor, tmp_path: Path) -> None:
    machines, recorded = SlowRemoval(hypervisor, OSError("busy")), []
    with pytest.raises(OSError, match="busy"):
        async with attempt(plan(tmp_path, "true"), machines.machine, Listener(), asyncio.Event()) as end:
            machines.go.set()
            await asyncio.sleep(0.1)
            recorded.append(end)
    assert recorded and hypervisor.alive == 0


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError])
async def test_a_block_that_fails_leaves_no_machine(
    hypervisor: ProcessHypervisor, tmp_path: Path, error: type[BaseException]
) -> None:
    machines = SlowRemoval(hypervisor)
    with pytest.raises(error):
        async with attempt(plan(tmp_path, "true"), machines.machine, Listener(), asyncio.Event()):
            asyncio.get_running_loop().call_later(0.1, machines.go.set)
            raise error
    assert machines.removed and hypervisor.alive == 0
