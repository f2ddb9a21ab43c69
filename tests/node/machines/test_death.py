"""Why a hypervisor ended: signals have names, and faults of host, guest and snapshot have different causes."""

from __future__ import annotations

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from belljar.node.machines.death import describe_exit_code, is_host_shortage
from belljar.node.machines.firecracker.exit_report import death_from_exit
from belljar.node.machines.host.cgroup import Group
from belljar.node.machines.protocol import Console, Death, DeathCause
from belljar.node.machines.qemu.machine import QemuMachine, QemuProcess
from belljar.node.machines.qemu.monitor import Monitor

#: What one boot writes at the level Warning, and what none writes at Error.
NOISE = "2026-11-24T21:00:00.1 [x:fc_vcpu 0:WARN] vcpu: IO read @ 0x71:0x1 failed: Failed to find address range.\n"
BAD_CALL = "2026-11-24T21:00:00.2 [x:main:ERROR] Shutting down VM after intercepting a bad syscall (332).\n"


@pytest.mark.parametrize("code", [128 + signal.SIGSYS, -signal.SIGSYS])
def test_a_forbidden_call_is_named(code: int) -> None:
    assert describe_exit_code(code) == "it made a system call that its seccomp filter forbids (SIGSYS)"


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE", "SIGXFSZ", "SIGTRAP", "SIGHUP"])
def test_every_signal_has_its_name(name: str) -> None:
    number = signal.Signals[name]
    assert f"({name})" in describe_exit_code(128 + number) and f"({name})" in describe_exit_code(-number)


@pytest.mark.parametrize("code", [0, 1, 127, 148, 255])
def test_a_code_that_is_no_signal_is_a_number(code: int) -> None:
    if code != 148:  # 128 + SIGTSTP
        assert describe_exit_code(code) == f"it ended with code {code}"


def test_firecracker_names_the_forbidden_call_and_not_the_messages_of_the_boot() -> None:
    death = death_from_exit(148, b"", NOISE * 20 + BAD_CALL + NOISE)
    assert death.cause is DeathCause.HYPERVISOR
    assert "system call number 332" in death.message and "address range" not in death.message


def test_firecrackers_host_shortage_has_the_cause_host() -> None:
    death = death_from_exit(1, b"", "[x:main:ERROR] Cannot create VM: Cannot allocate memory (os error 12)\n")
    assert death.cause is DeathCause.HOST


@pytest.mark.parametrize(
    ("text", "is_shortage"),
    [
        ("qemu: cannot set up guest memory 'memory': Cannot allocate memory", True),
        ("Open tap device failed: Device or resource busy (os error 16)", True),
        ("Too many open files (os error 24)", True),
        ("load of migration failed: Invalid argument", False),
        ("Failed to restore from snapshot: crc mismatch", False),
    ],
)
def test_a_host_shortage_is_recognised(text: str, is_shortage: bool) -> None:
    assert is_host_shortage(text) is is_shortage


async def death_of(script: str, console: bytes = b"") -> Death:
    """Return the death of a shell that runs `script` in place of QEMU."""
    pairs = [socket.socketpair() for _ in range(3)]
    process = await asyncio.create_subprocess_exec("sh", "-c", script, stderr=asyncio.subprocess.PIPE)
    machine = QemuMachine(
        QemuProcess(
            machine_id="test",
            process=process,
            monitor=Monitor("test", pairs[0][0]),
            group=Group(folders=()),
            agent=await asyncio.open_connection(sock=pairs[1][0]),
            console=Console(limit_bytes=1000, data=bytearray(console)),
            console_stream=await asyncio.open_connection(sock=pairs[2][0]),
            phases={},
        )
    )
    for _, other_end in pairs:
        other_end.close()
    try:
        async with asyncio.timeout(30):
            return await machine.death()
    finally:
        await machine.kill()


@pytest.mark.parametrize(
    ("script", "cause", "message"),
    [
        ("kill -SYS $$", DeathCause.HYPERVISOR, "seccomp filter forbids (SIGSYS)"),
        ("exit 159", DeathCause.HYPERVISOR, "seccomp filter forbids (SIGSYS)"),
        ("echo last words >&2; kill -ABRT $$", DeathCause.HYPERVISOR, "it aborted (SIGABRT): last words"),
        ("kill -SEGV $$", DeathCause.HYPERVISOR, "it crashed (SIGSEGV)"),
        ("kill -KILL $$", DeathCause.KILLED, "killed from outside (SIGKILL)"),
        ("exit 137", DeathCause.KILLED, "killed from outside (SIGKILL)"),
        ("exit 0", DeathCause.GUEST_EXIT, "the guest ended its machine"),
        ("echo 'qemu: cannot set up guest memory: Cannot allocate memory' >&2; exit 1", DeathCause.HOST, "code 1"),
        (
            "echo 'qemu: load of migration failed: Invalid argument' >&2; exit 1",
            DeathCause.SNAPSHOT,
            "load of migration failed",
        ),
        ("echo nonsense >&2; exit 3", DeathCause.HYPERVISOR, "QEMU failed: it ended with code 3: nonsense"),
    ],
)
async def test_qemus_death_follows_from_its_exit_code_and_its_output(
    script: str, cause: DeathCause, message: str
) -> None:
    death = await death_of(script)
    assert death.cause is cause and message in death.message


async def test_a_panic_comes_before_every_other_cause() -> None:
    death = await death_of("exit 139", b"Kernel panic - not syncing: Attempted to kill init!\r\n")
    assert (death.cause, death.message) == (
        DeathCause.GUEST_PANIC,
        "the guest's kernel panicked: Attempted to kill init!",
    )


async def test_a_flood_on_standard_error_is_read_slowly_and_its_end_is_kept() -> None:
    from belljar.node.machines.stderr_tail import read_tail

    class Flood:
        """A stream without an end."""

        read_bytes = 0

        async def read(self, size: int) -> bytes:
            self.read_bytes += size
            return b"x" * size

    flood, kept = Flood(), bytearray()
    reading = asyncio.create_task(read_tail(cast(Any, flood), kept, 8192))
    await asyncio.sleep(0.3)
    reading.cancel()
    assert len(kept) == 8192
    assert flood.read_bytes < 4 << 20


def test_no_kernel_of_ours_takes_devices_from_its_command_line() -> None:
    from belljar import images

    config = (Path(images.__file__).parent / "kernel.config").read_text().splitlines()
    assert "CONFIG_VIRTIO_MMIO=y" in config and "CONFIG_ACPI=y" in config
    assert not any(line.startswith("CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES") for line in config)
