"""What `belljar run` was asked for: the same for a machine here and for a server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from belljar.scripts.selection import Selection


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """What to run, and what becomes of it."""

    path: Path
    #: What the script is called, wherever its file lies.
    filename: str
    #: Options of the job, by their names in the API.
    options: dict[str, Any]
    #: Which files of a folder make the script.
    selection: Selection
    language: str | None
    entrypoint: str | None
    #: Where artifacts are kept; None: none are.
    artifacts_dir: Path | None
    as_json: bool
