"""Why a hypervisor ended: signals have names, and faults of host, guest and snapshot have different causes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from belljar.model.errors import HostError
from belljar.node.machines.clone_failure import clone_deaths
from belljar.node.machines.death import describe_exit_code, is_host_shortage, kill_death
from belljar.node.machines.firecracker.exit_report import death_from_exit
from belljar.node.machines.host.cgroup import Bounds, Group, find_hierarchies, machine_group
from belljar.node.machines.host.jail import cgroup_join_command, limits_environment
from belljar.node.machines.host.oom import OomReport, oom_report
from belljar.node.machines.host.owner import owner_name
from belljar.node.machines.protocol import BadSnapshot, Console, Death, DeathCause
from belljar.node.machines.qemu.exit_report import last_error
from belljar.node.machines.qemu.machine import QemuMachine, QemuProcess
from belljar.node.machines.qemu.monitor import Monitor
from belljar.node.machines.racing import MachineDead

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


def test_firecrackers_warnings_are_no_reason_even_alone() -> None:
    death = death_from_exit(139, b"", NOISE * 3)
    assert death.message == "Firecracker failed: it crashed (SIGSEGV)"
    assert "emulation" not in death_from_exit(1, b"", "t [x:fc_vcpu 0:WARN] emulation of a port\n").message


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


async def death_of(script: str | list[str], console: bytes = b"", group: Group = Group(folders=())) -> Death:  # noqa: B008
    """Return the death of a command, or of a shell that runs a script, in place of QEMU."""
    pairs = [socket.socketpair() for _ in range(3)]
    command = ["sh", "-c", script] if isinstance(script, str) else script
    process = await asyncio.create_subprocess_exec(
        *command, stderr=asyncio.subprocess.PIPE, env={**os.environ, **limits_environment(None)}
    )
    machine = QemuMachine(
        QemuProcess(
            machine_id="test",
            process=process,
            monitor=Monitor("test", pairs[0][0]),
            group=group,
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


#: What QEMU writes at every start under emulation, and at an error of KVM.
WARNING = "qemu-system-x86_64: warning: TCG doesn't support requested feature: CPUID.01H:ECX.pcid [bit 17]"
KVM = """KVM internal error. Suberror: 1
emulation failure
RAX=0000000000000000 RBX=0000000000000001 RCX=0000000000000000 RDX=0000000000000000
ES =0018 00000000 ffffffff 00c09300 DPL=0 DS   [-WA]
GDT=     fffffe0000001000 0000007f
CR0=80050033 CR2=0000000000000000 CR3=0000000002a10000 CR4=000006b0
EFER=0000000000000d01
Code=48 8b 05 00 00 00 00 <f0> 48 0f c7 0e"""
ASSERTION = "qemu-system-x86_64: ../hw/virtio/virtio.c:123: virtio_pop: Assertion `size > 0' failed."
BAIL_OUT = "**\nERROR:../qom/object.c:715:object_ref: assertion failed: (obj)\nBail out! ERROR:../qom/object.c:715"


@pytest.mark.parametrize(
    ("stderr", "reported"),
    [
        (WARNING, ""),
        (f"{WARNING}\n{WARNING}\n", ""),
        (f"{WARNING}\nqemu-system-x86_64: could not open the disk\n{WARNING}", "could not open the disk"),
        (ASSERTION, ASSERTION),
        (f"{ASSERTION}\n{WARNING}", ASSERTION),
        (BAIL_OUT, "Bail out! ERROR:../qom/object.c:715"),
        (f"{KVM}\n", "emulation failure"),
        ("error: kvm run failed Bad address\nRAX=0000000000000000 RBX=0000", "kvm run failed Bad address"),
        ("(process:1): GLib-WARNING **: 10:00: poll failed", ""),
        ("just words", "just words"),
        ("", ""),
    ],
)
def test_qemus_last_error_is_no_warning_and_no_register(stderr: str, reported: str) -> None:
    found = last_error(stderr)
    assert reported in found and bool(reported) is bool(found)


async def test_a_warning_is_not_reported_as_the_reason_of_a_crash() -> None:
    death = await death_of(f"echo '{WARNING.replace(chr(39), '')}' >&2; kill -SEGV $$")
    assert death.message == "QEMU failed: it crashed (SIGSEGV)"


#: Installs a seccomp filter that kills at getppid, and calls it: struct sock_filter {code, jt, jf, k}.
FORBIDDEN = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
getppid = {"x86_64": 110, "aarch64": 173}[os.uname().machine]
code = [(0x20, 0, 0, 0), (0x15, 0, 1, getppid), (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000)]
filters = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *each) for each in code))
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code), ctypes.addressof(filters)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program) == 0
os.getppid()
"""


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs bubblewrap")
@pytest.mark.parametrize("jailed", [False, True])
async def test_a_real_forbidden_call_is_reported_through_the_jail(jailed: bool) -> None:
    jail = ["bwrap", "--unshare-pid", "--die-with-parent", "--dev-bind", "/", "/", "--"] if jailed else []
    death = await death_of([*jail, sys.executable, "-c", FORBIDDEN])
    assert death.cause is DeathCause.HYPERVISOR
    assert death.message == "QEMU failed: it made a system call that its seccomp filter forbids (SIGSYS)"


@pytest.mark.root
@pytest.mark.process
async def test_a_kill_for_want_of_memory_is_distinguished_from_other_kills() -> None:
    bounds = Bounds(memory_bytes=48 << 20, cpus=1, processes=50)
    async with machine_group(find_hierarchies(), f"{owner_name(os.getpid())}.oom", bounds) as group:
        if oom_report(group) is None:
            pytest.skip("no cgroup limits memory here")
        join = cgroup_join_command(group)
        killed = await death_of([*join, "/bin/sh", "-c", "kill -KILL $$"], group=group)
        assert killed.message == "QEMU was killed from outside (SIGKILL): by an operator or another program"
        hungry = [sys.executable, "-c", "b'x' * (400 << 20)"]
        for jail in ([], ["bwrap", "--unshare-pid", "--die-with-parent", "--dev-bind", "/", "/", "--"]):
            death = await death_of([*join, *jail, *hungry], group=group)
            assert death.cause is DeathCause.KILLED
            assert death.message == (
                "QEMU was killed by the kernel's out-of-memory killer: it exceeded its memory limit of 48 MB"
            )


@pytest.mark.parametrize(
    ("files", "report"),
    [
        ({"memory.max": "4194304\n", "memory.events": "low 0\nmax 9\noom 1\noom_kill 1\n"}, (True, True, 4)),
        ({"memory.max": "4194304\n", "memory.events": "max 0\noom 0\noom_kill 2\n"}, (True, False, 4)),
        ({"memory.max": "max\n", "memory.events": "oom 0\noom_kill 0\n"}, (False, False, None)),
        ({"memory.limit_in_bytes": "4194304\n", "memory.oom_control": "under_oom 0\noom_kill 0\n"}, (False, True, 4)),
        (
            {
                "memory.limit_in_bytes": "4194304\n",
                "memory.failcnt": "0\n",
                "memory.oom_control": "oom_kill_disable 0\noom_kill 1\n",
            },
            (True, False, 4),
        ),
        ({"memory.max": "max\n", "memory.events": "junk"}, None),
        ({"memory.oom_control": "under_oom 0\n"}, None),
        ({}, None),
    ],
)
def test_both_versions_of_cgroups_are_read(
    tmp_path: Path, files: dict[str, str], report: tuple[bool, bool, int | None] | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = oom_report(Group(folders=(tmp_path,)))
    assert (found and (found.killed, found.over_limit, found.limit_mb)) == report


def test_a_host_without_memory_is_the_hosts_fault() -> None:
    death = kill_death("QEMU", -signal.SIGKILL, OomReport(killed=True, over_limit=False, limit_mb=384))
    assert death is not None and death.cause is DeathCause.HOST
    assert "the host ran out of memory; run fewer jobs at once" in death.message
    with pytest.raises(HostError) as raised, clone_deaths():
        raise MachineDead(death)
    assert raised.value.message.count("run fewer jobs at once") == 1


def test_only_a_death_of_the_snapshots_own_making_is_one_of_the_snapshot() -> None:
    for cause, kind in (
        (DeathCause.SNAPSHOT, BadSnapshot),
        (DeathCause.HOST, HostError),
        (DeathCause.KILLED, MachineDead),
        (DeathCause.HYPERVISOR, MachineDead),
    ):
        with pytest.raises(kind) as raised, clone_deaths():
            raise MachineDead(Death(cause=cause, message="why"))
        assert type(raised.value) is kind


def test_a_jail_that_does_not_start_is_reported() -> None:
    assert "could not join the machine's cgroup" in death_from_exit(121, b"", "sh: 1: cannot create").message


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
