"""What is wrong with a host, an executable or a start is one line that says what to do, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from belljar.model.errors import HostError, MachineDied, MissingTool
from belljar.model.image import Image
from belljar.node.machines.firecracker import machine as machine_module
from belljar.node.machines.firecracker.confinement import with_advice
from belljar.node.machines.firecracker.exit_report import death_from_exit, last_error
from belljar.node.machines.firecracker.hypervisor import FirecrackerHypervisor
from belljar.node.machines.firecracker.program import find_programs, is_new_enough
from belljar.node.machines.protocol import DeathCause
from belljar.settings import Settings
from support.firecracker.api_requests import spec_of
from support.firecracker.building import build_fakes
from support.firecracker.leftovers import left_behind


def _settings(tmp_path: Path, firecracker: Path, jailer: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", firecracker=str(firecracker), jailer=str(jailer))


def test_an_executable_that_is_not_there_says_where_to_take_it_from(tmp_path: Path) -> None:
    settings = _settings(tmp_path, tmp_path / "absent", tmp_path / "absent")
    with pytest.raises(MissingTool, match=r"github\.com/firecracker-microvm.*setting firecracker"):
        find_programs(settings, jailed=True)


def test_a_jailer_that_is_not_there_is_named(tmp_path: Path) -> None:
    firecracker, _ = build_fakes(tmp_path)
    with pytest.raises(MissingTool, match="setting jailer"):
        find_programs(_settings(tmp_path, firecracker, tmp_path / "absent"), jailed=True)


def test_a_version_that_is_too_old_is_an_error_with_the_oldest_allowed(tmp_path: Path) -> None:
    programs = build_fakes(tmp_path, version="1.9.1")
    with pytest.raises(HostError, match=r"1\.9\.1 is too old: belljar needs 1\.16 or newer"):
        find_programs(_settings(tmp_path, *programs), jailed=True)


@pytest.mark.parametrize(
    ("version", "enough"), [("1.16.0", True), ("1.17.0-dev", True), ("2.0", True), ("1.9.1", False)]
)
def test_versions_are_compared_as_numbers(version: str, enough: bool) -> None:
    assert is_new_enough(version) is enough


def test_a_jailer_of_another_release_is_refused(tmp_path: Path) -> None:
    programs = build_fakes(tmp_path, jailer_version="1.15.0")
    with pytest.raises(HostError, match=r"jailer is of version 1\.15\.0, Firecracker of 1\.16\.1"):
        find_programs(_settings(tmp_path, *programs), jailed=True)


def test_an_executable_for_another_architecture_is_that_error(tmp_path: Path) -> None:
    other = tmp_path / "firecracker"
    machine = 183 if os.uname().machine == "x86_64" else 62  # AArch64, x86-64
    other.write_bytes(
        b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(44)
    )
    other.chmod(0o755)
    with pytest.raises(HostError, match="not for this host's architecture"):
        find_programs(_settings(tmp_path, other, other), jailed=True)


def test_a_program_that_is_no_firecracker_is_that_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="check that it is Firecracker"):
        find_programs(_settings(tmp_path, Path("/bin/true"), Path("/bin/true")), jailed=True)


def test_a_dynamically_linked_firecracker_is_refused_before_the_jailer_fails_on_it(tmp_path: Path) -> None:
    _, jailer = build_fakes(tmp_path)
    source = tmp_path / "firecracker.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("Firecracker v1.16.1"); return 0; }\n')
    dynamic = tmp_path / "dynamic"
    os.system(f"gcc -o {dynamic} {source}")
    if not dynamic.exists():
        pytest.skip("gcc is not installed")
    with pytest.raises(HostError, match="linked dynamically"):
        find_programs(_settings(tmp_path, dynamic, jailer), jailed=True)
    assert find_programs(_settings(tmp_path, dynamic, jailer), jailed=False).jailer is None


@pytest.mark.root
@pytest.mark.vm
async def test_a_socket_that_never_appears_is_an_error_after_its_deadline(
    settings: Settings, shell: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "_SOCKET_SECONDS", 1.0)
    programs = build_fakes(tmp_path / "mute", never_listen=True)
    (tmp_path / "frozen.json").write_text('{"format": 1, "tap": null}')
    for name in ("state", "memory"):
        (tmp_path / name).write_bytes(b"")
    mute = FirecrackerHypervisor(
        settings.model_copy(update={"firecracker": str(programs[0]), "jailer": str(programs[1])})
    )
    with pytest.raises(HostError, match="opened no API socket within 1 s"):
        async with mute.clone(spec_of(shell, frozen=True), tmp_path):
            pass
    assert left_behind(settings) == []


@pytest.mark.root
@pytest.mark.vm
async def test_a_jailers_refusal_is_reported_in_its_own_words(settings: Settings, shell: Image, tmp_path: Path) -> None:
    programs = build_fakes(tmp_path / "refusing", jailer_refuses=True)
    refusing = FirecrackerHypervisor(
        settings.model_copy(update={"firecracker": str(programs[0]), "jailer": str(programs[1])})
    )
    async with refusing.machine(spec_of(shell)) as machine:
        death = await asyncio.wait_for(machine.death(), 30)
    assert death.cause is DeathCause.HYPERVISOR
    assert "Failed to create /dev/net/tun via mknod" in death.message and "CAP_MKNOD" in death.message
    with pytest.raises(MachineDied, match="via mknod"):
        async with refusing.snapshot_source(spec_of(shell, frozen=True), tmp_path / "snapshot") as source:
            await source.freeze()
    assert left_behind(settings) == []


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("Error creating KVM object: No such file or directory (os error 2)", "load the module kvm_intel or kvm_amd"),
        ("Error creating KVM object: No such device or address (os error 6)", "load the module kvm_intel or kvm_amd"),
        ("Error creating KVM object: Permission denied (os error 13)", "join the group kvm"),
        ("Failed to create /dev/kvm via mknod inside the jail: EPERM", "CAP_MKNOD"),
        ("Failed to exec into Firecracker: No such file or directory", "linked statically"),
    ],
)
def test_errors_that_an_operator_can_fix_come_with_advice(error: str, advice: str) -> None:
    assert error in with_advice(error) and advice in with_advice(error)


def test_other_errors_are_passed_on() -> None:
    assert with_advice("something odd") == "something odd"


def test_the_last_error_is_reported_rather_than_the_last_line() -> None:
    log = (
        "2026-11-24T21:00:00.1 [x:main:ERROR] Could not open the drive: error 2\n[x:main] exiting: error. exit_code=1\n"
    )
    assert last_error(log) == "Could not open the drive: error 2"


@pytest.mark.parametrize(
    ("code", "output", "cause", "message"),
    [
        (0, "", DeathCause.GUEST_EXIT, "ended its machine"),
        (137, "", DeathCause.KILLED, "SIGKILL"),
        (-9, "", DeathCause.KILLED, "SIGKILL"),
        (148, "", DeathCause.HYPERVISOR, "seccomp"),
        (
            1,
            "12:00 [x:main:ERROR] RunWithoutApiError error: no kernel\nError: A(B)",
            DeathCause.HYPERVISOR,
            "1: no kernel",
        ),
        (
            1,
            "[x:fc_vcpu 0:ERROR] Unexpected exit reason on vcpu run: InternalError",
            DeathCause.HYPERVISOR,
            "InternalError",
        ),
    ],
)
def test_the_exit_code_and_output_tell_the_cause(code: int, output: str, cause: DeathCause, message: str) -> None:
    death = death_from_exit(code, b"", output)
    assert death.cause is cause and message in death.message


def test_a_panic_is_the_guests_whatever_the_exit_code() -> None:
    death = death_from_exit(0, b"[    1.0] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00\r\n", "")
    assert death.cause is DeathCause.GUEST_PANIC and "Attempted to kill init!" in death.message
