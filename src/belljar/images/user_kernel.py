"""A kernel of the user's: checked for what machines need, and recorded by its digest; an error names what it lacks."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path

from belljar.images.build_context import BuildContext
from belljar.images.kernel_elf import KernelElf
from belljar.images.kernel_file import extract_elf, read_kernel_file
from belljar.images.kernel_modules import KernelModules, find_modules
from belljar.images.kernel_needs import FIRECRACKER, QEMU, Findings, check_needs
from belljar.images.kernel_source import UserKernel
from belljar.model.errors import ImageBuildError, InvalidOption
from belljar.model.image import Part

_MAX_CONFIG_BYTES = 4 << 20


class FileKernel:
    """The kernel in a file. Its constructor reads the file, and raises InvalidOption for what is no kernel."""

    name = "file"
    #: Debian's needs as much; a larger kernel is told by the trial boot of the build.
    min_memory_mb = 96

    def __init__(self, choice: UserKernel, context: BuildContext, data: bytes) -> None:
        """`data` is the content of the file, as `read_user_kernel` returns it."""
        self._choice = choice
        self._context = context
        self._data = data
        self._elf: KernelElf | None = None
        self._modules: KernelModules | None = None
        self.file_sha256: str | None = hashlib.sha256(data).hexdigest()

    async def prepare(self) -> None:
        """Check the kernel. Raises InvalidOption with everything that it lacks, MissingTool."""
        path, context = self._choice.path, self._context
        try:
            data = await extract_elf(self._data, str(path), context.work, context.log)
            self._elf = await asyncio.to_thread(KernelElf, data, str(path), context.architecture)
            self._modules = await asyncio.to_thread(self._checked_modules, self._elf)
        except ImageBuildError as error:
            raise InvalidOption(error.message, option="kernel") from None
        context.progress.step(f"using the kernel in {path.name} (Linux {self._elf.version})")

    def _checked_modules(self, elf: KernelElf) -> KernelModules | None:
        """Return the modules to load, None when everything is built in. Raises ImageBuildError."""
        folder = self._choice.modules
        modules = None if folder is None else find_modules(folder, elf.version, ())
        findings = check_needs(elf, elf.configuration() or self._configuration_beside(elf), modules)
        self._report(elf, findings)
        if modules is None or not findings.modules:
            return None
        loaded = find_modules(modules.folder, elf.version, findings.modules)
        loaded.check_release()
        return loaded

    def _configuration_beside(self, elf: KernelElf) -> str | None:
        """Return the configuration that distributions install beside their kernels."""
        try:
            with (self._choice.path.parent / f"config-{elf.version}").open() as file:
                return file.read(_MAX_CONFIG_BYTES)
        except (OSError, ValueError):
            return None

    def _report(self, elf: KernelElf, findings: Findings) -> None:
        if lacks := findings.fatal():
            modules = self._choice.modules
            advice = f" or give its modules with --modules /lib/modules/{elf.version}" if modules is None else ""
            raise ImageBuildError(
                f"the kernel {self._choice.path} (Linux {elf.version}) lacks what machines need: {', '.join(lacks)}; "
                f"build them in,{advice} or use --kernel stock"
            )
        for hypervisor in (QEMU, FIRECRACKER):
            if lacks := findings.lacking(hypervisor):
                self._context.progress.step(
                    f"the kernel runs no machine under {hypervisor}: it lacks {', '.join(lacks)}"
                )

    def inputs(self) -> list[str]:
        """Return the digest of the file."""
        return ["file", f"{self.file_sha256}"]

    async def is_current(self, part: Part) -> bool:
        """Return True: the same file gives the same kernel."""
        return True

    async def build(self, out: Path) -> str:
        """Write the ELF image without symbols. Raises OSError."""
        assert self._elf is not None
        await asyncio.to_thread(out.write_bytes, self._elf.stripped())
        return f"Linux {self._elf.version} in the file {self._choice.path.name}"

    async def modules(self) -> KernelModules | None:
        """Return the modules that `prepare` found."""
        return self._modules

    def module_inputs(self) -> list[str]:
        """Return the digest of the modules' files."""
        return [self._modules.digest()] if self._modules is not None else []


def read_user_kernel(choice: UserKernel) -> bytes:
    """Return the content of a kernel's file. Raises InvalidOption for anything that is no kernel, at once."""
    try:
        return read_kernel_file(choice.path)
    except ImageBuildError as error:
        raise InvalidOption(error.message, option="kernel") from None
