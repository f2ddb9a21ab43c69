"""The state that the steps of one build share: its folder, log and progress, and Debian's archive, opened on demand."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from belljar.data_dir import DataDir, private_folder
from belljar.images.apt import DEBIAN_ARCHITECTURES, DebianArchive, open_debian_archive
from belljar.images.build_sandbox import remove_tree
from belljar.images.progress import Progress
from belljar.settings import Settings
from belljar.system.file_locks import wait_for_lock


@contextlib.contextmanager
def build_dir(data_dir: Path, progress: Progress) -> Iterator[Path]:
    """Yield an empty folder for a build, removed when the block ends; wait for another build of this data folder.

    The folder of a build that was killed is removed too. Raises OSError.
    """
    paths = DataDir(data_dir)
    cache = private_folder(paths.cache)
    with wait_for_lock(
        paths.build_lock, on_wait=lambda: progress.step("waiting for another build in this data folder to end")
    ):
        for stale in cache.glob("build-*"):
            remove_tree(stale)
        work = Path(tempfile.mkdtemp(prefix="build-", dir=cache))
        try:
            yield work
        finally:
            remove_tree(work)


class BuildContext:
    """One build's settings, architecture (as the kernel names it), work folder, log and progress.

    With `refresh` the build asks for newer packages instead of using parts from the cache.
    """

    def __init__(
        self, name: str, settings: Settings, architecture: str, work: Path, progress: Progress, *, refresh: bool
    ) -> None:
        self.settings = settings
        self.architecture = architecture
        self.work = work
        self.progress = progress
        self.refresh = refresh
        self.log = settings.paths.build_logs / f"image-{name}.log"
        self._archives: dict[str, DebianArchive] = {}

    async def debian_archive(self, suite: str | None = None) -> DebianArchive:
        """Return Debian's archive of a suite, by default that of the settings; the first call updates its lists.

        Raises HostError, ImageBuildError.
        """
        settings = self.settings
        suite = suite or settings.debian_suite
        if suite not in self._archives:
            archive = open_debian_archive(
                settings.paths.apt_cache,
                suite,
                DEBIAN_ARCHITECTURES[self.architecture],
                settings.debian_mirror,
                settings.debian_security_mirror,
                self.log,
            )
            self.progress.step(f"reading Debian's package lists ({suite})")
            await archive.update(force=self.refresh)
            self._archives[suite] = archive
        return self._archives[suite]
