"""Fetch Python packages for an image with this host's pip and its settings.

Only wheels are installed, so no code of a package runs on the host.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from email.parser import HeaderParser
from pathlib import Path

from belljar.images.host_tools import run_tool
from belljar.model.errors import ImageBuildError

_TIMEOUT_SECONDS = 900
#: glibc of Debian 12, which runs wheels for it and for older versions.
_NEWEST_GLIBC_MINOR = 36
_OLD_NAMES = ("manylinux2014", "manylinux2010", "manylinux1", "linux")


async def fetch_wheels(
    requirements: Sequence[str], *, python_version: str, architecture: str, folder: Path, log: Path
) -> dict[str, str]:
    """Install the requirements and their dependencies into `folder`, and return name → version of all.

    `python_version` is the image's, such as 3.11. Programs of packages are in `folder/bin`.

    Raises ImageBuildError when a package cannot be found, or has no wheel for this Python.
    """
    glibc = [f"manylinux_2_{minor}_{architecture}" for minor in range(_NEWEST_GLIBC_MINOR, 4, -1)]
    platforms = [*glibc, *(f"{name}_{architecture}" for name in _OLD_NAMES)]
    try:
        await run_tool(
            [
                sys.executable,
                "-P",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-input",
                "--no-compile",
                "--ignore-installed",
                "--only-binary=:all:",
                f"--python-version={python_version}",
                *(f"--platform={platform}" for platform in platforms),
                f"--target={folder}",
                *requirements,
            ],
            log=log,
            timeout_seconds=_TIMEOUT_SECONDS,
            cwd=folder.parent,
        )
    except ImageBuildError as error:
        raise ImageBuildError(f"pip could not install {', '.join(requirements)}: {error.message}") from None
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    _set_interpreter(folder / "bin")
    return installed_wheels(folder)


def installed_wheels(folder: Path) -> dict[str, str]:
    """Return the distributions in a folder of Python modules, name → version."""
    packages = {}
    for metadata in sorted(folder.glob("*.dist-info/METADATA")):
        fields = HeaderParser().parsestr(metadata.read_text(errors="replace"), headersonly=True)
        name, version = fields.get("Name"), fields.get("Version")
        if name and version:
            packages[re.sub(r"[-_.]+", "-", name).lower()] = version
    return packages


def _set_interpreter(folder: Path) -> None:
    """Make the packages' programs start the image's Python instead of this host's."""
    for path in folder.glob("*") if folder.is_dir() else ():
        data = path.read_bytes()
        line, newline, rest = data.partition(b"\n")
        if line.startswith(b"#!") and b"python" in line:
            path.write_bytes(b"#!/usr/bin/python3" + newline + rest)
            path.chmod(0o755)
