"""Compiles the BPF program with the `ziglang` wheel's compiler, which is clang with its BPF backend.

The build hook and the tests call this, nothing at run time. It must import nothing of belljar, so that the hook can
load it before belljar is installed. One object serves every architecture that stores numbers little-endian.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SOURCE = "flows.bpf.c"
OBJECT = "flows.bpf.o"
#: -g for the types of the maps, which libbpf reads; -mcpu=v3 is known to kernels since 5.12.
FLAGS = ("-std=gnu11", "-O2", "-g", "-mcpu=v3", "-Wall", "-Wextra", "-Wshadow", "-Werror")
NO_RUNTIME = ("-fno-sanitize=all", "-fno-stack-protector", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables")
TIMEOUT_SECONDS = 300


def compile_program(source: Path, out: Path) -> None:
    """Compile a BPF program into an object file.

    Raises subprocess.CalledProcessError with the compiler's messages on stderr, subprocess.TimeoutExpired.
    """
    partial = out.with_suffix(f".{os.getpid()}.o")
    command = [sys.executable, "-P", "-m", "ziglang", "cc", "-target", "bpfel-freestanding", *FLAGS, *NO_RUNTIME]
    for folder in ("any-linux-any", "x86-linux-any"):  # the kernel's stable headers, which have no code
        command += ["-isystem", str(_zig_folder() / "lib" / "libc" / "include" / folder)]
    command += [f"-ffile-prefix-map={source.parent}=.", "-c", "-o", str(partial), str(source)]
    try:
        subprocess.run(command, check=True, timeout=TIMEOUT_SECONDS)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def compile_if_stale(folder: Path, report: Callable[[str], object]) -> Path:
    """Compile unless `folder` has a current object; return its path."""
    out, stamp = folder / OBJECT, folder / "stamp"
    current = hashlib.sha256(b"\0".join([*map(str.encode, (*FLAGS, *NO_RUNTIME)), (folder / SOURCE).read_bytes()]))
    if not (out.exists() and stamp.exists() and stamp.read_text() == current.hexdigest()):
        report("compiling the BPF program")
        compile_program(folder / SOURCE, out)
        stamp.write_text(current.hexdigest())
    return out


def _zig_folder() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("ziglang is not installed; install belljar's build requirements")
    return Path(spec.origin).parent
