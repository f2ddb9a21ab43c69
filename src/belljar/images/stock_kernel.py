"""Debian's kernel for cloud machines, of its stable release or of its backports. Nothing is compiled or patched."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from belljar.images.apt import DebianArchive
from belljar.images.build_context import BuildContext
from belljar.images.host_tools import run_tool
from belljar.images.kernel_file import extract_elf
from belljar.images.kernel_modules import MODULES, KernelModules
from belljar.model.errors import ImageBuildError
from belljar.model.image import Part

_PACKAGE = "linux-image-cloud-{}"
_DEPENDENCY = r"linux-image-\d.*"
_TIMEOUT_SECONDS = 600


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelFiles:
    """The files of an unpacked kernel package."""

    elf: Path
    modules: KernelModules


class StockKernel:
    """Debian's kernel for the suite of the settings, the newest one whenever it is built."""

    name = "stock"
    #: With 64 MiB the kernel panics, out of memory, before the first program starts; Python needs 80.
    min_memory_mb = 96
    file_sha256: str | None = None

    def __init__(self, context: BuildContext) -> None:
        self._context = context
        self._files: KernelFiles | None = None

    async def prepare(self) -> None:
        """Do nothing: the package is checked by its digest."""

    def inputs(self) -> list[str]:
        """Return Debian's suite and the architecture."""
        return [self._context.settings.debian_suite, self._context.architecture]

    async def is_current(self, part: Part) -> bool:
        """Return False: unpacking the newest package again takes little time."""
        return False

    async def build(self, out: Path) -> str:
        """Fetch and unpack the package. Raises MissingTool, DiskFull, ImageBuildError."""
        files = await self._unpacked()
        shutil.copyfile(files.elf, out)
        return f"Debian linux {files.modules.release}"

    async def modules(self) -> KernelModules:
        """Return the modules of the package, which is fetched when necessary. Raises as `build`."""
        return (await self._unpacked()).modules

    def module_inputs(self) -> list[str]:
        """Return the names of the modules to load; their content follows from the kernel's."""
        return [*MODULES]

    async def _archive(self) -> DebianArchive:
        return await self._context.debian_archive()

    async def _unpacked(self) -> KernelFiles:
        if self._files is None:
            archive = await self._archive()
            package = await archive.dependency(_PACKAGE.format(archive.architecture), _DEPENDENCY)
            self._context.progress.step(f"fetching the kernel ({package})")
            deb = await archive.download(package)
            self._files = await unpack_kernel(deb, self._context.work, self._context.log)
        return self._files


class BackportsKernel(StockKernel):
    """The newer kernel that Debian's backports have for the suite of the settings."""

    name = "backports"

    def inputs(self) -> list[str]:
        """Return the suite of the backports and the architecture."""
        return [self._suite, self._context.architecture]

    @property
    def _suite(self) -> str:
        return f"{self._context.settings.debian_suite}-backports"

    async def _archive(self) -> DebianArchive:
        try:
            return await self._context.debian_archive(self._suite)
        except ImageBuildError as error:
            raise ImageBuildError(
                f"apt has no {self._suite} here, so there is no kernel from backports: {error.message}; set "
                "debian_mirror to a mirror that has it, or build with --kernel stock"
            ) from None


async def unpack_kernel(deb: Path, work: Path, log: Path) -> KernelFiles:
    """Unpack a kernel package into `work` and extract its ELF image. Raises ImageBuildError for an unknown format."""
    tree = work / "kernel.d"
    await run_tool(["dpkg-deb", "-x", str(deb), str(tree)], log=log, timeout_seconds=_TIMEOUT_SECONDS)
    images = sorted((tree / "boot").glob("vmlinu[xz]-*"))
    if len(images) != 1:
        raise ImageBuildError(f"{deb.name} has {len(images)} kernels, expected 1")
    release = images[0].name.split("-", 1)[1]
    elf = work / "vmlinux"
    elf.write_bytes(await extract_elf(images[0].read_bytes(), images[0].name, work, log))
    modules = next(path for path in (tree / "lib/modules", tree / "usr/lib/modules") if path.is_dir())
    return KernelFiles(elf=elf, modules=KernelModules(release=release, folder=modules / release))
