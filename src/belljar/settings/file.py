"""Which `belljar.toml` is read, and reading it.

A settings file decides which programs run on this host and where keys are sent. So it is never read from the working
folder, which may be another person's repository, and it is refused if another user could have written it.
"""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path
from typing import Any

from belljar.data_dir import DataDir
from belljar.model.errors import InvalidOption
from belljar.system.ownership import why_file_unsafe, why_unsafe

NAME = "belljar.toml"
SYSTEM_FOLDER = Path("/etc/belljar")
_MAX_BYTES = 256 * 1024
#: Settings that hold a path, with the prefix of the path. A relative one in a file would depend on the working folder.
_PATH_PREFIXES = {"data_dir": "", "package_ca_file": "", "database_url": "sqlite:///", "blobs_url": "file://"}


def user_folder(variable: str, default: str) -> Path:
    """Return a folder of the user by the XDG Base Directory Specification, which says to ignore relative paths.

    `default` is relative to the home folder. Raises InvalidOption for a user without one.
    """
    folder = Path(os.environ.get(variable) or ".")
    if folder.is_absolute():
        return folder
    home = Path(os.environ.get("HOME") or ".")
    if not home.is_absolute():
        try:
            home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
        except KeyError:
            raise InvalidOption("this user has no home folder; set HOME, or --data-dir", option="data_dir") from None
    return home / default


def find_settings_file(config: Path | None, data_dir: Path) -> Path | None:
    """Return the settings file that was named, else the first in the data folder, the user's folder, the system's.

    Raises InvalidOption when the named file does not exist.
    """
    named = config or os.environ.get("BELLJAR_CONFIG")
    if named:
        path = Path(named).expanduser()
        if not path.exists():
            raise InvalidOption(f"there is no settings file {path}; see docs/settings.md", option="config")
        return path
    user = user_folder("XDG_CONFIG_HOME", ".config") / "belljar"
    paths = (DataDir(data_dir.expanduser()).settings_file, user / NAME, SYSTEM_FOLDER / NAME)
    return next((path for path in paths if _exists(path)), None)


def _exists(path: Path) -> bool:
    """Return whether the path names something; a path that cannot be checked fails later, when it is read."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        # A folder that this user may not enter holds no settings for this user.
        return not isinstance(error, PermissionError)
    return True


def read_settings_file(path: Path) -> dict[str, Any]:
    """Return the values in the file, by setting. Raises InvalidOption for a file that cannot be read or is not safe."""
    import tomllib  # here, because most commands have no settings file, and it takes milliseconds to load

    try:
        text = _read(path)
        values = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # no permission, not UTF-8, not TOML
        reason = getattr(error, "strerror", None) or str(error) or "nested too deeply"
        raise InvalidOption(f"{path} cannot be read: {reason}; see docs/settings.md", option="settings") from None
    for name, prefix in _PATH_PREFIXES.items():
        value = values.get(name)
        if not isinstance(value, str) or not value.startswith(prefix):
            continue
        if not value.removeprefix(prefix).startswith(("/", "~")):
            raise InvalidOption(
                f"invalid setting {name}: {value[:80]!r} in {path} depends on the working folder; "
                "give an absolute path",
                option=name,
            )
    return values


def _read(path: Path) -> str:
    absolute = path.absolute()
    reason = why_unsafe(absolute)
    if reason is not None:
        raise _refused(path, reason)
    descriptor = os.open(absolute.resolve(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - of a descriptor
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _refused(path, "it is not a regular file")
        reason = why_file_unsafe(path, status)
        if reason is not None:
            raise _refused(path, reason)
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise _refused(path, f"it is larger than {_MAX_BYTES // 1024} KB")
    return data.decode()


def _refused(path: Path, reason: str) -> InvalidOption:
    return InvalidOption(
        f"{path} is not used: {reason}. A settings file decides which programs run on this host, so only you and root "
        "may have write access",
        option="settings",
    )
