"""Compiles the agent's C files into a static executable for each architecture, with the `ziglang` wheel's compiler.

The build hook and the tests call this, nothing at run time. It must import nothing of belljar, so that the hook can
load it before belljar is installed. The same source and flags give the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

TARGETS = {"x86_64": "x86_64-linux-musl", "aarch64": "aarch64-linux-musl"}
#: -O2 rather than -Os, which copies and clears memory byte by byte: under emulation that dominates the run time.
FLAGS = ("-std=c11", "-O2", "-static", "-s", "-Wall", "-Wextra", "-Wshadow", "-Werror", "-Wl,--build-id=none")
#: Seconds for one compilation; zig builds musl on first use.
TIMEOUT_SECONDS = 600


def sources_of(folder: Path) -> list[Path]:
    """Return the C files and headers of the agent, sorted: the order decides the executable's bytes."""
    return sorted([*folder.glob("*.c"), *folder.glob("*.h")])


def compile_agent(folder: Path, architecture: str, out: Path) -> None:
    """Compile the C files in `folder` for an architecture of TARGETS into the executable `out`.

    Raises subprocess.CalledProcessError when compilation fails, with the compiler's messages on stderr, and
    subprocess.TimeoutExpired.
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
    """Return a digest of the sources' names and bytes and of the flags; binaries with another digest are stale."""
    digest = hashlib.sha256("\0".join(FLAGS).encode())
    for source in sources_of(folder):
        digest.update(source.name.encode() + b"\0" + hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def compile_all(sources: Path, folder: Path, report: Callable[[str], object]) -> list[Path]:
    """Compile for every architecture unless `folder` has current binaries; return the executables."""
    stamp, binaries = folder / "stamp", [folder / f"agent-{architecture}" for architecture in TARGETS]
    current = stamp_of(sources)
    if stamp.exists() and stamp.read_text() == current and all(binary.exists() for binary in binaries):
        return binaries
    for architecture, binary in zip(TARGETS, binaries, strict=True):
        report(f"compiling the agent for {architecture}")
        compile_agent(sources, architecture, binary)
    stamp.write_text(current)
    return binaries
