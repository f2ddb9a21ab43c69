"""What a job cannot do in its machine, whatever its user: run in a real machine as root and as an ordinary user."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from belljar.images.catalog import Images
from belljar.node.guest.command import Command
from belljar.node.guest.connection import AgentConnection
from belljar.node.machines.protocol import MachineSpec, Shape
from belljar.node.machines.provision.cold_boot import boot_machine
from belljar.node.machines.qemu.hypervisor import QemuHypervisor
from belljar.settings import Settings
from support.conversation import Collector

pytestmark = pytest.mark.vm

BOOT_SECONDS = 120
#: Docker's default set, less MKNOD: the numbers of linux/capability.h.
KEPT = sum(1 << number for number in (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31))
COMMAND = Command(argv=[], env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}, cwd="/tmp", keep=True)

AS_ROOT = """
cat /proc/self/status
try() { "$@" >/dev/null 2>&1 && echo "allowed $*" || echo "refused $*"; }
try chown 33:33 /tmp
try sh -c 'echo x > /etc/hostname'
try setpriv --reuid 33 --regid 33 --clear-groups true
try mkdir /home/other
try mknod /tmp/disk b 254 0
try mount -t tmpfs none /mnt
try mount -o remount,rw /sys
try sh -c 'echo "|/bin/true" > /proc/sys/kernel/core_pattern'
try sh -c 'echo b > /proc/sysrq-trigger'
try umount /proc/sys
try unshare --user true
try unshare --mount true
try sh -c 'cat /proc/1/environ'
try sh -c 'ls /proc/1/root/'
try sh -c 'echo 0 > /sys/kernel/mm/ksm/run'
try hostname other
"""
ALLOWED = {"chown 33:33 /tmp", "sh -c echo x > /etc/hostname", "mkdir /home/other"}
ALLOWED |= {"setpriv --reuid 33 --regid 33 --clear-groups true"}

AS_USER = """
grep -E '^(Cap|Seccomp|NoNewPrivs)' /proc/self/status
unshare --user true 2>/dev/null && echo namespaces
cat /proc/sys/user/max_user_namespaces
cd && echo text > file && cat file
"""


@pytest.fixture
async def connection(built_images: Path, tmp_path: Path) -> AsyncIterator[AgentConnection]:
    image = Images(built_images).get("shell")
    spec = MachineSpec(image=image, shape=Shape(vcpus=1, memory_mb=128), script_disk=image.root)
    hypervisor = QemuHypervisor(Settings(data_dir=tmp_path), "tcg")
    async with AsyncExitStack() as stack:
        yield (await boot_machine(lambda: hypervisor.machine(spec), BOOT_SECONDS, stack)).connection


async def output_of(connection: AgentConnection, command: Command) -> list[str]:
    sink = Collector()
    async with asyncio.timeout(BOOT_SECONDS):
        await connection.run(command, b"", sink, lambda _: None)
    return sink.stdout.decode().splitlines()


async def test_root_has_what_packages_need_and_nothing_of_the_machine(connection: AgentConnection) -> None:
    lines = await output_of(connection, replace(COMMAND, argv=["sh", "-c", AS_ROOT], uid=0, gid=0))
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert int(status[name], 16) == KEPT, name
    assert (status["CapAmb"].strip("0"), status["NoNewPrivs"], status["Seccomp"]) == ("", "1", "2")
    tried = [line.split(" ", 1) for line in lines if line.startswith(("allowed ", "refused "))]
    assert len(tried) == AS_ROOT.count("try ")
    assert {what for answer, what in tried if answer == "allowed"} == ALLOWED


async def test_an_ordinary_user_has_no_capability_and_a_home(connection: AgentConnection) -> None:
    command = replace(COMMAND, argv=["sh", "-c", AS_USER], env=COMMAND.env | {"HOME": "/home/job"})
    lines = await output_of(connection, command)
    status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert {int(value, 16) for name, value in status.items() if name.startswith("Cap")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert lines[-2:] == ["0", "text"] and "namespaces" not in lines
