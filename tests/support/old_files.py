"""Files that were last changed some days ago."""

from __future__ import annotations

import os
import time
from pathlib import Path


def old_file(path: Path, days: float, content: bytes = b"12345") -> Path:
    """Write a file that was last changed that many days ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    set_age(path, days)
    return path


def set_age(path: Path, days: float) -> None:
    """Set the time of the last change of a file or folder to that many days ago."""
    at = time.time() - days * 86_400
    os.utime(path, (at, at))
