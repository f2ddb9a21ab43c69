"""`belljar run` in real machines: as if the script ran in this terminal; for root and for an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from belljar.images.catalog import Images
from support.command import ORDINARY, belljar

pytestmark = pytest.mark.vm

SCRIPT = """
echo "$1|$MODE|$(cat)"
echo oops >&2
mkdir out
echo kept >out/a.txt
echo more >b.txt
exit 3
"""


def test_a_script_has_its_words_and_its_exit_code(data_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "main.sh").write_text(SCRIPT)
    (tmp_path / "input").write_text("from a file")
    words = ["--env", "MODE=fast", "--stdin", "input", "--artifacts", "kept", "--artifact", "out/*", "--", "a b"]
    result = belljar("run", "main.sh", *words, data_dir=data_dir, cwd=tmp_path, timeout=300)
    assert (result.stdout, result.stderr, result.returncode) == (b"a b|fast|from a file\n", b"oops\n", 3)
    kept = [str(path.relative_to(tmp_path / "kept")) for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert kept == ["out/a.txt"]
    assert [path for path in (data_dir / "run").rglob("*") if path.is_file()] == []


def test_a_script_whose_time_is_up_is_124_and_json_is_alone_on_stdout(data_dir: Path) -> None:
    words = ["run", "-", "--language", "shell", "--timeout", "5", "--json"]
    result = belljar(*words, data_dir=data_dir, stdin=b"echo begun; sleep 100", timeout=300)
    job = json.loads(result.stdout)
    assert (result.returncode, job["status"], job["error"]["code"]) == (124, "timed_out", "timed_out")
    lines = result.stderr.decode().splitlines()
    assert lines[0] == "begun" and lines[1].startswith("belljar: ") and len(lines) == 2


@pytest.mark.root
def test_an_ordinary_user_runs_jobs_in_a_folder_of_its_own(
    built_images: Path, everybodys: Path, ordinary: list[str]
) -> None:
    data_dir = everybodys / "data"
    source = Images(built_images)
    image = source.get("python")
    (data_dir / "images/parts").mkdir(parents=True)
    shutil.copy(source.folder / "python.json", data_dir / "images")
    for part in (image.kernel, image.initramfs, image.root):
        shutil.copy(part, data_dir / "images/parts")
    for path in (data_dir, *data_dir.rglob("*")):
        os.chown(path, ORDINARY, ORDINARY)
    words = ["run", "-", "--language", "shell", "--disk", "64"]
    result = belljar(
        *words,
        data_dir=data_dir,
        before=ordinary,
        stdin=b"id -u; uname -n; exit 7",
        timeout=300,
        BELLJAR_ACCELERATOR="tcg",
    )
    assert result.stdout, result.stderr
    uid, host = result.stdout.split()
    assert (uid, host[:8], result.stderr, result.returncode) == (b"1000", b"belljar-", b"", 7)
    assert [path for path in (data_dir / "run").rglob("*") if path.is_file()] == []
