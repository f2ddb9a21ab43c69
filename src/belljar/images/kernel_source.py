"""The interface of kernels that images are built with, and the ways to choose one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

from belljar.images.kernel_modules import KernelModules
from belljar.model.errors import InvalidOption
from belljar.model.image import Part

#: `stock` is Debian's kernel, which needs no compiler; `backports` a newer one of Debian's; `custom` is compiled on
#: this host for machines.
KernelName = Literal["stock", "backports", "custom"]


@dataclass(frozen=True, slots=True)
class UserKernel:
    """A kernel of the user's: its vmlinux or bzImage, and the folder of its modules unless everything is built in."""

    path: Path
    modules: Path | None = None


KernelChoice = KernelName | UserKernel


def parse_kernel_choice(text: str, modules: Path | None) -> KernelChoice:
    """Return the kernel that a user named: one of the names, else a path. Raises InvalidOption."""
    for name in get_args(KernelName):
        if text == name:
            if modules is not None:
                raise InvalidOption(f"--modules belongs to a kernel's file, not to --kernel {name}", option="modules")
            return name  # type: ignore[no-any-return]
    if "/" not in text and not Path(text).exists():
        names = ", ".join(get_args(KernelName))
        raise InvalidOption(f"there is no kernel {text!r}: give {names}, or the path of a file", option="kernel")
    return UserKernel(Path(text), modules)


class KernelSource(Protocol):
    """Provides a kernel for one build."""

    #: Its name in the manifest: stock, backports, custom or file.
    name: str
    #: Memory in MiB of the smallest machine that this kernel boots in.
    min_memory_mb: int
    #: The sha256 of the user's file; None for other kernels.
    file_sha256: str | None

    async def prepare(self) -> None:
        """Check what can be checked before anything is fetched or built. Raises InvalidOption, HostError."""
        ...

    def inputs(self) -> list[str]:
        """Return the values that determine which kernel this is, apart from new versions."""
        ...

    async def is_current(self, part: Part) -> bool:
        """Return whether a rebuild would give this cached kernel. Raises HostError."""
        ...

    async def build(self, out: Path) -> str:
        """Write the kernel's ELF image to the file `out` and return its origin, for people. Raises HostError."""
        ...

    async def modules(self) -> KernelModules | None:
        """Return the kernel's modules, None when everything is built in. Raises HostError."""
        ...

    def module_inputs(self) -> list[str]:
        """Return the values that determine the modules in the initramfs, for a given kernel."""
        ...
