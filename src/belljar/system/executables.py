"""Programs of this host: where they are looked for.

Never in the working folder, which may be anybody's: parts of PATH that are empty, `.` or relative are left out. Always
in the system's folders too, which the PATH of an ordinary user lacks on Debian (mkfs.ext4 is there).
"""

from __future__ import annotations

import os
import shutil

#: In which distributions keep programs for administrators, hierarchy of hier(7).
_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def search_path() -> str:
    """PATH as belljar uses it, for itself and for the programs that it starts."""
    given = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder.startswith("/")]
    return os.pathsep.join(dict.fromkeys((*given, *_SYSTEM_FOLDERS)))


def find_executable(name: str) -> str | None:
    """The absolute path of a program by its name or absolute path; None when there is none that can be executed."""
    if "/" in name and not name.startswith("/"):
        return None
    return shutil.which(name, path=search_path())


def use_safe_search_path() -> None:
    """Make PATH of this process and its children `search_path`: for the start of a command."""
    os.environ["PATH"] = search_path()
