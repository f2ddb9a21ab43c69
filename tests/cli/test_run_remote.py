"""`belljar run --server`: however it ends, its job ends too; what a server sends is believed no more than a guest."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from belljar.images.catalog import Images
from belljar.scripts.folder import pack_folder
from belljar.scripts.limits import UploadLimits
from belljar.scripts.prepare import UploadHints, unpack_source
from belljar.scripts.selection import Selection
from support.command import belljar, complaint, parsed
from support.foreign_server import Foreign, foreign_server
from support.registered_images import register
from support.running import Server, serving

pytestmark = [pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils"), pytest.mark.process]


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    with foreign_server() as foreign:
        yield foreign


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("remote") / "data"
    register(folder, "python")
    return folder


@pytest.fixture(scope="module")
def server(data_dir: Path) -> Iterator[Server]:
    with serving(data_dir, "--no-worker") as server:
        yield server


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text("print(1)")
    return tmp_path / "main.py"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_cancels_the_job(server: Server, data_dir: Path, script: Path, number: signal.Signals) -> None:
    before = {job["id"] for job in server.http.get("/v1/jobs").json()["jobs"]}
    command = [sys.executable, "-m", "belljar", "run", "--server", server.url, "--data-dir", str(data_dir), str(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not (new := [job for job in server.http.get("/v1/jobs").json()["jobs"] if job["id"] not in before]):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == (b"", b"belljar: cancelled\n", 128 + number)
    assert server.wait(new[0]["id"], 10)["status"] == "cancelled"


def test_a_reader_that_goes_away_cancels_the_job(foreign: Foreign, script: Path, tmp_path: Path) -> None:
    foreign.stdout, foreign.job["status"] = None, "cancelled"
    command = ["/bin/sh", "-c", '("$@"; echo $? >code) | head -1', "sh"]
    result = belljar("run", "--server", foreign.url, str(script), before=command, cwd=tmp_path)
    assert (result.stdout, result.stderr) == (b"line\n", b"")
    assert foreign.cancelled.is_set() and (tmp_path / "code").read_text() == "141\n"


def test_a_full_disk_cancels_the_job(foreign: Foreign, script: Path, tmp_path: Path) -> None:
    foreign.stdout = None
    command = ["/bin/sh", "-c", '"$@" >/dev/full', "sh"]
    result = belljar("run", "--server", foreign.url, str(script), before=command, cwd=tmp_path)
    assert "no room left" in complaint(result, 125) and foreign.cancelled.is_set()


def test_logs_that_cannot_be_written_are_one_line(foreign: Foreign) -> None:
    foreign.stdout = [b"line\n"]
    command = ["/bin/sh", "-c", '"$@" >/dev/full', "sh"]
    words = ["logs", "job_1", "--stream", "stdout", "--server", foreign.url]
    assert "cannot write the output: No space left" in complaint(belljar(*words, before=command), 1)


def test_a_servers_words_steer_no_terminal(foreign: Foreign, script: Path) -> None:
    evil = "\x1b[2J\x9b31m\u202e"
    foreign.job |= {
        "error": {"code": evil, "message": evil},
        "lost_attempts": [{"attempt": evil, "message": evil}],
        "kept_artifacts": [{"path": f"a{evil}", "size_bytes": evil}],
        "timings": {"queue_ms": None, "phases": {evil: 1e300, "b": -1e300}},
        "usage": {"cpu_seconds": None},
        **dict.fromkeys(("script_id", "image", "attempt", "created_at"), evil),
    }
    shown = [
        belljar("jobs", "get", "job_1", "--server", foreign.url),
        belljar("jobs", "get", "job_1", "--json", "--server", foreign.url),
        belljar("run", str(script), "--verbose", "--json", "--server", foreign.url),
    ]
    for end in shown:
        output_of_both = (end.stdout + end.stderr).decode()
        assert end.returncode == 0 and not {"\x1b", "\x9b", "\u202e"} & set(output_of_both), output_of_both
    assert json.loads(shown[1].stdout)["error"]["code"] == evil


def test_a_number_that_is_no_exit_code_is_no_success(foreign: Foreign, script: Path) -> None:
    for code in (256, -1, 1 << 40):
        foreign.job["exit_code"] = code
        assert belljar("run", "--server", foreign.url, str(script)).returncode == 125


def test_a_servers_artifacts_stay_in_their_folder(foreign: Foreign, script: Path, tmp_path: Path) -> None:
    out, outside = tmp_path / "a/b/out", tmp_path / "outside"
    out.mkdir(parents=True)
    outside.mkdir()
    (outside / "victim").write_text("precious")
    (out / "link").symlink_to(outside / "victim")
    (out / "folder").symlink_to(outside)
    (out / "hard").hardlink_to(outside / "victim")
    refused = {
        **dict.fromkeys(("../x", "a/../../x", "..", "", "/etc/belljar-test", "a//b", "./x", "x/"), b"x"),
        **dict.fromkeys(("link", "folder/victim", "folder/new", "link/x", "bell\x07", "\u202eevil", "n" * 256), b"x"),
        **dict.fromkeys(("/".join(["d"] * 3000), "\ud800"), b"x"),
        "longer": b"announced as one byte",
        "shorter": b"",
        "endless": 1 << 40,
        "late/file": b"x",
        "late": b"x",
    }
    sizes = {"longer": 1, "shorter": 5, "endless": 10}
    wanted = {"fine/file": b"fine", "hard": b"replaced"}
    foreign.bodies = {**refused, **wanted}
    foreign.artifacts = [
        {"path": path, "size_bytes": sizes.get(path, len(body) if isinstance(body, bytes) else body)}
        for path, body in foreign.bodies.items()
    ]
    result = belljar("run", "--server", foreign.url, str(script), "--artifacts", "a/b/out", "--json", cwd=tmp_path)
    named = {each["path"] for each in json.loads(result.stdout)["artifacts_not_kept"]}
    assert result.returncode == 125 and named == refused.keys() - {"late/file"}
    assert b"Traceback" not in result.stderr and b"more artifacts were not saved" in result.stderr
    assert (out / "fine/file").read_bytes() == b"fine" and (out / "hard").read_bytes() == b"replaced"
    assert (out / "late/file").read_bytes() == b"x"
    assert [path.name for path in outside.iterdir()] == ["victim"]
    assert (outside / "victim").read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "main.py", "outside"]
    left = sorted(path.name for path in out.rglob("*") if path.is_file() and not path.is_symlink())
    assert left == ["file", "file", "hard"]
    assert not Path("/etc/belljar-test").exists()


def test_the_limits_here_hold_for_a_servers_artifacts(foreign: Foreign, script: Path, tmp_path: Path) -> None:
    foreign.bodies = {"large": 3 << 20, "a": b"a", "b": b"b", "c": b"c"}
    sizes = {"large": 3 << 20}
    foreign.artifacts = [{"path": path, "size_bytes": sizes.get(path, 1)} for path in foreign.bodies]
    limits = {"BELLJAR_MAX_ARTIFACTS_MB": "1", "BELLJAR_MAX_ARTIFACT_COUNT": "3"}
    words = ["run", "--server", foreign.url, str(script), "--artifacts", "out"]
    result = belljar(*words, cwd=tmp_path, **limits)
    assert result.returncode == 125 and sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a", "b"]
    assert b"the artifact large was not saved: max_artifacts_mb is 1" in result.stderr
    assert b"the artifact c was not saved: max_artifact_count is 3" in result.stderr


def test_answers_that_are_none_are_one_line(foreign: Foreign, script: Path) -> None:
    listing = "/v1/jobs/job_1/artifacts"
    for answer in (b"[1]", b"{", b'{"artifacts": [1]}', b'{"artifacts": [{"path": 1}]}', b"[" * 100_000, 1 << 40):
        foreign.raw[listing] = answer
        # The memory that an endless answer may take is bounded: the process dies of more.
        before = ["prlimit", f"--as={2 << 30}"]
        result = belljar("run", "--server", foreign.url, str(script), "--artifacts", "/tmp", before=before)
        text = complaint(result, 125)
        assert "belljar server" in text or "is malformed" in text


# --- uploads ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as people have it: code, what tools made beside it, a link, an empty folder, a program."""
    root = tmp_path / "folder"
    for name in (
        ".git/config",
        "lib/__pycache__/a.pyc",
        ".venv/pyvenv.cfg",
        "env/pyvenv.cfg",
        "node_modules/a/index.js",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("TOKEN")
    (root / "env/bin").mkdir()
    (root / "env/bin/python3").symlink_to("/usr/bin/python3")
    (root / "main.py").write_text("import os; print(sorted(os.listdir('.')))")
    (root / "lib/tool.sh").write_text("#!/bin/sh\n")
    (root / "lib/tool.sh").chmod(0o750)
    (root / "again.py").symlink_to("main.py")
    (root / "empty").mkdir()
    return root


def test_a_folder_is_the_same_script_here_and_on_a_server(
    server: Server, data_dir: Path, folder: Path, tmp_path: Path
) -> None:
    result = belljar("submit", "folder", "--json", data_dir=data_dir, cwd=tmp_path)
    notice = b"belljar: left out: .git, .venv, env, lib/__pycache__ (--include NAME sends it)\n"
    assert (result.returncode, result.stderr) == (0, notice)
    (tmp_path / "work").mkdir()
    here = asyncio.run(
        unpack_source(
            folder,
            UploadHints(filename="folder"),
            languages=Images(data_dir).languages(),
            limits=UploadLimits(),
            work=tmp_path / "work",
            selection=Selection(),
        )
    )
    assert json.loads(result.stdout)["script_id"] == here.id
    assert here.file_count == 3  # main.py, lib/tool.sh, node_modules/a/index.js
    words = ["submit", "folder", "--exclude", "node_modules", "--json"]
    less = belljar(*words, data_dir=data_dir, cwd=tmp_path)
    assert json.loads(less.stdout)["script_id"] != here.id


def test_an_archive_of_a_folder_is_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    archives = [tmp_path / "1.tar.gz", tmp_path / "2.tar.gz"]
    for archive in archives:
        with archive.open("wb") as out:
            pack_folder(folder, out, Selection())
        for path in folder.rglob("*.*"):
            if not path.is_symlink():
                path.touch()
    assert archives[0].read_bytes() == archives[1].read_bytes()
    with tarfile.open(archives[0]) as packed:
        members = {member.name: (member.mode, member.uid, member.mtime) for member in packed}
    assert members["lib/tool.sh"] == (0o755, 0, 0) and members["empty"][0] == 0o755
    assert not any(name.startswith((".git", ".venv", "env")) for name in members)


def test_a_link_that_leads_out_is_refused_before_the_upload(server: Server, data_dir: Path, folder: Path) -> None:
    for target in ("/etc/passwd", "../../etc/passwd"):
        (folder / "lib/out").symlink_to(target)
        text = complaint(belljar("submit", str(folder), "--exclude", "env", data_dir=data_dir), 1)
        assert "'lib/out'" in text and "--exclude" in text
        (folder / "lib/out").unlink()


def test_the_language_may_be_written_in_capitals(server: Server, data_dir: Path, script: Path) -> None:
    job = parsed(belljar("submit", str(script), "--language", "PYTHON", "--json", data_dir=data_dir))
    assert job["entrypoint"] == "main.py"
