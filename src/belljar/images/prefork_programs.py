"""The prefork programs: scripts that start an interpreter in a machine, where it waits for a job's script.

They are files of the initramfs, where the agent finds them by name; a language in an image's manifest names one. Some
interpreters load a file only by a name with their extension, so their program is in the root filesystem too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib.resources import files

#: The path of a prefork program's own text (PROGRAM_FD in agent/agent.h).
_DESCRIPTOR = "/proc/self/fd/4"
#: An extra argument that reserves memory for the command line of the script that replaces the program.
_PADDING = "." * 2048
#: The folder in the root filesystem with the programs that are loaded by name.
_FOLDER = "/usr/lib/belljar/prefork"
#: Environment variables that an interpreter reads only when it starts; with others the waiting one can be used.
_READ_AT_START = {"node": re.compile(r"HOME\Z|LANG|LC_|LD_|MALLOC_|GLIBC_|NODE_|UV_|OPENSSL|SSL_|ICU")}
#: Memory in MiB of the smallest machine for a waiting interpreter; each takes some 20 MB, and there are two.
_MIN_MB = {"node": 192, "ruby": 96}
_EXTENSIONS = {"node": ".js", "ruby": ".rb"}


def prefork_programs() -> dict[str, bytes]:
    """Return all programs, name → text, sorted."""
    folder = files("belljar.images") / "prefork"
    return {entry.name: entry.read_bytes() for entry in sorted(folder.iterdir(), key=lambda each: each.name)}


def rootfs_programs(names: Iterable[str | None]) -> dict[str, bytes]:
    """Return the files, path → text, that a root filesystem needs for these prefork programs; most need none."""
    programs = prefork_programs()
    return {
        f"{_FOLDER}/{name}{_EXTENSIONS[name]}": programs[name]
        for name in sorted({name for name in names if name in _EXTENSIONS})
    }


def needs_file_in_rootfs(name: str | None) -> bool:
    """Return whether the program must be in the root filesystem too; images of recipes have it there."""
    return name in _EXTENSIONS


def has_memory_for(name: str, memory_mb: int) -> bool:
    """Return whether a machine of so many MiB has enough memory for the waiting program."""
    return memory_mb >= _MIN_MB.get(name, 0)


def supports_env(name: str, changed: Iterable[str]) -> bool:
    """Return whether the waiting program can run a script with these environment variables changed since its start."""
    read_at_start = _READ_AT_START.get(name)
    return read_at_start is None or not any(map(read_at_start.match, changed))


def prefork_command(name: str, run: Sequence[str], *, folder: str = _FOLDER) -> list[str]:
    """Return the command that starts a prefork program, which waits for a script to run as `run` would.

    `folder` is the folder in the machine with the programs that are loaded by name.
    """
    options, script = [], _DESCRIPTOR
    if name == "node":
        options, script = ["-r", f"{folder}/node.js"], "waiting"
    elif name == "ruby":
        # The script's name overwrites this one in memory, so this one must be longer than any.
        options, script = [f"-r{folder}/ruby", "-rbelljar"], f"/proc/self/fd/{'./' * 1024}4"
    return [run[0], *options, *(script if argument == "{entrypoint}" else argument for argument in run[1:]), _PADDING]
