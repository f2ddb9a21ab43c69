"""The same driver over the real firecracker and jailer, where they are on PATH, with a guest of a few bytes.

The tiny guest runs wherever KVM runs at all, also where it cannot boot Linux, so that start, output, end, death and
cleanup are the real ones.
"""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from belljar.model.errors import HostError, MachineError, MachineTimeout
from belljar.node.machines.firecracker import hypervisor as hypervisor_module
from belljar.node.machines.firecracker.configuration import configuration
from belljar.node.machines.firecracker.hypervisor import FirecrackerHypervisor
from belljar.node.machines.firecracker.machine import FirecrackerMachine
from belljar.node.machines.firecracker.program import find_programs
from belljar.node.machines.host import jail
from belljar.node.machines.host.jail import kill_tree
from belljar.node.machines.protocol import DeathCause, NetworkSlot
from belljar.settings import Settings
from node.machines.firecracker.conftest import TinyImages
from support.firecracker.api_requests import spec_of
from support.firecracker.leftovers import left_behind
from support.firecracker.network_place import network_place
from support.firecracker.tiny_guest import FOREVER, HANG, RESET, TRIPLE_FAULT

pytestmark = [pytest.mark.firecracker, pytest.mark.root]


async def _death(machine: FirecrackerMachine) -> DeathCause:
    return (await asyncio.wait_for(machine.death(), 30)).cause


async def test_a_guest_prints_and_resets(real: FirecrackerHypervisor, tiny: TinyImages) -> None:
    async with real.machine(spec_of(tiny.image(b"hello from the guest\n", RESET))) as machine:
        assert await asyncio.wait_for(machine.death(), 30)
    assert (await machine.death()).cause is DeathCause.GUEST_EXIT
    assert bytes(machine.console.data) == b"hello from the guest\n"


async def test_a_triple_fault_ends_the_machine(real: FirecrackerHypervisor, tiny: TinyImages) -> None:
    async with real.machine(spec_of(tiny.image(b"falling\n", TRIPLE_FAULT))) as machine:
        death = await asyncio.wait_for(machine.death(), 30)
    assert death.cause in (DeathCause.GUEST_EXIT, DeathCause.HYPERVISOR)
    assert bytes(machine.console.data) == b"falling\n"


async def test_a_guest_that_hangs_is_killed(real: FirecrackerHypervisor, tiny: TinyImages) -> None:
    async with real.machine(spec_of(tiny.image(b"up\n", HANG))) as machine:
        await _until_printed(machine, b"up\n")
        await machine.kill()


async def test_a_guest_that_prints_without_end_is_bounded_and_killed(
    real: FirecrackerHypervisor, tiny: TinyImages
) -> None:
    async with real.machine(spec_of(tiny.image(b"again " * 50, FOREVER))) as machine:
        limit = machine.console.limit_bytes
        async with asyncio.timeout(60):
            while machine.console.dropped_bytes == 0:
                await asyncio.sleep(0.05)
        assert len(machine.console.data) == limit


async def test_a_killed_process_has_the_cause_killed(real: FirecrackerHypervisor, tiny: TinyImages) -> None:
    async with real.machine(spec_of(tiny.image(b"up\n", HANG))) as machine:
        await _until_printed(machine, b"up\n")
        kill_tree(machine.pids()[0])
        assert await _death(machine) is DeathCause.KILLED


async def test_an_invalid_kernel_is_reported_with_firecrackers_message(
    real: FirecrackerHypervisor, tiny: TinyImages, tmp_path: Path
) -> None:
    image = tiny.image()
    (tmp_path / "no-kernel").write_bytes(b"this is no kernel" * 100)
    async with real.machine(spec_of(image.model_copy(update={"kernel": tmp_path / "no-kernel"}))) as machine:
        death = await asyncio.wait_for(machine.death(), 30)
    assert death.cause is DeathCause.HYPERVISOR
    assert "kernel" in death.message.lower() or "elf" in death.message.lower(), death.message


async def test_without_an_agent_the_stream_ends_with_the_machine(real: FirecrackerHypervisor, tiny: TinyImages) -> None:
    async with real.machine(spec_of(tiny.image(b"up\n", HANG))) as machine:
        await _until_printed(machine, b"up\n")
        await asyncio.sleep(0.3)  # the driver knocks meanwhile
        await machine.kill()
        assert await machine.reader.read() == b""


async def test_the_api_says_what_runs_and_refuses_what_is_out_of_order(
    real: FirecrackerHypervisor, tiny: TinyImages, tmp_path: Path
) -> None:
    async with real.snapshot_source(spec_of(tiny.image(b"up\n", HANG), frozen=True), tmp_path / "snapshot") as source:
        await _until_printed(source, b"up\n")
        async with source.api() as api:
            assert await api.version() == real.version
            assert (await api.call("GET", "/"))["state"] == "Running"
            with pytest.raises(MachineError, match="not supported after starting"):
                await api.call("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 128})
            await api.pause()
            assert (await api.call("GET", "/"))["state"] == "Paused"
            await api.call("PATCH", "/vm", {"state": "Resumed"})


async def test_a_guest_is_frozen_and_cloned_or_the_reason_is_firecrackers_own(
    real: FirecrackerHypervisor, tiny: TinyImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some hosts' KVM cannot save or load its state; then the refusal is what is to be seen."""
    monkeypatch.setattr(hypervisor_module, "_CONNECT_SECONDS", 1.0)
    folder = tmp_path / "snapshot"
    async with real.snapshot_source(spec_of(tiny.image(b"up\n", HANG), frozen=True, disk_mb=16), folder) as source:
        await _until_printed(source, b"up\n")
        try:
            await source.freeze()
        except MachineError as error:
            assert "/snapshot/create" in error.message
            pytest.skip(f"this host's KVM does not save a machine: {error.message}")
    assert {path.name for path in folder.iterdir()} == {"state", "memory", "scratch.img", "frozen.json"}
    with pytest.raises(MachineError) as caught:
        async with real.clone(spec_of(tiny.image(), frozen=True, disk_mb=16), folder):
            pass
    if "/snapshot/load" in caught.value.message:
        pytest.skip(f"this host's KVM does not restore a machine: {caught.value.message}")
    assert isinstance(caught.value, MachineTimeout)  # it runs on, and has no agent that would answer


@pytest.mark.parametrize("real", ["jailer"], indirect=True)
async def test_the_real_jailer_gives_a_user_a_root_and_bounds(
    real: FirecrackerHypervisor, tiny: TinyImages, real_settings: Settings
) -> None:
    async with real.machine(spec_of(tiny.image(b"up\n", HANG))) as machine:
        await _until_printed(machine, b"up\n")
        (root,) = real_settings.data_dir.glob("run/jails/*/*/root")
        process = _inhabitant(root)
        status = (process / "status").read_text()
        first = real_settings.jail_uid_base
        uid = int(_field(status, "Uid").split()[0])
        assert uid in range(first, first + real_settings.jail_uid_count)
        assert int(_field(status, "CapEff"), 16) == 0
        assert _field(status, "Seccomp") == "2"  # a filter
        assert len(_field(status, "NSpid").split()) > 1
        limits = (process / "limits").read_text()
        assert any("Max file size" in line and str(16 << 20) in line for line in limits.splitlines())
        assert sorted(os.listdir(process / "root/dev")) >= ["kvm", "net"]


@pytest.mark.parametrize("real", ["jailer"], indirect=True)
async def test_a_network_slots_namespace_and_tap_are_joined(
    real: FirecrackerHypervisor, tiny: TinyImages, real_settings: Settings
) -> None:
    with network_place() as slot:
        spec = _with_slot(tiny, slot)
        async with real.machine(spec) as machine:
            await _until_printed(machine, b"up\n")
            (root,) = real_settings.data_dir.glob("run/jails/*/*/root")
            assert (_inhabitant(root) / "ns/net").stat().st_ino == slot.namespace.stat().st_ino


@pytest.mark.parametrize("real", ["jailer"], indirect=True)
async def test_a_templates_network_leads_nowhere_and_its_clones_lead_to_their_slots(
    real: FirecrackerHypervisor, tiny: TinyImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hypervisor_module, "_CONNECT_SECONDS", 1.0)
    folder = tmp_path / "snapshot"
    spec = spec_of(tiny.image(b"up\n", HANG), frozen=True, network=True)
    async with real.snapshot_source(spec, folder) as source:
        await _until_printed(source, b"up\n")
        try:
            await source.freeze()
        except MachineError as error:
            pytest.skip(f"this host's KVM does not save a machine: {error.message}")
    with network_place("tap7") as slot, pytest.raises(MachineError) as caught:
        async with real.clone(replace(spec, slot=slot), folder):
            pass
    if "TAP" not in caught.value.message and "/snapshot/load" in caught.value.message:
        pytest.skip(f"this host's KVM does not restore a machine: {caught.value.message}")
    assert isinstance(caught.value, MachineTimeout), caught.value.message  # it runs on, and has no agent


@pytest.mark.parametrize("real", ["jailer"], indirect=True)
async def test_a_missing_tap_is_reported_with_advice(real: FirecrackerHypervisor, tiny: TinyImages) -> None:
    with network_place() as slot:
        absent = NetworkSlot(
            namespace=slot.namespace,
            tap="absent0",
            guest_mac=slot.guest_mac,
            guest_address=slot.guest_address,
            gateway=slot.gateway,
            nameservers=(),
        )
        async with real.machine(_with_slot(tiny, absent)) as machine:
            death = await asyncio.wait_for(machine.death(), 30)
    assert death.cause is DeathCause.HYPERVISOR and "TAP" in death.message, death.message


@pytest.mark.parametrize("real", ["bubblewrap"], indirect=True)
async def test_without_the_jailer_there_is_no_network(real: FirecrackerHypervisor, tiny: TinyImages) -> None:
    with network_place() as slot, pytest.raises(HostError, match="run belljar as root"):
        async with real.machine(_with_slot(tiny, slot)):
            pass


async def test_limits_on_disks_and_network_are_accepted(real: FirecrackerHypervisor, tiny: TinyImages) -> None:
    limits = {"disk_mb_per_second": 50.0, "disk_iops": 1000, "network_mbit_per_second": 100.0, "disk_mb": 16}
    spec = spec_of(tiny.image(b"up\n", RESET), **limits)
    assert configuration(spec).drives[2].rate_limiter is not None
    async with real.machine(spec) as machine:
        assert await _death(machine) is DeathCause.GUEST_EXIT


async def test_starts_that_are_cancelled_at_any_moment_end_and_leave_nothing(
    real: FirecrackerHypervisor, tiny: TinyImages, real_settings: Settings
) -> None:
    spec = spec_of(tiny.image(b"up\n", HANG))

    async def start() -> None:
        async with real.machine(spec) as machine:
            await machine.death()

    for number in range(60):
        task = asyncio.create_task(start())
        await asyncio.sleep(number / 3000)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=30)
        assert done
    assert left_behind(real_settings) == []


async def test_many_machines_come_and_go_and_leave_nothing(
    real: FirecrackerHypervisor, tiny: TinyImages, real_settings: Settings
) -> None:
    spec = spec_of(tiny.image(b"hello\n", RESET))

    async def one() -> None:
        async with real.machine(spec) as machine:
            assert await _death(machine) is DeathCause.GUEST_EXIT

    for _ in range(4):
        await asyncio.gather(*(one() for _ in range(5)))
    assert left_behind(real_settings) == []


@pytest.mark.parametrize("real", ["bubblewrap"], indirect=True)
async def test_a_host_without_kvm_gets_advice(
    real: FirecrackerHypervisor, tiny: TinyImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Path("/dev") / f"belljar-test-{os.getpid()}"
    os.mknod(node, stat.S_IFCHR | 0o600, os.makedev(10, 250))  # a number that no driver has
    try:
        monkeypatch.setattr(jail, "_KVM", node)
        async with real.machine(spec_of(tiny.image())) as machine:
            death = await asyncio.wait_for(machine.death(), 30)
    finally:
        node.unlink()
    assert death.cause is DeathCause.HYPERVISOR
    assert "Error creating KVM object" in death.message and "load the module kvm_intel" in death.message


async def test_a_data_folder_that_is_mounted_nodev_is_that_error(
    real_settings: Settings, tiny: TinyImages, elsewhere: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,nodev", elsewhere], check=True, timeout=30)
    settings = real_settings.model_copy(update={"data_dir": elsewhere})
    async with FirecrackerHypervisor(settings, jailed=True).machine(spec_of(tiny.image())) as machine:
        death = await asyncio.wait_for(machine.death(), 30)
    assert death.cause is DeathCause.HYPERVISOR
    assert "must not be mounted nodev" in death.message, death.message
    assert left_behind(settings) == []


def test_both_executables_are_of_one_release(real_settings: Settings) -> None:
    programs = find_programs(real_settings, jailed=True)
    assert programs.version and programs.jailer is not None


async def _until_printed(machine: FirecrackerMachine, text: bytes) -> None:
    """Wait until the guest has printed; its death before is the test's failure."""
    async with asyncio.timeout(30):
        while text not in machine.console.data:
            death = asyncio.create_task(machine.death())
            done, _ = await asyncio.wait({death}, timeout=0.01)
            assert not done, death.result()
            death.cancel()


def _with_slot(tiny: TinyImages, slot: NetworkSlot):
    spec = spec_of(tiny.image(b"up\n", HANG), network=True)
    return type(spec)(image=spec.image, shape=spec.shape, script_disk=spec.script_disk, slot=slot)


def _inhabitant(root: Path) -> Path:
    wanted = root.stat()
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if os.path.samestat((process / "root").stat(), wanted):
                    return process
            except OSError:
                continue
    raise AssertionError("no process has that root directory")


def _field(status: str, name: str) -> str:
    return next(line.partition(":")[2].strip() for line in status.splitlines() if line.startswith(f"{name}:"))
