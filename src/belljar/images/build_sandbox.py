"""Run build commands in namespaces of their own, so that nothing of them outlives belljar.

A command's processes are in a pid namespace, whose first process the kernel kills when belljar dies, even by SIGKILL.
Its mounts are in a mount namespace and end with it. For an ordinary user there is a user namespace too, in which the
user is root and the subordinate ids (subuid(5)) are the other users; there root may enter all of the user's folders.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from belljar.images.host_tools import require_tools
from belljar.model.errors import HostError
from belljar.system.executables import search_path

_NAMESPACES = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child=KILL")
_USER_NAMESPACE = ("--user", "--map-root-user", "--map-auto")
#: The first process of a pid namespace adopts orphans; a shell reaps them, few other programs do.
_SHELL = ("sh", "-c", '"$@"; exit $?', "sh")
_PROBE_SECONDS = 20
_REMOVE_SECONDS = 600
_REMOVE_TRIES = 20


def sandboxed_command(argv: Sequence[str]) -> list[str]:
    """Return the command in namespaces, for `run_tool`; unchanged where root cannot create namespaces.

    Raises MissingTool, and HostError for an ordinary user that cannot create a user namespace.
    """
    require_tools("unshare", argv[0])
    unshare = _namespaces()
    return [*unshare, "--", *_SHELL, *argv] if unshare else list(argv)


def as_root_command(argv: Sequence[str]) -> list[str]:
    """Return the command with root's rights over the files of this user and of its subordinate ids."""
    return list(argv) if os.geteuid() == 0 else ["unshare", *_USER_NAMESPACE, "--", *argv]


def remove_tree(folder: Path) -> None:
    """Remove a folder with files of several owners; retry, because a killed process may write a moment longer."""
    for _ in range(_REMOVE_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        if os.geteuid() != 0:
            # Files of subordinate ids can only be removed in their user namespace.
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                _run(as_root_command(["rm", "-rf", str(folder)]), _REMOVE_SECONDS)
        time.sleep(0.1)


def _namespaces() -> tuple[str, ...]:
    unshare = (*_NAMESPACES, *(() if os.geteuid() == 0 else _USER_NAMESPACE))
    reason = _probe_error(unshare)
    if reason is None:
        return unshare
    if os.geteuid() == 0:
        return ()
    raise HostError(
        f"images are built in a user namespace, which this user cannot create ({reason[:200]}); as root: "
        "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=65536, or build as root"
    )


@functools.cache
def _probe_error(unshare: tuple[str, ...]) -> str | None:
    """Return why these namespaces cannot be created here, None when they can."""
    try:
        probe = _run([*unshare, "--", "true"], _PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    lines = probe.stderr.decode(errors="replace").strip().splitlines()
    return None if probe.returncode == 0 else (lines[-1] if lines else f"exit {probe.returncode}")


def _run(argv: Sequence[str], seconds: float) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PATH": search_path()}
    return subprocess.run(argv, capture_output=True, timeout=seconds, env=environment, stdin=subprocess.DEVNULL)
