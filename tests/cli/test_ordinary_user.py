"""README's commands for an ordinary user of a Debian machine: no root, and no /usr/sbin on PATH."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from belljar.images.catalog import Images
from support.paths import ROOT
from support.registered_images import register

pytestmark = [pytest.mark.root, pytest.mark.process]

#: What Debian gives an ordinary user in /etc/profile, behind the folder that README says to put there.
PATH = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games"
#: Lines of README's command line that download, or build for minutes.
SLOW = ("image build", "image import", "--egress")


@dataclass
class User:
    """A user of this host, who is gone with the test."""

    name: str
    home: Path

    @property
    def data_dir(self) -> Path:
        return self.home / ".local/share/belljar"

    def run(self, line: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run a line in the user's shell, in the user's home."""
        before = ["setpriv", f"--reuid={self.name}", f"--regid={self.name}", "--init-groups", "--inh-caps=-all"]
        env = {"HOME": str(self.home), "USER": self.name, "PATH": PATH, "BELLJAR_ACCELERATOR": "tcg"}
        command = [*before, "--", "bash", "-c", line]
        return subprocess.run(command, cwd=self.home, env=env, capture_output=True, text=True, timeout=timeout)

    def own(self, folder: Path) -> None:
        """Make everything in the folder this user's."""
        uid = int(subprocess.run(["id", "-u", self.name], check=True, capture_output=True, text=True).stdout)
        for path in (folder, *folder.rglob("*")):
            os.lchown(path, uid, uid)


@pytest.fixture
def user(everybodys: Path, ordinary: list[str]) -> Iterator[User]:
    if not shutil.which("useradd"):
        pytest.skip("useradd (passwd) is not installed")
    name, home = f"belljar-{os.getpid()}", everybodys / "home"
    made = subprocess.run(["useradd", "-m", "-d", home, "--user-group", name], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(f"no user can be made here: {made.stderr.strip()}")
    try:
        yield User(name, home)
    finally:
        subprocess.run(["userdel", name], check=True, capture_output=True)


def test_tools_for_administrators_are_found(user: User) -> None:
    if shutil.which("mkfs.ext4", path="/usr/sbin:/sbin") is None:
        pytest.skip("needs e2fsprogs")
    assert user.run("command -v mkfs.ext4").returncode != 0, "this user finds it without belljar's help"
    checks = {check["name"]: check for check in json.loads(user.run("belljar doctor --json").stdout)}
    assert checks["mkfs.ext4"]["level"] == "ok" and checks["mkfs.ext4"]["message"].endswith("sbin/mkfs.ext4")


def test_a_server_and_its_commands(user: User) -> None:
    """README's session without a job's end: that needs machines."""
    register(user.data_dir, "python")
    user.own(user.home / ".local")
    done = user.run(
        "belljar serve --no-worker --port 0 2>serve.log & trap 'kill $!; wait' EXIT\n"
        "until URL=$(grep -o 'http://[0-9.:]*' serve.log); do sleep 0.1; done\n"
        'AUTH="Authorization: Bearer $(cat ~/.local/share/belljar/admin.key)"\n'
        "echo 'print(1)' >hello.py\n"
        "set -e\n"
        'curl -sSf -H "$AUTH" -F script=@hello.py $URL/v1/scripts >script.json\n'
        "belljar image ls\n"
        "belljar submit hello.py\n"
        "belljar jobs ls\n"
        "belljar key create ci >key\n"
    )
    assert done.returncode == 0, done.stderr
    assert "python" in done.stdout and "queued" in done.stdout
    assert (user.home / "key").read_text().startswith("bj_")


@pytest.fixture
def with_images(user: User, built_images: Path) -> User:
    """The user, who has built the images python and shell."""
    images = user.data_dir / "images"
    (images / "parts").mkdir(parents=True)
    for name in ("python", "shell"):
        image = Images(built_images).get(name)
        for part in (image.kernel, image.initramfs, image.root):
            shutil.copy(part, images / "parts")
    for name in ("python.json", "shell.json"):
        shutil.copy(built_images / "images" / name, images)
    if (manifests := built_images / "images/manifests").is_dir():
        shutil.copytree(manifests, images / "manifests")
    shutil.copytree(ROOT / "examples", user.home / "examples")
    (user.home / "folder").mkdir()
    (user.home / "folder/main.py").write_text("open('made', 'w').write('x')")
    (user.home / "script.py").write_text("import sys; print(*sys.argv[1:], sys.stdin.read())")
    (user.home / "data.csv").write_text("1,2")
    user.own(user.home)
    return user


def blocks() -> list[list[str]]:
    """The lines of README's code blocks, in their order."""
    found = re.findall(r"^```\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    return [block.splitlines() for block in found]


@pytest.mark.vm
def test_readmes_command_line(with_images: User) -> None:
    (lines,) = [block for block in blocks() if block[0].startswith("belljar run script.py")]
    quick = [line for line in lines if not any(word in line for word in SLOW)]
    assert len(quick) >= 5
    for line in quick:
        done = with_images.run(line)
        if line.startswith("belljar doctor"):
            assert "fail" not in {each.split()[0] for each in done.stdout.splitlines() if each.strip()}, done.stdout
            continue
        assert (done.returncode, done.stderr) == (0, ""), line
    assert (with_images.home / "out/made").read_text() == "x"
    assert [path for path in (with_images.data_dir / "run").rglob("*") if path.is_file()] == []


@pytest.mark.vm
def test_readmes_session_with_curl(with_images: User) -> None:
    variables, one, *_ = [block for block in blocks() if any("curl -H" in line for line in block)]
    address, key, *requests = [line for line in variables if line.strip()]
    script = [
        "belljar serve --port 0 2>serve.log & trap 'kill $!; wait' EXIT",
        address,
        "until URL=$(grep -o 'http://[0-9.:]*' serve.log); do sleep 0.1; done",
        key.replace("/var/lib/belljar", "$HOME/.local/share/belljar"),
        "set -e -o pipefail",
        "field() { python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' $1; }",
    ]
    names = {"SCRIPT_ID": "$SCRIPT_ID", "JOB_ID": "$JOB_ID"}
    for line, answer in zip(requests, ("script_id", "job_id", "status", ""), strict=True):
        call = re.sub(r"\b(SCRIPT_ID|JOB_ID)\b", lambda found: names[found[0]], line.partition("  #")[0])
        script.append(
            f"{answer.upper()}=$({call} | field {answer}); echo {answer} ${answer.upper()}" if answer else call
        )
    script += one
    done = with_images.run("\n".join(script))
    assert done.returncode == 0, done.stderr
    assert "status succeeded" in done.stdout and "== ls /sys/class/net" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "succeeded"
