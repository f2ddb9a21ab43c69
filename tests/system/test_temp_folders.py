"""Temporary folders and what becomes of them when their owner is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from belljar.system.temp_folders import remove_abandoned, temp_folder

_HOLD = """
import sys, time
from pathlib import Path
from belljar.system.temp_folders import temp_folder
with temp_folder(Path(sys.argv[1])) as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def holder(root: Path) -> tuple[subprocess.Popen[str], Path]:
    process = subprocess.Popen([sys.executable, "-c", _HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_gone_with_its_block(tmp_path: Path) -> None:
    with temp_folder(tmp_path / "root") as folder:
        (folder / "file").write_text("x")
        assert folder.stat().st_mode & 0o777 == 0o700
    assert list((tmp_path / "root").iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    (killed, left), (alive, kept) = holder(tmp_path), holder(tmp_path)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.exists()
        with temp_folder(tmp_path) as mine:
            assert sorted(tmp_path.iterdir()) == sorted([mine, kept])
    finally:
        alive.kill()
        alive.wait()
    assert remove_abandoned(tmp_path) == 1
    assert list(tmp_path.iterdir()) == []


def test_strange_things_are_removed_and_links_are_not_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    root.mkdir()
    elsewhere.mkdir()
    (elsewhere / "file").write_text("x")
    (root / "link").symlink_to(elsewhere)
    (root / "dangling").symlink_to("nowhere")
    (root / "file").write_text("x")
    (root / "tmpold").mkdir()
    assert remove_abandoned(root) == 4
    assert list(root.iterdir()) == []
    assert (elsewhere / "file").exists()
    assert remove_abandoned(tmp_path / "none") == 0
