"""The prefork programs: interpreters' own scripts that wait in a machine to become the job's.

Data for the initramfs, where the agent finds them by name; a language in an image's manifest names one. Interpreters
that load a file only under a name of their kind find it in the image's root file system too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files

#: Where a prefork program finds its own text (PROGRAM_FD in agent/agent.h).
_DESCRIPTOR = "/proc/self/fd/4"
#: One more argument, to make room for the command line of a script that takes the program's place.
_ROOM = "." * 2048
#: Where a root file system has those that are loaded by name.
_FOLDER = "/usr/lib/belljar/prefork"
#: What a fresh interpreter reads from its environment when it starts, where its program cannot execute one instead.
_READ_AT_START = {"node": re.compile(r"HOME\Z|LANG|LC_|LD_|MALLOC_|GLIBC_|NODE_|UV_|OPENSSL|SSL_|ICU")}
#: Memory in MiB of a machine that such a process may wait in; one takes some 20 MB, and there are two.
_MIN_MB = {"node": 192, "ruby": 96}
_ENDINGS = {"node": ".js", "ruby": ".rb"}


def prefork_programs() -> dict[str, bytes]:
    """Every program's text by its name, sorted."""
    folder = files("belljar.images") / "prefork"
    return {entry.name: entry.read_bytes() for entry in sorted(folder.iterdir(), key=lambda each: each.name)}


def programs_in_root(names: Iterable[str | None]) -> dict[str, bytes]:
    """Path and text of what a root file system must have for these prefork programs; unknown names have none."""
    programs = prefork_programs()
    return {
        f"{_FOLDER}/{name}{_ENDINGS[name]}": programs[name]
        for name in sorted({name for name in names if name in _ENDINGS})
    }


def lies_in_root(name: str | None) -> bool:
    """Whether that program must be in the image's root file system too, which is so in images of recipes."""
    return name in _ENDINGS


def has_room(name: str, memory_mb: int) -> bool:
    """Whether a machine of so much memory is large enough for that program to wait in it."""
    return memory_mb >= _MIN_MB.get(name, 0)


def can_become(name: str, changed: Iterable[str]) -> bool:
    """Whether that program can become a script's interpreter with these environment variables not as it had them."""
    read_at_start = _READ_AT_START.get(name)
    return read_at_start is None or not any(map(read_at_start.match, changed))


def waiting_command(name: str, run: Sequence[str], *, folder: str = _FOLDER) -> list[str]:
    """The command that starts a prefork program, which waits to become `run` with a script for its `{entrypoint}`."""
    options, place = [], _DESCRIPTOR
    if name == "node":
        options, place = ["-r", f"{folder}/node.js"], "waiting"
    elif name == "ruby":
        # A name that is longer than any script's, whose place in memory the script's takes.
        options, place = [f"-r{folder}/ruby", "-rbelljar"], f"/proc/self/fd/{'./' * 1024}4"
    return [run[0], *options, *(place if word == "{entrypoint}" else word for word in run[1:]), _ROOM]
