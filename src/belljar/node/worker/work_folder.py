"""Temporary folders of runs without a server. A lock marks the folder of each living run, so others can be removed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from belljar.data_dir import DataDir, private_folder
from belljar.model.errors import DataFolderError
from belljar.system.temp_folders import clear_owned, owned_folder


@contextlib.contextmanager
def work_folder(data_dir: Path) -> Iterator[Path]:
    """Yield a folder for one run, and remove it, and the folders of killed runs. Raises DataFolderError, DiskFull."""
    root = DataDir(data_dir).local_runs
    private_folder(root)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(owned_folder(root))
        except OSError as error:
            raise DataFolderError(f"cannot write {root}: {error.strerror}; set --data-dir to another folder") from error
        yield folder


def clear_work_folders(data_dir: Path) -> None:
    """Remove the folders of killed runs."""
    clear_owned(DataDir(data_dir).local_runs)
