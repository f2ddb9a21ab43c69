"""The search path for programs of this host.

It never contains the working folder, where another person may have put files: empty, `.` and relative parts of PATH are
left out. It always contains the system's folders for administrators, which the PATH of an ordinary user on Debian lacks
(mkfs.ext4 is there).
"""

from __future__ import annotations

import os
import shutil

#: Where distributions keep programs for administrators (hier(7)).
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """Return PATH as belljar uses it, for itself and for the programs that it starts."""
    folders = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder.startswith("/")]
    return os.pathsep.join(dict.fromkeys((*folders, *_SYSTEM_FOLDERS)))


def find_executable(name: str) -> str | None:
    """Return the absolute path of a program, by its name or absolute path; None when there is no such executable."""
    if "/" in name and not name.startswith("/"):
        return None
    return shutil.which(name, path=search_path())


def use_safe_search_path() -> None:
    """Set PATH of this process and its children to `search_path`; call it when a command starts."""
    os.environ["PATH"] = search_path()
