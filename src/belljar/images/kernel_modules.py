"""A kernel's loadable modules: find them, order them by their dependencies, read them.

Modules are read, never loaded, on the host. Sources: the fields of modinfo in the kernel's include/linux/module.h;
modules.builtin in its Documentation/kbuild/kbuild.rst.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import subprocess
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from belljar.model.errors import ImageBuildError
from belljar.system.executables import find_executable

#: The modules for the virtual devices and the filesystems of a machine, loaded before its root filesystem is mounted.
MODULES = (
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "vmw_vsock_virtio_transport",
    "erofs",
    "overlay",
)
_ELF = b"\x7fELF"
_MAX_MODULE_BYTES = 64 << 20
_ZSTD_SECONDS = 60


@dataclass(frozen=True, kw_only=True)
class KernelModules:
    """The loadable modules of a kernel release, such as 6.1.0-56-cloud-amd64."""

    release: str
    folder: Path
    #: Those that a machine loads, without their dependencies.
    names: tuple[str, ...] = MODULES

    @cached_property
    def files(self) -> dict[str, Path]:
        """Module → its file."""
        return {module_name(path): path for path in sorted(self.folder.rglob("*.ko*"))}

    @cached_property
    def builtin(self) -> frozenset[str] | None:
        """The names of modules that are built into the kernel; None when the folder does not list them."""
        try:
            lines = (self.folder / "modules.builtin").read_text().split()
        except OSError:
            return None
        return frozenset(module_name(Path(line)) for line in lines)

    def order(self) -> list[Path]:
        """Return the files of the modules to load and of their dependencies, in load order, without built-in ones.

        Raises ImageBuildError for a module that the kernel has neither as a file nor built in.
        """
        order: list[Path] = []
        #: Also those whose dependencies are being visited: soft dependencies may lead in a circle.
        visited: set[Path] = set()

        def visit(name: str, *, required: bool = True) -> None:
            if name in (self.builtin or ()):
                return
            path = self.files.get(name)
            if path is None:
                if required:
                    raise ImageBuildError(f"the kernel {self.release} has no module {name}")
                return
            if path in visited:
                return
            visited.add(path)
            fields = _fields(path)
            # A soft dependency may be an alias of a module, such as crc32c of crc32c_generic.
            for soft in fields.get("softdep", "").partition("post:")[0].removeprefix("pre:").split():
                visit(_underscored(soft), required=False)
                visit(f"{_underscored(soft)}_generic", required=False)
            for dependency in filter(None, fields.get("depends", "").split(",")):
                visit(_underscored(dependency), required=self.builtin is not None)
            order.append(path)

        for name in self.names:
            visit(name)
        return order

    def check_release(self) -> None:
        """Raise ImageBuildError when a module to load was compiled for another release than the kernel's."""
        for path in self.order():
            release = _fields(path).get("vermagic", self.release).split(" ")[0]
            if release != self.release:
                raise ImageBuildError(
                    f"the module {path.name} in {self.folder} is of the release {release}, the kernel's is "
                    f"{self.release}; give the modules that were built with it"
                )

    def digest(self) -> str:
        """Return a sha256 over the modules to load and their dependencies, in load order."""
        digest = hashlib.sha256()
        for path in self.order():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


def module_name(path: Path) -> str:
    """Return a module's name as in modinfo: virtio_blk for virtio-blk.ko.xz."""
    return _underscored(path.name.split(".ko")[0])


def _underscored(name: str) -> str:
    return name.strip().replace("-", "_")


def read_module(path: Path) -> bytes:
    """Return a module's ELF, decompressed. Raises ImageBuildError for an unknown compression, or a damaged file."""
    data = path.read_bytes()
    try:
        if path.name.endswith(".xz"):
            data = lzma.LZMADecompressor().decompress(data, _MAX_MODULE_BYTES)
        elif path.name.endswith(".gz"):
            data = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, _MAX_MODULE_BYTES)
        elif path.name.endswith(".zst"):
            data = _unzstd(path)
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise ImageBuildError(f"cannot decompress the module {path.name}: {error}") from None
    if not data.startswith(_ELF):
        raise ImageBuildError(f"the module {path.name} has an unknown compression (known: xz, gz, zst)")
    return data


def _unzstd(path: Path) -> bytes:
    zstd = find_executable("zstd")
    if zstd is None:
        raise ImageBuildError(f"the module {path.name} needs zstd; install with: apt-get install zstd")
    command = [zstd, "-d", "-c", "--memory=128MB", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_ZSTD_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ImageBuildError(f"cannot decompress the module {path.name}: {error}") from None
    if done.returncode != 0:
        raise ImageBuildError(f"cannot decompress the module {path.name}: {done.stderr.decode(errors='replace')[:200]}")
    return done.stdout


def _fields(path: Path) -> dict[str, str]:
    """Return the fields of a module's .modinfo section that order and release need."""
    fields: dict[str, str] = {}
    for field in read_module(path).split(b"\0"):
        name, equals, value = field.partition(b"=")
        if equals and name in (b"depends", b"softdep", b"vermagic"):
            fields.setdefault(name.decode(), value.decode(errors="replace"))
    return fields


def find_modules(folder: Path, release: str, names: Iterable[str]) -> KernelModules:
    """Return the modules of a release in `folder`: a folder such as /lib/modules/RELEASE, or /lib/modules.

    Raises ImageBuildError when there are none.
    """
    for place in (folder, folder / release, folder / "lib/modules" / release):
        if place.is_dir() and ((place / "modules.builtin").is_file() or (place / "kernel").is_dir()):
            return KernelModules(release=release, folder=place, names=tuple(names))
    if not folder.is_dir():
        raise ImageBuildError(f"{folder} is not a folder; give the kernel's modules, such as /lib/modules/{release}")
    found = sorted(each.name for each in folder.iterdir() if (each / "kernel").is_dir())
    there = f"; it has those of {', '.join(found[:5])}" if found else ""
    raise ImageBuildError(f"{folder} has no modules of the release {release}{there}; give /lib/modules/{release}")
