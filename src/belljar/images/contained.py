"""Commands that end with whoever started them, and with root's rights over files where a user has no root.

A command's processes are in a pid namespace whose first process the kernel kills when belljar dies, even by SIGKILL;
its mounts are in a mount namespace, and are gone with it. An ordinary user's command is in a user namespace besides,
in which that user is root and the user's range of subordinate ids (subuid(5)) are all others: what lies in the user's
own folders, however closed they are, is root's own there.
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

from belljar.images.tool import need
from belljar.model.errors import HostError
from belljar.system.executables import search_path

_NAMESPACES = ("unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child=KILL")
_USER = ("--user", "--map-root-user", "--map-auto")
#: The first process of a pid namespace adopts orphans; a shell reaps them, few other programs do.
_SHELL = ("sh", "-c", '"$@"; exit $?', "sh")
_PROBE_SECONDS = 20
_REMOVE_SECONDS = 600
_REMOVE_TRIES = 20


def contained(argv: Sequence[str]) -> list[str]:
    """The command with what contains it, for `tool.call`. Where root may make no namespaces, it is the command alone.

    Raises HostError for an ordinary user who may make no user namespace.
    """
    need("unshare", argv[0])
    words = _namespaces()
    return [*words, "--", *_SHELL, *argv] if words else list(argv)


def as_root(argv: Sequence[str]) -> list[str]:
    """The command with root's rights over files of this user's and of the user's subordinate ids."""
    return list(argv) if os.geteuid() == 0 else ["unshare", *_USER, "--", *argv]


def remove_tree(folder: Path) -> None:
    """Remove a folder with files of many owners, in which a process that was just killed may write a moment longer."""
    for _ in range(_REMOVE_TRIES):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        if os.geteuid() != 0:
            # Files of subordinate ids are ours in their namespace alone.
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                _run(as_root(["rm", "-rf", str(folder)]), _REMOVE_SECONDS)
        time.sleep(0.1)


def _namespaces() -> tuple[str, ...]:
    words = (*_NAMESPACES, *(() if os.geteuid() == 0 else _USER))
    reason = _refusal(words)
    if reason is None:
        return words
    if os.geteuid() == 0:
        return ()
    raise HostError(
        f"images are built in a user namespace, and this user may make none ({reason[:200]}); as root: "
        "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=65536, or build as root"
    )


@functools.cache
def _refusal(words: tuple[str, ...]) -> str | None:
    """Why these namespaces cannot be made here; None: they can."""
    try:
        done = _run([*words, "--", "true"], _PROBE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return None if done.returncode == 0 else (said[-1] if said else f"exit {done.returncode}")


def _run(argv: Sequence[str], seconds: float) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PATH": search_path()}
    return subprocess.run(argv, capture_output=True, timeout=seconds, env=environment, stdin=subprocess.DEVNULL)
