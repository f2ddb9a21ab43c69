"""The jail around a hypervisor, with a harmless program in it; and the user ids that jails run as."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar.model.errors import HostError, MissingTool
from belljar.node.machines.host.cgroup import Group
from belljar.node.machines.host.jail import Jail, Program, find_program, kill_tree, machine_uid, with_advice
from belljar.settings import Settings
from support.running import alive, descendants

pytestmark = pytest.mark.process

UID = 3_912_000
NO_GROUP = Group(folders=())

jailed = pytest.mark.skipif(
    shutil.which("bwrap") is None or shutil.which("setpriv") is None, reason="needs bubblewrap and setpriv"
)


def uid() -> int | None:
    return UID if os.geteuid() == 0 else None


def shell() -> Program:
    """A shell and the few programs that it looks around with."""
    inside = find_program("sh")
    tools = [find_program(name) for name in ("cat", "ls", "sleep")]
    files = dict.fromkeys((*inside.files, *(file for tool in tools for file in tool.files)))
    return Program(executable=inside.executable, files=tuple(files))


def run(script: str, **fields: object) -> subprocess.CompletedProcess[str]:
    jail = Jail(**{"uid": uid(), "group": NO_GROUP, "address_bytes": None, **fields})  # type: ignore[arg-type]
    command = jail.command(shell(), ["-c", script])
    environment = {**jail.environment(), "SECRET": "hunter2"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30)


@jailed
def test_a_jail_holds_the_program_and_nothing_of_the_host() -> None:
    result = run("/usr/bin/ls / /dev; /usr/bin/ls /proc/net/../../etc /root /home /run /var; echo; echo $HOME $SECRET")
    assert "hunter2" not in result.stdout
    names = set(result.stdout.split())
    assert names.isdisjoint({"etc", "home", "root", "var", "run", "sys", "boot", "kvm", "vda", "sda", "mem"})
    assert result.stderr.count("No such file") == 5


@jailed
def test_a_jail_sees_no_network_and_no_process_but_its_own() -> None:
    result = run("/usr/bin/cat /proc/net/dev; echo; cd /proc; echo [0-9]*")
    devices = [line.split(":")[0].strip() for line in result.stdout.splitlines() if ":" in line]
    assert devices == ["lo"]
    assert len(result.stdout.splitlines()[-1].split()) <= 2


@jailed
def test_a_jail_has_no_privilege_and_cannot_get_one() -> None:
    status = dict(
        line.split(":", 1) for line in run("/usr/bin/cat /proc/self/status").stdout.splitlines() if ":" in line
    )
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0, name
    assert status["NoNewPrivs"].strip() == "1"
    assert status["Groups"].split() in ([], ["65534"])
    assert os.geteuid() != 0 or set(status["Uid"].split()) == {str(UID)}


@jailed
def test_a_jails_limits_hold() -> None:
    result = run("ulimit -c; ulimit -n; ulimit -v", address_bytes=512 << 20)
    assert result.stdout.split() == ["0", "256", str(512 << 10)]


@jailed
def test_what_a_jail_writes_is_memory_of_its_own() -> None:
    result = run(
        "echo x >/tmp/a; echo y >/usr/x; echo z >/usr/bin/ls; echo z >/proc/sys/kernel/hostname; /usr/bin/cat /tmp/a"
    )
    assert result.stdout == "x\n"
    assert "/usr/bin/ls: Read-only" in result.stderr
    assert "/proc/sys/kernel/hostname: " in result.stderr
    assert not Path("/usr/x").exists()
    assert not Path("/tmp/a").exists()


@jailed
@pytest.mark.parametrize("milliseconds", [0, 1, 2, 4, 8, 16, 32, 64])
async def test_a_jail_ends_at_whatever_moment_it_is_killed(milliseconds: int) -> None:
    jail = Jail(uid=uid(), group=NO_GROUP, address_bytes=None)
    command = jail.command(shell(), ["-c", "/usr/bin/sleep 300"])
    process = await asyncio.create_subprocess_exec(*command, env=jail.environment(), start_new_session=True)
    await asyncio.sleep(milliseconds / 1000)
    inside = descendants(process.pid)
    kill_tree(process.pid)
    async with asyncio.timeout(10):
        await process.wait()
        while any(alive(pid) for pid in inside):
            await asyncio.sleep(0.005)


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingTool, match="no-such-emulator not found; install with: apt-get"):
        find_program("no-such-emulator")


def test_bubblewraps_errors_about_namespaces_come_with_advice() -> None:
    message = with_advice("bwrap: No permissions to create new namespace, likely because ...")
    assert "unprivileged_userns_clone=1" in message and message.startswith("bwrap:")
    assert with_advice("qemu: out of memory") == "qemu: out of memory"


# --- user ids -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ids() -> Iterator[Settings]:
    """Two user ids for machines that no other process uses."""
    settings = Settings(data_dir=Path("/nonexistent"), jail_uid_base=UID, jail_uid_count=2)
    yield settings
    for number in (UID, UID + 1):
        Path(f"/run/belljar/uids/{number}").unlink(missing_ok=True)


_HOLD = """
import sys
from pathlib import Path
from belljar.node.machines.host.jail import machine_uid
from belljar.settings import Settings
with machine_uid(Settings(data_dir=Path("/nonexistent"), jail_uid_base=int(sys.argv[1]), jail_uid_count=2)) as uid:
    print(uid, flush=True)
    sys.stdin.read()
"""


@pytest.mark.root
def test_no_two_machines_have_the_same_user_id(ids: Settings) -> None:
    with machine_uid(ids) as first, machine_uid(ids) as second:
        assert {first, second} == {UID, UID + 1}
        with pytest.raises(HostError, match="all 2 user ids for machines are taken; raise jail_uid_count"):
            machine_uid(ids).__enter__()
    with machine_uid(ids) as again:
        assert again == first


@pytest.mark.root
def test_another_processs_machines_have_other_user_ids_until_it_dies(ids: Settings) -> None:
    pipe = subprocess.PIPE
    other = subprocess.Popen([sys.executable, "-c", _HOLD, str(UID)], stdin=pipe, stdout=pipe, text=True)
    try:
        assert other.stdout and other.stdout.readline() == f"{UID}\n"
        with machine_uid(ids) as mine:
            assert mine == UID + 1
            other.kill()
            other.wait()
            with machine_uid(ids) as freed:
                assert freed == UID
    finally:
        other.kill()
        other.communicate()


def test_an_ordinary_users_machines_run_as_that_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with machine_uid(Settings(data_dir=Path("/nonexistent"))) as uid:
        assert uid is None
