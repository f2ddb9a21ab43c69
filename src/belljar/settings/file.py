"""Which `belljar.toml` is read, and reading it.

A file decides which programs run on this host and where keys are sent. So it is never taken from the working folder,
which may be anybody's repository, and it is refused when somebody else could have written it.
"""

from __future__ import annotations

import os
import pwd
import stat
import tomllib
from pathlib import Path
from typing import Any

from belljar.model.errors import InvalidOption
from belljar.system.ownership import why_file_unsafe, why_unsafe

NAME = "belljar.toml"
SYSTEM_FOLDER = Path("/etc/belljar")
_MAX_BYTES = 256 * 1024
#: Settings that are paths, and what stands before them; relative ones in a file would depend on the working folder.
_PATHS = {"data_dir": "", "package_ca_file": "", "database_url": "sqlite:///", "blobs_url": "file://"}


def user_folder(variable: str, default: str) -> Path:
    """A folder of the user's by the XDG Base Directory Specification, which says to ignore relative paths."""
    chosen = Path(os.environ.get(variable) or ".")
    if chosen.is_absolute():
        return chosen
    home = Path(os.environ.get("HOME") or ".")
    if not home.is_absolute():
        try:
            home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
        except KeyError:
            raise InvalidOption("this user has no home folder; set HOME, or --data-dir", option="data_dir") from None
    return home / default


def find_settings_file(config: Path | None, data_dir: Path) -> Path | None:
    """The settings file: the one that is named, else the first there is in the data, user's and system's folders.

    Raises InvalidOption when a file was named that is not there.
    """
    named = config or os.environ.get("BELLJAR_CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.exists():
            raise InvalidOption(f"there is no settings file {path}; see docs/settings.md", option="config")
        return path
    user = user_folder("XDG_CONFIG_HOME", ".config") / "belljar"
    folders = (data_dir.expanduser(), user, SYSTEM_FOLDER)
    return next((folder / NAME for folder in folders if _is_there(folder / NAME)), None)


def _is_there(path: Path) -> bool:
    """Whether there is something of this name; what may not be looked at is an error later, not an absence."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        # A folder that is not ours to enter holds no settings of ours; the command says so when it needs the folder.
        return not isinstance(error, PermissionError)
    return True


def read_settings_file(path: Path) -> dict[str, Any]:
    """What the file sets, name → value. Raises InvalidOption for one that cannot be read or is not safe."""
    try:
        text = _read(path)
        found = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # not this user's to read, not UTF-8, not TOML
        reason = getattr(error, "strerror", None) or str(error) or "it is nested too deeply"
        raise InvalidOption(f"{path} cannot be read: {reason}; see docs/settings.md", option="settings") from None
    for name, scheme in _PATHS.items():
        value = found.get(name)
        if isinstance(value, str) and value.startswith(scheme):
            place = value.removeprefix(scheme)
            if not place.startswith(("/", "~")):
                raise InvalidOption(
                    f"the setting {name} is wrong: {value[:80]!r} in {path} would depend on the working folder; "
                    "give an absolute path",
                    option=name,
                )
    return found


def _read(path: Path) -> str:
    place = path.absolute()
    reason = why_unsafe(place)
    if reason is not None:
        raise _refused(path, reason)
    descriptor = os.open(place.resolve(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _refused(path, "it is no regular file")
        reason = why_file_unsafe(path, status)
        if reason is not None:
            raise _refused(path, reason)
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise _refused(path, f"it has over {_MAX_BYTES // 1024} KB")
    return data.decode()


def _refused(path: Path, reason: str) -> InvalidOption:
    return InvalidOption(
        f"{path} is not used: {reason}. A settings file decides which programs run here, so only you and root may be "
        "able to write it",
        option="settings",
    )
