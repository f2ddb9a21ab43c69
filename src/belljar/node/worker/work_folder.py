"""Temporary folders of runs without a server. A lock marks the folder of each living run, so others can be removed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from belljar.data_dir import DataDir, data_folder_error, private_folder
from belljar.system.temp_folders import remove_abandoned, temp_folder


@contextlib.contextmanager
def work_folder(data_dir: Path) -> Iterator[Path]:
    """Yield a folder for one run, and remove it, and the folders of killed runs. Raises DataFolderError, DiskFull."""
    root = DataDir(data_dir).local_runs
    private_folder(root)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(temp_folder(root))
        except OSError as error:
            raise data_folder_error(root, error) from error
        yield folder


def clear_work_folders(data_dir: Path) -> None:
    """Remove the folders of killed runs."""
    remove_abandoned(DataDir(data_dir).local_runs)
