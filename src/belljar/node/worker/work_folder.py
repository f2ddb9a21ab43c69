"""Folders of runs without a server. Each is owned while its run lives, so that those of killed runs are told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from belljar.data_dir import DataDir, private_folder
from belljar.model.errors import DataFolderError
from belljar.system.temp_folders import remove_abandoned, temp_folder


@contextlib.contextmanager
def work_folder(data_dir: Path) -> Iterator[Path]:
    """A folder for one run, gone with its block; removes what killed runs left. Raises DataFolderError, DiskFull."""
    root = DataDir(data_dir).local_runs
    private_folder(root)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(temp_folder(root))
        except OSError as error:
            raise DataFolderError(f"cannot write {root}: {error.strerror}; set --data-dir to another folder") from error
        yield folder


def clear_work_folders(data_dir: Path) -> None:
    """Remove the folders of runs that are no more."""
    remove_abandoned(DataDir(data_dir).local_runs)
