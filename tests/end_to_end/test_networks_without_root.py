"""Networks of a belljar that is not root: the same rules, in namespaces of its own, or a refusal that says why."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from end_to_end.test_networks import printed
from support.internet import METADATA, NAMESERVER, OTHER_WEB, PRIVATE_WEB, WEB, SimulatedInternet, host_state
from support.running import TRY, Server, alive, descendants, name_of, serving

pytestmark = [pytest.mark.vm, pytest.mark.root]

#: Becomes nobody, who finds the images $2 in $3, where /dev/net/tun has the mode $1.
_BECOME_NOBODY = """
mount --make-rprivate / && mount -t tmpfs none /mnt && mknod /mnt/tun c 10 200 && chmod "$1" /mnt/tun &&
mount --bind /mnt/tun /dev/net/tun && umount -l /mnt && mount --bind "$2" "$3" && shift 3 &&
exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all "$@"
"""
ENVIRONMENT = {"BELLJAR_ACCELERATOR": "tcg", "BELLJAR_NAMESERVERS": f'["{NAMESERVER}"]'}


@dataclass(frozen=True)
class Nobody:
    """An unprivileged user, with a data folder, which pytest's own cannot be."""

    folder: Path
    images: Path

    def prefix(self, tun_mode: str = "666") -> list[str]:
        """What makes a command this user's."""
        places = [str(self.images), str(self.folder / "images")]
        return ["unshare", "--mount", "sh", "-c", _BECOME_NOBODY, "sh", tun_mode, *places]


@pytest.fixture
def nobody(built_images: Path) -> Iterator[Nobody]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        (folder / "data/images").mkdir(parents=True)
        folder.chmod(0o755)
        os.chown(folder / "data", 65534, 65534)
        made = Nobody(folder / "data", built_images / "images")
        if subprocess.run([*made.prefix(), sys.executable, "-c", ""], capture_output=True, timeout=20).returncode:
            pytest.skip("the folder that this clone is in is not open to other users")
        yield made


@pytest.fixture
def own_networks(nobody: Nobody) -> None:
    """Skips where an unprivileged user cannot have what is needed."""
    if shutil.which("slirp4netns") is None:
        pytest.skip("slirp4netns not found; script/bootstrap installs it")
    if subprocess.run([*nobody.prefix(), "unshare", "-Urnm", "true"], capture_output=True, timeout=20).returncode:
        pytest.skip("this host gives its users no namespaces")


def run(user: Nobody, *arguments: str, egress: str, tun_mode: str = "666") -> subprocess.CompletedProcess[str]:
    script = user.folder.parent / "try.py"
    script.write_text(TRY)
    command = [*user.prefix(tun_mode), sys.executable, "-m", "belljar", "run", str(script), "--egress", egress]
    command += ["--data-dir", str(user.folder), "--", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=170, env={**os.environ, **ENVIRONMENT})


@pytest.mark.usefixtures("own_networks")
def test_open_reaches_the_internet_and_nothing_private(internet: SimulatedInternet, nobody: Nobody) -> None:
    before, seen = host_state(), (list(internet.metadata.peers), list(internet.private.peers))
    # What slirp4netns calls the host, its own addresses, the host's, and names that lead there.
    private = ["10.0.2.2:8080", "10.0.2.3:53", "10.99.0.1:22", f"{METADATA}:80", f"{PRIVATE_WEB}:80", "198.19.0.0:53"]
    places = [f"{WEB}:80", "www.example.org:443", *private, "rebound.example.org:80"]
    ran = run(nobody, *places, egress="open")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        f"{WEB}:80 web",
        "www.example.org:443 tls",
        *(f"{place} ConnectionRefusedError" for place in private),
        "rebound.example.org:80 gaierror",
    ]
    assert ran.stderr.count("no job may reach private or local addresses") == len(private) + 1
    assert (internet.metadata.peers, internet.private.peers) == seen
    assert host_state() == before


@pytest.mark.usefixtures("own_networks")
def test_a_list_reaches_exactly_what_is_listed(internet: SimulatedInternet, nobody: Nobody) -> None:
    places = ["www.example.org:80", f"{WEB}:443", f"{OTHER_WEB}:80", "pypi.org:443"]
    ran = run(nobody, *places, egress=f"www.example.org:80,{OTHER_WEB}")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines() == [
        "www.example.org:80 web",
        f"{WEB}:443 ConnectionRefusedError",
        f"{OTHER_WEB}:80 other",
        "pypi.org:443 gaierror",
    ]


@pytest.fixture
def server(own_networks: None, internet: SimulatedInternet, nobody: Nobody) -> Iterator[Server]:
    more = {"BELLJAR_POOL": "fixed", "BELLJAR_POOL_SIZE": "1", "BELLJAR_NETWORK_SLOTS": "1"}
    with serving(nobody.folder, prefix=nobody.prefix(), **ENVIRONMENT, **more) as server:
        yield server
        assert "Traceback" not in server.log.read_text(), server.log.read_text()


def holders(server: Server) -> list[int]:
    """The processes that hold the networks, and the way out of them."""
    found = descendants(server.process.pid)
    return [pid for pid in found if "slirp" in name_of(pid) or "rootless_process" in _command(pid)]


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
    before, left = host_state(), holders(server)
    assert len(left) >= 2
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert host_state() == before


def test_when_a_process_that_holds_the_networks_dies_the_next_jobs_have_others(server: Server) -> None:
    assert server.run("print(1)", egress="open")["status"] == "succeeded"
    for which in ("slirp", "rootless_process"):
        killed = [pid for pid in holders(server) if which in _command(pid)]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        job = server.run(TRY, args=[f"{WEB}:80"], egress="open", max_attempts=3)
        assert printed(server, job) == [f"{WEB}:80 web"]
        assert killed and not set(killed) & set(holders(server)), which


@pytest.mark.parametrize("egress", ["open", "packages", "example.org"])
def test_where_there_can_be_no_network_the_job_is_refused_and_says_why(nobody: Nobody, egress: str) -> None:
    ran = run(nobody, f"{WEB}:80", egress=egress, tun_mode="600")
    assert (ran.returncode, ran.stdout) == (125, ""), ran.stderr
    assert "jobs with a network need belljar to run as root, or /dev/net/tun to be open to this user" in ran.stderr
