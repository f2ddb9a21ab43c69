"""Builds an image: a list of steps, each of which is skipped when its result is there already.

What a step makes is a part, addressed by its content; a small note in the cache says which inputs gave which part. The
manifest is written last, so that an interrupted build has registered nothing; what lay around is removed at the end,
and what a killed build left at the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from belljar.errors import DataFolderError, DiskFull, HostError
from belljar.guest.binary import agent_binary
from belljar.guest.programs import prefork_programs
from belljar.images.apt import DEBIAN_ARCHITECTURES, Archive, open_archive
from belljar.images.catalog import Images, write_manifest
from belljar.images.initramfs import MODULES, build_initramfs
from belljar.images.kernel import KernelFiles, unpack_kernel
from belljar.images.manifest import Image, Manifest, Part
from belljar.images.progress import Progress
from belljar.images.recipe import Recipe, find_recipe
from belljar.images.rootfs import FORMAT, build_root
from belljar.settings import Settings

_KERNEL_PACKAGE = "linux-image-cloud-{}"
_KERNEL_PATTERN = r"linux-image-\d.*"


async def build_image(name: str, settings: Settings, progress: Progress, *, refresh: bool = False) -> Image:
    """Build the image of a recipe, or as much of it as is not there already.

    `refresh` asks the archive for newer packages. Raises UnknownImage for a name without a recipe, and HostError
    (MissingTool, DiskFull, ImageBuildError, DataFolderError) when it cannot be built; then nothing of it is left.
    """
    recipe = find_recipe(name, settings.data_dir)
    architecture = platform.machine()
    if architecture not in DEBIAN_ARCHITECTURES:
        raise HostError(f"belljar builds images for {', '.join(DEBIAN_ARCHITECTURES)}; this host is {architecture}")
    try:
        with _workshop(settings.data_dir, progress) as work:
            return await _Build(recipe, settings, architecture, work, progress, refresh).run()
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFull(f"the disk of {settings.data_dir} is full; free some space and build again") from None
        raise DataFolderError(f"cannot build in {settings.data_dir}: {error}") from None


@contextlib.contextmanager
def _workshop(data_dir: Path, progress: Progress) -> Iterator[Path]:
    """A folder for one build at a time, gone when it ends; another build of this data folder is waited for."""
    cache = data_dir / "cache"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (cache / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.step("waiting for another build in this data folder to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for stale in cache.glob("build-*"):
            shutil.rmtree(stale, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix="build-", dir=cache))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)


class _Build:
    """One build: the steps share an archive, opened when one of them needs it."""

    def __init__(
        self, recipe: Recipe, settings: Settings, architecture: str, work: Path, progress: Progress, refresh: bool
    ) -> None:
        self._recipe = recipe
        self._settings = settings
        self._architecture = architecture
        self._work = work
        self._progress = progress
        self._refresh = refresh
        self._images = Images(settings.data_dir)
        self._cache = settings.data_dir / "cache"
        self._log = self._cache / "logs" / f"image-{recipe.name}.log"
        self._archive: Archive | None = None
        self._unpacked: KernelFiles | None = None

    async def run(self) -> Image:
        self._images.parts.mkdir(parents=True, exist_ok=True)
        self._log.unlink(missing_ok=True)
        suite, agent = self._settings.debian_suite, agent_binary(self._architecture)
        kernel = await self._part("kernel", [suite, self._architecture], self._kernel)
        contents = [agent.read_bytes(), *prefork_programs().values()]
        digests = [hashlib.sha256(content).hexdigest() for content in contents]
        initramfs = await self._part("initramfs", [kernel.sha256, *digests, *MODULES], self._initramfs)
        recipe = self._recipe.model_dump_json(include={"packages"})
        root = await self._part("root", [suite, self._architecture, recipe, str(FORMAT)], self._root)
        packages: dict[str, str] = json.loads(self._note(f"packages-{root.sha256}").read_text())
        return write_manifest(self._images, self._manifest(kernel, initramfs, root, packages))

    async def _part(self, kind: str, inputs: list[str], make: Callable[[Path], Awaitable[str]]) -> Part:
        """The part that these inputs gave before, or a new one, made into a file and kept under its digest."""
        note = self._note(f"{kind}-{hashlib.sha256(chr(0).join(inputs).encode()).hexdigest()[:32]}")
        if note.exists() and not self._refresh:
            part = Part.model_validate_json(note.read_text())
            if (self._images.parts / part.sha256).is_file():
                return part
        made = self._work / kind
        origin = await make(made)
        digest = await asyncio.to_thread(_digest, made)
        part = Part(sha256=digest, size_bytes=made.stat().st_size, origin=origin)
        made.chmod(0o444)
        made.replace(self._images.parts / digest)
        _write(note, part.model_dump_json())
        return part

    def _note(self, name: str) -> Path:
        return self._cache / "notes" / f"{name}.json"

    async def _open_archive(self) -> Archive:
        if self._archive is None:
            settings = self._settings
            self._archive = open_archive(
                self._cache,
                settings.debian_suite,
                DEBIAN_ARCHITECTURES[self._architecture],
                settings.debian_mirror,
                settings.debian_security_mirror,
                self._log,
            )
            self._progress.step(f"reading Debian's package lists ({settings.debian_suite})")
            await self._archive.update()
        return self._archive

    async def _kernel_files(self) -> KernelFiles:
        if self._unpacked is None:
            archive = await self._open_archive()
            package = _KERNEL_PACKAGE.format(archive.architecture)
            package = await archive.dependency(package, _KERNEL_PATTERN)
            self._progress.step(f"fetching the kernel ({package})")
            deb = await archive.download(package)
            self._unpacked = await unpack_kernel(deb, self._work, self._log)
        return self._unpacked

    async def _kernel(self, out: Path) -> str:
        files = await self._kernel_files()
        shutil.copyfile(files.elf, out)
        return f"Debian linux {files.release}"

    async def _initramfs(self, out: Path) -> str:
        files = await self._kernel_files()
        self._progress.step("making the initramfs")
        out.write_bytes(build_initramfs(agent_binary(self._architecture), files.modules, prefork_programs()))
        return f"the agent and modules of linux {files.release}"

    async def _root(self, out: Path) -> str:
        archive = await self._open_archive()
        self._progress.step(f"making the root filesystem of {self._recipe.name} (half a minute or so)")
        work = self._work / "root.d"
        work.mkdir()
        packages = await build_root(self._recipe, archive, out, work)
        _write(self._note(f"packages-{await asyncio.to_thread(_digest, out)}"), json.dumps(packages, sort_keys=True))
        return f"Debian {archive.suite}: {', '.join(self._recipe.packages) or 'essential packages'}"

    def _manifest(self, kernel: Part, initramfs: Part, root: Part, packages: dict[str, str]) -> Manifest:
        recipe = self._recipe
        manifest = Manifest(
            name=recipe.name,
            architecture=self._architecture,
            digest="",
            description=recipe.description,
            kernel=kernel,
            initramfs=initramfs,
            root=root,
            languages=recipe.languages,
            env=recipe.env,
            packages=packages,
        )
        return manifest.model_copy(update={"digest": manifest_digest(manifest)})


def manifest_digest(manifest: Manifest) -> str:
    """sha256 over the canonical JSON of everything but the digest."""
    fields = manifest.model_dump(mode="json", exclude={"digest"})
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(text)
    partial.replace(path)
