"""The custom kernel: Debian's source with belljar's configuration, compiled on this host for machines only.

Everything that a machine needs is built in, so no modules are loaded. Drivers and features that no machine has are not
compiled, so the kernel boots faster and offers a guest less attack surface.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from importlib.resources import files
from pathlib import Path

from belljar.images.build_context import BuildContext
from belljar.images.build_sandbox import sandboxed_command
from belljar.images.host_tools import run_tool
from belljar.images.kernel_options import lost_options
from belljar.images.progress import Progress
from belljar.model.errors import ImageBuildError, MissingTool
from belljar.model.image import Part

#: The package that depends on the source package of a Debian release's kernel.
_SOURCE_PACKAGE = "linux-source"
_SOURCE_DEPENDENCY = r"linux-source-\d[\d.]*"
#: Programs and headers that the kernel's build needs; gelf.h is for objtool.
_PROGRAMS = ("bc", "bison", "flex", "gcc", "ld", "make", "strip", "tar", "xz")
_HEADERS = ("gelf.h", "stdio.h")
_PACKAGES = "bc binutils bison flex gcc libc6-dev libelf-dev make tar xz-utils"
_UNPACK_SECONDS = 600
_CONFIGURE_SECONDS = 300
_COMPILE_SECONDS = 7200
#: With these, the same source, configuration and compiler give the same bytes for every user at any time.
_REPRODUCIBLE_ENV = {
    "KBUILD_BUILD_TIMESTAMP": "1970-01-01",
    "KBUILD_BUILD_USER": "belljar",
    "KBUILD_BUILD_HOST": "belljar",
    "KBUILD_BUILD_VERSION": "1",
}


def configuration() -> str:
    """Return the options that differ from `make allnoconfig`."""
    return (files("belljar.images") / "kernel.config").read_text()


def configuration_digest() -> str:
    """Return the sha256 of the configuration."""
    return hashlib.sha256(configuration().encode()).hexdigest()


def kernel_origin(version: str) -> str:
    """Return the origin of a kernel, for people: the version of its source, the digest of its configuration."""
    return f"Debian linux-source {version}, configured by belljar ({configuration_digest()[:12]})"


def require_compiler(path: str | None = None, include: Path = Path("/usr/include")) -> None:
    """Raise MissingTool with the packages to install unless everything for compiling a kernel is installed."""
    missing = [program for program in _PROGRAMS if not shutil.which(program, path=path)]
    missing += [header for header in _HEADERS if not (include / header).exists()]
    if missing:
        raise MissingTool(f"compiling a kernel needs {', '.join(missing)}; install with: apt-get install {_PACKAGES}")


class CustomKernel:
    """The compiled kernel of the newest source in the suite of the settings."""

    name = "custom"
    min_memory_mb = 64
    file_sha256: str | None = None

    def __init__(self, context: BuildContext) -> None:
        self._context = context

    async def prepare(self) -> None:
        """Do nothing: there is nothing to check before the source is fetched."""

    def inputs(self) -> list[str]:
        """Return Debian's suite, the architecture and the digest of the configuration."""
        return [self._context.settings.debian_suite, self._context.architecture, configuration_digest()]

    async def is_current(self, part: Part) -> bool:
        """Return whether Debian has no newer source. Raises HostError, ImageBuildError."""
        return part.origin == kernel_origin(await (await self._context.debian_archive()).version(await self._package()))

    async def build(self, out: Path) -> str:
        """Fetch the source and compile it. Raises MissingTool, DiskFull, ImageBuildError."""
        require_compiler()  # before anything is fetched
        context = self._context
        archive, package = await context.debian_archive(), await self._package()
        version = await archive.version(package)
        context.progress.step(f"fetching the kernel's source ({package} {version})")
        deb = await archive.download(package)
        work = context.work / "kernel-source.d"
        work.mkdir()
        await compile_kernel(deb, out, work, context.log, context.progress)
        shutil.rmtree(work)
        return kernel_origin(version)

    async def modules(self) -> None:
        """Return None: everything is built in."""

    def module_inputs(self) -> list[str]:
        """Return nothing: there are no modules."""
        return []

    async def _package(self) -> str:
        return await (await self._context.debian_archive()).dependency(_SOURCE_PACKAGE, _SOURCE_DEPENDENCY)


async def compile_kernel(deb: Path, out: Path, work: Path, log: Path, progress: Progress) -> None:
    """Compile the source in a linux-source package into the ELF file `out`; `work` is an empty folder.

    Raises MissingTool, DiskFull, and ImageBuildError, also for a source that does not support the configuration.
    """
    require_compiler()
    progress.step("unpacking the kernel's source")
    await run_tool(["dpkg-deb", "-x", str(deb), str(work / "deb")], log=log, timeout_seconds=_UNPACK_SECONDS)
    tree = await _unpack(work, log)
    await _configure(tree, work, log)
    processors = len(os.sched_getaffinity(0))
    progress.step(f"compiling the kernel (about 8 minutes of processor time, on {processors} processors)")
    make = ["make", f"-j{processors}", "vmlinux"]
    command = sandboxed_command(make)
    await run_tool(
        command, name="make", log=log, timeout_seconds=_COMPILE_SECONDS, cwd=tree, env=_REPRODUCIBLE_ENV, output_log=log
    )
    # Symbols are for debuggers only; loaders skip them.
    strip = ["strip", "--strip-all", "-o", str(out), str(tree / "vmlinux")]
    await run_tool(strip, log=log, timeout_seconds=_CONFIGURE_SECONDS)


async def _unpack(work: Path, log: Path) -> Path:
    archives = sorted((work / "deb/usr/src").glob("linux-source-*.tar.xz"))
    if len(archives) != 1:
        raise ImageBuildError(f"the package of the kernel's source has {len(archives)} archives, expected 1")
    tree = work / "source"
    tree.mkdir()
    unpack = ["tar", "-xJf", str(archives[0]), "-C", str(tree), "--strip-components=1", "--no-same-owner"]
    await run_tool(unpack, log=log, timeout_seconds=_UNPACK_SECONDS)
    shutil.rmtree(work / "deb")
    return tree


async def _configure(tree: Path, work: Path, log: Path) -> None:
    requested = work / "requested.config"
    requested.write_text(configuration())
    env = {**_REPRODUCIBLE_ENV, "KCONFIG_ALLCONFIG": str(requested)}
    await run_tool(
        ["make", "allnoconfig"], log=log, timeout_seconds=_CONFIGURE_SECONDS, cwd=tree, env=env, output_log=log
    )
    lost = lost_options(configuration(), (tree / ".config").read_text())
    if lost:
        raise ImageBuildError(f"the kernel's source does not support {', '.join(lost)}; build with --kernel stock")
