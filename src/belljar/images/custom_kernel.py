"""A kernel for machines and nothing else: Debian's source, belljar's configuration, this host's compiler.

Everything that a machine needs is built in, so there is no module to load; what no machine has is left out, so there is
less to boot, and less that a guest can reach.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from importlib.resources import files
from pathlib import Path

from belljar.images.contained import contained
from belljar.images.progress import Progress
from belljar.images.tool import call
from belljar.model.errors import ImageBuildError, MissingTool

#: The package that depends on the source of a Debian release's kernel.
SOURCE_PACKAGE = "linux-source"
SOURCE_PATTERN = r"linux-source-\d[\d.]*"
#: What the kernel's own build calls, and a header that one of its programs (objtool) is compiled with.
_PROGRAMS = ("bc", "bison", "flex", "gcc", "ld", "make", "strip", "tar", "xz")
_HEADERS = ("gelf.h", "stdio.h")
_PACKAGES = "bc binutils bison flex gcc libc6-dev libelf-dev make tar xz-utils"
_UNPACK_SECONDS = 600
_CONFIGURE_SECONDS = 300
_COMPILE_SECONDS = 7200
#: The same source, configuration and compiler give the same bytes, whoever compiles them and when.
_NOBODY = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "belljar",
    "KBUILD_BUILD_HOST": "belljar",
    "KBUILD_BUILD_VERSION": "1",
}


def configuration() -> str:
    """The options that differ from `make allnoconfig`."""
    return (files("belljar.images") / "kernel.config").read_text()


def configuration_digest() -> str:
    """Changes when a kernel of the same source would be another one."""
    return hashlib.sha256(configuration().encode()).hexdigest()


def kernel_origin(version: str) -> str:
    """Where such a kernel comes from, for people: the version of its source, the digest of its configuration."""
    return f"Debian linux-source {version}, configured by belljar ({configuration_digest()[:12]})"


def need_compiler(path: str | None = None, include: Path = Path("/usr/include")) -> None:
    """Raises MissingTool, with everything that a kernel is compiled with, unless all of it is installed."""
    missing = [program for program in _PROGRAMS if not shutil.which(program, path=path)]
    missing += [header for header in _HEADERS if not (include / header).exists()]
    if missing:
        raise MissingTool(f"compiling a kernel needs {', '.join(missing)}; install with: apt-get install {_PACKAGES}")


def options(text: str) -> dict[str, str]:
    """The options in a kernel's configuration, name → value; one that is off has the value n."""
    found = {}
    for line in text.splitlines():
        if line.startswith("CONFIG_"):
            name, _, value = line.partition("=")
            found[name] = value
        elif line.startswith("# CONFIG_") and line.endswith(" is not set"):
            found[line.split()[1]] = "n"
    return found


def lost_options(wanted: str, made: str) -> list[str]:
    """What a configuration wants and the one that was made of it does not have: renamed, or in need of another."""
    have = options(made)
    return [f"{name}={value}" for name, value in options(wanted).items() if have.get(name, "n") != value]


async def compile_kernel(deb: Path, out: Path, work: Path, log: Path, progress: Progress) -> None:
    """Compile the source in a package of linux-source into the ELF file `out`; `work` is an empty folder.

    Raises MissingTool, DiskFull, and ImageBuildError for a source that the configuration does not fit.
    """
    need_compiler()
    progress.step("unpacking the kernel's source")
    await call(["dpkg-deb", "-x", str(deb), str(work / "deb")], log=log, timeout_seconds=_UNPACK_SECONDS)
    tree = await _unpack(work, log)
    await _configure(tree, work, log)
    processors = len(os.sched_getaffinity(0))
    progress.step(f"compiling the kernel: 8 minutes of processor time or so, on up to {processors} at once")
    make = ["make", f"-j{processors}", "vmlinux"]
    command = contained(make)
    await call(command, name="make", log=log, timeout_seconds=_COMPILE_SECONDS, cwd=tree, env=_NOBODY, own_output=log)
    # Its symbols are for debuggers; a loader reads past them.
    strip = ["strip", "--strip-all", "-o", str(out), str(tree / "vmlinux")]
    await call(strip, log=log, timeout_seconds=_CONFIGURE_SECONDS)


async def _unpack(work: Path, log: Path) -> Path:
    archives = sorted((work / "deb/usr/src").glob("linux-source-*.tar.xz"))
    if len(archives) != 1:
        raise ImageBuildError(
            f"the package of the kernel's source holds {len(archives)} archives where one was expected"
        )
    tree = work / "source"
    tree.mkdir()
    unpack = ["tar", "-xJf", str(archives[0]), "-C", str(tree), "--strip-components=1", "--no-same-owner"]
    await call(unpack, log=log, timeout_seconds=_UNPACK_SECONDS)
    shutil.rmtree(work / "deb")
    return tree


async def _configure(tree: Path, work: Path, log: Path) -> None:
    wanted = work / "wanted.config"
    wanted.write_text(configuration())
    env = {**_NOBODY, "KCONFIG_ALLCONFIG": str(wanted)}
    await call(["make", "allnoconfig"], log=log, timeout_seconds=_CONFIGURE_SECONDS, cwd=tree, env=env, own_output=log)
    lost = lost_options(configuration(), (tree / ".config").read_text())
    if lost:
        raise ImageBuildError(f"this kernel's source does not take {', '.join(lost)}; build with --kernel stock")
