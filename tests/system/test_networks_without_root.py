"""Networks of a belljar that is not root: the same rules, enforced in namespaces of its own, or a refusal that says why."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from network.world import METADATA, NAMESERVER, OTHER_WEB, PRIVATE_WEB, WEB, Internet, host_state
from system.running import TRY, Server, alive, descendants, name_of, serving
from system.test_networks import printed

pytestmark = [pytest.mark.vm, pytest.mark.root]

#: Becomes nobody, who can still read what lies in root's folders, where /dev/net/tun has the mode $1.
_BECOME_NOBODY = """
mount --make-rprivate / && mount -t tmpfs none /mnt && mknod /mnt/tun c 10 200 && chmod "$1" /mnt/tun &&
mount --bind /mnt/tun /dev/net/tun && umount -l /mnt && shift &&
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all,+dac_read_search \\
    --ambient-caps=+dac_read_search --bounding-set=-all,+dac_read_search "$@"
"""
ENVIRONMENT = {"BELLJAR_ACCELERATOR": "tcg", "BELLJAR_NAMESERVERS": f'["{NAMESERVER}"]'}


def nobody(tun_mode: str = "666") -> list[str]:
    return ["unshare", "--mount", "sh", "-c", _BECOME_NOBODY, "sh", tun_mode]


@pytest.fixture
def nobodys_folder(built_images: Path) -> Iterator[Path]:
    """A data folder of an unprivileged user's, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        os.chown(folder, 65534, 65534)
        (Path(folder) / "images").symlink_to(built_images / "images")
        yield Path(folder)


@pytest.fixture
def own_networks() -> None:
    """Skips where an unprivileged user cannot have what is needed."""
    if shutil.which("slirp4netns") is None:
        pytest.skip("slirp4netns not found; script/bootstrap --dev installs it")
    if subprocess.run([*nobody(), "unshare", "-Urnm", "true"], capture_output=True, timeout=20).returncode:
        pytest.skip("this host gives its users no namespaces")


def run(folder: Path, *arguments: str, egress: str, tun_mode: str = "666") -> subprocess.CompletedProcess[str]:
    script = folder / "try.py"
    script.write_text(TRY)
    command = [*nobody(tun_mode), sys.executable, "-m", "belljar", "run", str(script), "--egress", egress]
    command += ["--data-dir", str(folder), "--", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env={**os.environ, **ENVIRONMENT})


@pytest.mark.usefixtures("own_networks")
def test_open_reaches_the_internet_and_nothing_private(world: Internet, nobodys_folder: Path) -> None:
    before, seen = host_state(), (list(world.metadata.peers), list(world.private.peers))
    # What slirp4netns calls the host, its own addresses, the host's, and names that lead there.
    private = ["10.0.2.2:8080", "10.0.2.3:53", "10.99.0.1:22", f"{METADATA}:80", f"{PRIVATE_WEB}:80", "198.19.0.0:53"]
    places = [f"{WEB}:80", "www.example.org:443", *private, "rebound.example.org:80"]
    ran = run(nobodys_folder, *places, egress="open")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        f"{WEB}:80 web",
        "www.example.org:443 tls",
        *(f"{place} ConnectionRefusedError" for place in private),
        "rebound.example.org:80 gaierror",
    ]
    assert ran.stderr.count("no job may reach private or local addresses") == len(private) + 1
    assert (world.metadata.peers, world.private.peers) == seen
    assert host_state() == before


@pytest.mark.usefixtures("own_networks")
def test_a_list_reaches_exactly_what_is_listed(world: Internet, nobodys_folder: Path) -> None:
    places = ["www.example.org:80", f"{WEB}:443", f"{OTHER_WEB}:80", "pypi.org:443"]
    ran = run(nobodys_folder, *places, egress=f"www.example.org:80,{OTHER_WEB}")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "www.example.org:80 web",
        f"{WEB}:443 ConnectionRefusedError",
        f"{OTHER_WEB}:80 other",
        "pypi.org:443 gaierror",
    ]


@pytest.fixture
def server(own_networks: None, world: Internet, nobodys_folder: Path, tmp_path: Path) -> Iterator[Server]:
    more = {"BELLJAR_POOL": "fixed", "BELLJAR_POOL_SIZE": "1", "BELLJAR_NETWORK_SLOTS": "1"}
    with serving(nobodys_folder, prefix=nobody(), **ENVIRONMENT, **more) as server:
        yield server
        assert "Traceback" not in server.log.read_text(), server.log.read_text()
    server.log.unlink()


def helpers(server: Server) -> list[int]:
    """The processes that hold the networks, and the way out of them."""
    found = descendants(server.process.pid)
    return [pid for pid in found if "slirp" in name_of(pid) or "standin" in _command(pid)]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode()
    except OSError:
        return ""


def test_machines_are_cloned_and_wait_with_networks_all_the_same(server: Server) -> None:
    deadline = time.monotonic() + 150
    while True:
        job = server.run(TRY, args=[f"{WEB}:80", f"{OTHER_WEB}:80"], egress=f"{WEB}:80", network_mbit_per_second=20)
        assert printed(server, job) == [f"{WEB}:80 web", f"{OTHER_WEB}:80 ConnectionRefusedError"]
        assert job["usage"]["rx_bytes"] > 100 and job["network"]["refused_count"] == 1
        if job["machine"]["source"] == "pool":
            break
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(1)


def test_after_kill_9_nothing_is_left(server: Server) -> None:
    job = server.submit("import time; time.sleep(60)", egress="open")
    server.until(job, "running")
    before, left = host_state(), helpers(server)
    assert len(left) >= 2
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert host_state() == before


def test_when_the_process_that_holds_the_networks_dies_jobs_are_told_so(server: Server) -> None:
    assert server.run("print(1)", egress="open")["status"] == "succeeded"
    for pid in helpers(server):
        os.kill(pid, signal.SIGKILL)
    job = server.run("print(1)", egress="open", max_attempts=2)
    assert (job["status"], job["error"]["code"] if job["error"] else None) == ("succeeded", None), job


@pytest.mark.parametrize("egress", ["open", "packages", "example.org"])
def test_where_there_can_be_no_network_the_job_is_refused_and_says_why(nobodys_folder: Path, egress: str) -> None:
    ran = run(nobodys_folder, f"{WEB}:80", egress=egress, tun_mode="600")
    assert (ran.returncode, ran.stdout) == (125, ""), ran.stderr
    assert "jobs with a network need belljar to run as root, or /dev/net/tun to be open to this user" in ran.stderr
