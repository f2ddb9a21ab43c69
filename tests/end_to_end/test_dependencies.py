"""Scripts that ask for packages, end to end: real machines install them from an index of the tests' own."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support.command import belljar
from support.internet import NAMESERVER, PRIVATE_WEB, SimulatedInternet
from support.package_index import PORT, Index, source, wheel
from support.running import Server, serving

pytestmark = [pytest.mark.vm, pytest.mark.root]

ENVIRONMENT = {
    "BELLJAR_ACCELERATOR": "tcg",
    "BELLJAR_NAMESERVERS": f'["{NAMESERVER}"]',
    "BELLJAR_NETWORK_SLOTS": "1",
    "BELLJAR_PACKAGE_PYPI_URL": f"http://mirror.example.org:{PORT}/simple/",
    "BELLJAR_PACKAGE_PRIVATE_NETWORKS": f'["{PRIVATE_WEB}:{PORT}"]',
    "BELLJAR_MAX_LAYER_MB": "4",
    "BELLJAR_DEPENDENCIES_DISK_MB": "64",
    "BELLJAR_DEPENDENCIES_MEMORY_MB": "512",
}
GREET = "import greeting\nprint(greeting.word)\n"


def needing(requirements: str, code: str) -> str:
    """A script with inline metadata (PEP 723)."""
    return f"# /// script\n# dependencies = [{requirements}]\n# ///\n{code}"


@pytest.fixture(scope="module")
def index(internet: SimulatedInternet) -> Iterator[Index]:
    internet.nameserver.zone["mirror.example.org"] = [PRIVATE_WEB]
    with Index() as made:
        made.add(
            "greeting-1.2-py3-none-any.whl",
            wheel(
                "greeting",
                "1.2",
                {"greeting/__init__.py": "from inner import word\ndef main():\n    print('a program says', word)\n"},
                requires="inner>=2",
                programs="greet = greeting:main",
            ),
        )
        made.add("inner-2.0-py3-none-any.whl", wheel("inner", "2.0", {"inner.py": "word = 'hello'\n"}))
        made.add("inner-1.0-py3-none-any.whl", wheel("inner", "1.0", {"inner.py": "word = 'old'\n"}))
        made.add(
            "pathy-1.0-py3-none-any.whl",
            wheel("pathy", "1.0", {"pathy.pth": "import sys; sys.started_with_pathy = True\n"}),
        )
        made.add("fromsource-1.0.tar.gz", source("fromsource", "1.0"))
        made.add("heavy-1.0-py3-none-any.whl", wheel("heavy", "1.0", {"heavy.py": "", "heavy.bin": "0" * (6 << 20)}))
        made.add("huge-1.0-py3-none-any.whl", wheel("huge", "1.0", {"huge.py": "", "huge.bin": "0" * (90 << 20)}))
        made.add("slow-1.0-py3-none-any.whl", wheel("slow", "1.0", {"slow.py": "word = 'slow'\n"}))
        yield made


def data_dir_with(images: Path, folder: Path) -> Path:
    data_dir = folder / "data"
    data_dir.mkdir()
    (data_dir / "images").symlink_to(images / "images")
    return data_dir


@pytest.fixture(scope="module")
def installing(index: Index, built_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = data_dir_with(built_images, tmp_path_factory.mktemp("installing"))
    with serving(data_dir, **ENVIRONMENT) as server:
        yield server
        assert "Traceback" not in server.log.read_text(), server.log.read_text()
        assert [*(data_dir / "layers/building").iterdir()] == []


def stdout_of(server: Server, job: dict[str, Any]) -> str:
    assert job["status"] == "succeeded", (job, server.logs(job, stream="all"))
    return server.logs(job, stream="stdout").decode()


def test_packages_are_installed_once_and_found_by_every_later_job(installing: Server, index: Index) -> None:
    index.requested.clear()
    first = installing.run(needing('"greeting"', GREET))
    assert stdout_of(installing, first) == "hello\n"
    assert first["dependencies"] == {
        "kind": "pypi",
        "requirements": ["greeting"],
        "runtime": None,
        "origin": "the script block of main.py",
    }
    assert first["timings"]["phases"]["dependencies"] > 0
    assert {"greeting", "inner", "greeting-1.2-py3-none-any.whl", "inner-2.0-py3-none-any.whl"} <= set(index.requested)
    build = installing.logs(first, stream="build").decode()
    assert "installing greeting" in build and "+ inner==2.0" in build and "installed 2 packages" in build
    assert installing.logs(first) == b"hello\n"

    index.requested.clear()
    same = installing.run("print('other words')\n" + needing(" 'greeting' ", GREET))
    assert stdout_of(installing, same) == "other words\nhello\n"
    listed = installing.run(None, files={"main.py": GREET, "requirements.txt": "Greeting  # once more\n"})
    assert stdout_of(installing, listed) == "hello\n"
    project = '[project]\nname = "x"\nversion = "1"\ndependencies = ["greeting"]\n'
    assert stdout_of(installing, installing.run(None, files={"main.py": GREET, "pyproject.toml": project})) == "hello\n"
    assert index.requested == []
    assert installing.logs(same, stream="build") == b""


def test_clones_that_waited_for_any_job_find_the_packages(installing: Server) -> None:
    """An interpreter that started before the packages were there sees them, and a fresh one does."""
    code = needing('"greeting"', GREET + "import os, subprocess, sys\nprint(os.path.dirname(greeting.__file__))\n")
    code += "print(subprocess.run([sys.executable, '-I', '-c', 'import inner; print(inner.word)'], "
    code += "capture_output=True, text=True, env={}).stdout.strip(), end=' ')\n"
    code += "print(subprocess.run(['greet'], capture_output=True, text=True).stdout.strip())\n"
    sources = set()
    for _ in range(60):
        job = installing.run(code, artifacts=["**"])
        lines = stdout_of(installing, job).splitlines()
        assert lines == ["hello", "/usr/local/lib/python3.11/dist-packages/greeting", "hello a program says hello"]
        assert job["kept_artifacts"] == []
        sources.add(job["machine"]["source"])
        if "pool" in sources:
            return
        time.sleep(0.5)
    raise AssertionError(sources)


#: Of two tests, which install them once.
BOTH = '"pathy", "fromsource"'


def test_what_is_read_only_when_python_starts_is_there_too(installing: Server) -> None:
    code = needing(BOTH, "import sys\nprint(sys.started_with_pathy)\n")
    for _ in range(2):
        assert stdout_of(installing, installing.run(code)) == "True\n"


def test_code_of_a_package_runs_in_the_machine_alone(installing: Server) -> None:
    code = needing(BOTH, "import fromsource\nprint(fromsource.BUILT_ON, fromsource.BUILT_BY)\n")
    machine, user = stdout_of(installing, installing.run(code)).split()
    assert machine != os.uname().nodename and user == "1000"


def test_jobs_that_want_the_same_at_once_install_it_once(installing: Server) -> None:
    code = needing('"inner<2"', "import inner\nprint(inner.word)\n")
    with ThreadPoolExecutor(3) as several:
        jobs = [*several.map(lambda number: installing.run(f"# {number}\n{code}"), range(3))]
    assert [stdout_of(installing, job) for job in jobs] == ["old\n"] * 3
    builds = "".join(installing.logs(job, stream="build").decode() for job in jobs)
    assert builds.count("installing inner<2") == builds.count("installed 1 package,") == 1
    assert builds.count("waiting for") >= 1


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("nothing-like-this", "nothing-like-this was not found"),
        ("heavy", "the packages take 6 MB, over the limit of 4 MB (setting max_layer_mb)"),
        ("huge", "do not fit into the 64 MB"),
    ],
)
def test_what_cannot_be_installed_is_the_jobs_failure_and_is_not_tried_again(
    installing: Server, requirement: str, words: str
) -> None:
    job = installing.run(needing(f'"{requirement}"', "print('never')\n"))
    assert (job["status"], job["attempt"], job["error"]["code"]) == ("failed", 1, "dependencies_failed"), job
    assert words in job["error"]["message"] and "main.py" in job["error"]["message"], job["error"]
    assert job["timings"]["phases"]["dependencies"] > 0 and job["exit_code"] is None
    assert b"installing" in installing.logs(job, stream="build") and installing.logs(job) == b""


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("# /// script\n# dependencies = [\n# ///\n", "not TOML"),
        ("# /// script\n# dependencies = []\nprint()\n", "unclosed script block"),
        (needing('"x @ http://evil.example/x.whl"', ""), "has a URL"),
        (
            '# /// script\n# requires-python = ">=3.99"\n# ///\n',
            "requires Python >=3.99, but the image python has 3.11",
        ),
    ],
)
def test_what_cannot_be_read_or_had_is_refused_at_the_door(installing: Server, code: str, words: str) -> None:
    response = installing.http.post("/v1/jobs", json={"code": code, "language": "python"})
    assert response.status_code == 422, response.text
    assert response.json()["code"] == "invalid_dependencies" and words in response.json()["detail"]


def test_a_job_that_is_cancelled_while_packages_are_installed_leaves_nothing(installing: Server, index: Index) -> None:
    index.held["slow"] = threading.Event()
    job_id = installing.submit(needing('"slow"', "import slow\nprint(slow.word)\n"))
    deadline = time.monotonic() + 60
    while "slow" not in index.requested:
        assert time.monotonic() < deadline, installing.logs(job_id, stream="all")
        time.sleep(0.05)
    installing.http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    job = installing.wait(job_id)
    assert job["status"] == "cancelled", job
    index.held.pop("slow").set()
    assert stdout_of(installing, installing.run(needing('"slow"', "import slow\nprint(slow.word)\n"))) == "slow\n"


def test_a_server_that_is_killed_while_packages_are_installed_installs_them_when_it_is_back(
    index: Index, built_images: Path, tmp_path: Path
) -> None:
    data_dir = data_dir_with(built_images, tmp_path)
    index.held["slow"] = threading.Event()
    index.requested.clear()
    environment = ENVIRONMENT | {"BELLJAR_SNAPSHOTS": "off"}
    with serving(data_dir, **environment) as server:
        job_id = server.submit(needing('"slow"', "import slow\nprint(slow.word)\n"))
        deadline = time.monotonic() + 60
        while "slow" not in index.requested:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.process.send_signal(signal.SIGKILL)
        server.process.wait(10)
    assert [path.is_dir() for path in (data_dir / "layers/building").iterdir()].count(True) == 1
    index.held.pop("slow").set()
    with serving(data_dir, **environment) as server:
        assert stdout_of(server, server.wait(job_id)) == "slow\n"
        assert [*(data_dir / "layers/building").iterdir()] == []


def test_without_a_server_a_script_has_its_packages_too(index: Index, data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "hello.py").write_text(needing('"greeting"', GREET))
    first = belljar("run", "hello.py", data_dir=data_dir, cwd=tmp_path, timeout=120, **ENVIRONMENT)
    assert (first.stdout, first.returncode) == (b"hello\n", 0), first.stderr
    assert b"belljar: installing greeting for the image python" in first.stderr
    index.requested.clear()
    second = belljar("run", "hello.py", data_dir=data_dir, cwd=tmp_path, timeout=120, **ENVIRONMENT)
    assert (second.stdout, second.stderr, second.returncode, index.requested) == (b"hello\n", b"", 0, [])
    (tmp_path / "bad.py").write_text(needing('"nothing-like-this"', ""))
    bad = belljar("run", "bad.py", data_dir=data_dir, cwd=tmp_path, timeout=120, **ENVIRONMENT)
    assert bad.returncode == 125 and b"nothing-like-this was not found" in bad.stderr
    off = belljar("run", "bad.py", data_dir=data_dir, cwd=tmp_path, BELLJAR_DEPENDENCIES="off")
    assert (off.returncode, off.stderr) == (0, b"")
