"""The request of `belljar run`, the same for a machine of this host and for a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from belljar.scripts.selection import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """What to run and what to keep of it."""

    path: Path
    #: The script's file name, independent of its path.
    filename: str
    #: Options of the job, by their names in the API.
    options: dict[str, Any]
    #: Which files of a folder make the script.
    selection: Selection
    language: str | None
    entrypoint: str | None
    #: Folder for artifacts; None: keep none.
    artifacts_dir: Path | None
    as_json: bool
