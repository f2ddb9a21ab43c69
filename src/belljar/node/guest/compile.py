"""Compiles the agent: its C files into a static executable for each architecture, with the `ziglang` wheel's compiler.

The build hook and the tests call this; nothing at run time does. It imports nothing of belljar, so that it can be
loaded before belljar is installed. The same source and flags give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

TARGETS = {"x86_64": "x86_64-linux-musl", "aarch64": "aarch64-linux-musl"}
#: -O2 and not -Os: the latter copies and clears memory byte by byte, which under emulation is most of what it does.
FLAGS = ("-std=c11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wl,--build-id=none")
#: zig builds musl on first use.
TIMEOUT_SECONDS = 600


def sources_of(folder: Path) -> list[Path]:
    """Return the C files and headers of the agent, sorted: the order decides the executable's bytes."""
    return sorted([*folder.glob("*.c"), *folder.glob("*.h")])


def compile_agent(folder: Path, architecture: str, out: Path) -> None:
    """Compile the C files in `folder` for an architecture of TARGETS into the executable `out`.

    Raises subprocess.CalledProcessError when the compiler refuses, with its words on stderr.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_suffix(f".{os.getpid()}")
    command = [sys.executable, "-P", "-m", "ziglang", "cc", "-target", TARGETS[architecture], *FLAGS]
    command += [f"-ffile-prefix-map={folder}=.", "-o", str(partial)]
    command += [str(source) for source in sources_of(folder) if source.suffix == ".c"]
    try:
        subprocess.run(command, check=True, timeout=TIMEOUT_SECONDS)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def stamp_of(folder: Path) -> str:
    """Return what decides whether the binaries are still those of these sources: names, bytes and the flags."""
    digest = hashlib.sha256("\0".join(FLAGS).encode())
    for source in sources_of(folder):
        digest.update(source.name.encode() + b"\0" + hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def compile_all(sources: Path, folder: Path, say: Callable[[str], object]) -> list[Path]:
    """Compile for every architecture what is not in `folder` already; returns the executables."""
    stamp, binaries = folder / "stamp", [folder / f"agent-{architecture}" for architecture in TARGETS]
    wanted = stamp_of(sources)
    if stamp.exists() and stamp.read_text() == wanted and all(binary.exists() for binary in binaries):
        return binaries
    for architecture, binary in zip(TARGETS, binaries, strict=True):
        say(f"compiling the agent for {architecture}")
        compile_agent(sources, architecture, binary)
    stamp.write_text(wanted)
    return binaries
