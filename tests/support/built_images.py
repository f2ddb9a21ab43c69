"""The images that tests boot: built beside the first tests of a run, and kept for the next run.

Run as a program, it builds the images that it is given until its standard input ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from belljar.images.catalog import Images

#: In the order in which they are built: the first are needed by most tests.
IMAGES = ("python", "shell", "scripting", "native", "go", "java")
#: Then everything is built anew: Debian's packages have changed, and old ones would pile up.
_MAX_AGE_SECONDS = 7 * 24 * 3600
_BUILD_SECONDS = 900
_WAIT_SECONDS = 3600


def kept_folder() -> Path:
    """Return the folder that outlives a run: BELLJAR_TEST_IMAGES, or `belljar-tests` in the user's cache folder."""
    if chosen := os.environ.get("BELLJAR_TEST_IMAGES"):
        return Path(chosen).absolute()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "belljar-tests"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"belljar-tests-{os.getuid()}"
    return folder


class BuiltImages:
    """The images of one run, in a data folder that only this run uses.

    Builds share a data folder below `kept`, one at a time. What is built is linked into the run's own data folder. No
    later build and no other run changes that; it is removed when the last process of the run closes it.
    """

    def __init__(self, kept: Path, run: str) -> None:
        self._kept, self._run = kept, run
        self._build_folder = kept / "data"
        self._run_folder = kept / "runs" / run
        self.data_dir = self._run_folder / "data"
        self._builder: subprocess.Popen[bytes] | None = None
        with self._build_lock():
            self._remove_outdated()
            self.data_dir.mkdir(parents=True, exist_ok=True)
            self._in_use = (self._run_folder / "lock").open("w")
            fcntl.flock(self._in_use, fcntl.LOCK_SH)

    def _remove_outdated(self) -> None:
        """Remove what runs left that were killed, and what was built too long ago."""
        for lock in self._run_folder.parent.glob("*/lock"):
            if lock.parent != self._run_folder:
                _remove_unless_locked(lock)
        with contextlib.suppress(FileNotFoundError):
            if time.time() - (self._build_folder / "created").stat().st_mtime > _MAX_AGE_SECONDS:
                shutil.rmtree(self._build_folder)
        self._build_folder.mkdir(exist_ok=True)
        (self._build_folder / "created").open("a").close()

    def close(self) -> None:
        """Stop building; the last process of the run removes the run's folder."""
        if self._builder is not None and self._builder.stdin is not None:
            self._builder.stdin.close()
            self._builder.wait(60)
        self._in_use.close()
        with self._build_lock():
            _remove_unless_locked(self._run_folder / "lock")

    def build_in_background(self) -> None:
        """Build all images in a process of their own, unless another process of the run does so."""
        try:
            (self._run_folder / "builder").touch(exist_ok=False)
        except FileExistsError:
            return
        command = [sys.executable, str(Path(__file__)), str(self._kept), self._run]
        # Its output is in the log of each build.
        with (self._run_folder / "builder").open("wb") as output:
            self._builder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT)

    def need(self, *names: str) -> Path:
        """Return the run's data folder with those images; builds what has not been built yet."""
        for name in names:
            with self._build_lock(unless=lambda name=name: self._is_there(name)) as locked:
                if locked and not self._is_there(name):
                    self._build(name)
        return self.data_dir

    def _is_there(self, name: str) -> bool:
        return (self.data_dir / "images" / f"{name}.json").exists()

    def _build(self, name: str) -> None:
        """Build an image as a person would, and link it into the run's data folder."""
        command = [sys.executable, "-m", "belljar", "image", "build", name, "--data-dir", str(self._build_folder)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("BELLJAR_")}
        subprocess.run(command, check=True, timeout=_BUILD_SECONDS, env={**environment, "BELLJAR_SNAPSHOTS": "off"})
        image = Images(self._build_folder).get(name)
        target = Images(self.data_dir)
        target.blobs.folder.mkdir(parents=True, exist_ok=True)
        for part in (image.kernel, image.initramfs, image.root):
            with contextlib.suppress(FileExistsError):
                os.link(part, target.blobs.folder / part.name)
        target.register(image.manifest)

    def unpack(self, name: str) -> Path:
        """Return a folder with an image's root file system, unpacked once for the run."""
        image = Images(self.need(name)).get(name)
        folder = self._run_folder / "unpacked" / name
        folder.parent.mkdir(exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.exists():
                partial = folder.with_suffix(".partial")
                command = ["fsck.erofs", f"--extract={partial}", "--no-preserve", str(image.root)]
                subprocess.run(command, check=True, capture_output=True, timeout=240)
                partial.rename(folder)
        return folder

    def copy_with_build_cache(self, folder: Path) -> None:
        """Copy the images python and shell, and what builds fetched, into an empty data folder."""
        self.need("python", "shell")
        shutil.copytree(self.data_dir / "images", folder / "images", copy_function=link_or_copy)
        with self._build_lock():
            copy_build_cache(self._build_folder / "cache", folder / "cache")
        images = Images(folder)
        for image in images.list():
            if image.name not in ("python", "shell"):
                images.remove(image.name)
        images.collect(set())

    @contextlib.contextmanager
    def _build_lock(self, *, unless: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Hold the lock of everything that is kept; yields False as soon as it is not needed."""
        self._kept.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + _WAIT_SECONDS
        with (self._kept / "lock").open("w") as lock:
            while not unless():
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"another process has held {lock.name} for an hour") from None
                    time.sleep(0.1)
                else:
                    yield True
                    return
            yield False


def copy_build_cache(source: Path, target: Path) -> None:
    """Copy what builds fetched; the packages, which no build changes, are linked."""

    def copy(file: str, to: str) -> None:
        link_or_copy(file, to) if Path(file).suffix == ".deb" else shutil.copy2(file, to)

    shutil.copytree(source, target, symlinks=True, copy_function=copy)


def link_or_copy(source: str, target: str) -> None:
    """Link a file, or copy it to another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _remove_unless_locked(lock: Path) -> None:
    """Remove the folder of a lock file that no process holds."""
    with contextlib.suppress(FileNotFoundError, BlockingIOError), lock.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(lock.parent)


def _build_until_stopped(kept: Path, run: str) -> None:
    """Build every image in turn, and stop when the process that started this one goes."""
    images = BuiltImages(kept, run)

    def watch() -> None:
        sys.stdin.buffer.read()
        os.killpg(0, 15)

    os.setpgid(0, 0)
    threading.Thread(target=watch, daemon=True).start()
    images.need(*IMAGES)


if __name__ == "__main__":
    _build_until_stopped(Path(sys.argv[1]), sys.argv[2])
