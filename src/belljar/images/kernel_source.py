"""The interface of kernels that images are built with, and the choice between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from belljar.model.image import Part

#: `stock` is Debian's kernel, which needs no compiler; `custom` is compiled on this host for machines.
KernelChoice = Literal["stock", "custom"]


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelModules:
    """The loadable modules of a kernel release, such as 6.1.0-56-cloud-amd64."""

    release: str
    folder: Path


class KernelSource(Protocol):
    """Provides a kernel for one build."""

    #: Memory in MiB of the smallest machine that this kernel boots in.
    min_memory_mb: int

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
