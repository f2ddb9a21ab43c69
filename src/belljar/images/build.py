"""Builds an image: a list of steps, each of which is skipped when its result is there already.

What a step makes is a part, addressed by its content; a small note in the cache says which inputs gave which part. The
manifest is written last, so that an interrupted build has registered nothing; what lay around is removed at the end,
and what a killed build left at the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

from belljar.data_dir import DataDir, private_folder
from belljar.images.additions import Additions
from belljar.images.agent_binary import agent_binary
from belljar.images.apt import DEBIAN_ARCHITECTURES, Archive
from belljar.images.apt import open_archive as open_apt
from belljar.images.catalog import Images, write_manifest
from belljar.images.contained import remove_tree
from belljar.images.custom_kernel import (
    SOURCE_PACKAGE,
    SOURCE_PATTERN,
    compile_kernel,
    configuration_digest,
    kernel_origin,
    need_compiler,
)
from belljar.images.initramfs import MODULES, build_initramfs
from belljar.images.kernel import STOCK_KERNEL_MIN_MB, KernelFiles, unpack_kernel
from belljar.images.prefork_programs import prefork_programs, programs_in_root
from belljar.images.progress import Progress
from belljar.images.recipe import Recipe, find_recipe
from belljar.images.rootfs import FORMAT, build_root
from belljar.images.rootfs_metadata import RootfsMetadata
from belljar.model.errors import DataFolderError, DiskFull, HostError, is_disk_full
from belljar.model.image import Image, Manifest, Part
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of
from belljar.system.atomic_write import atomic_write
from belljar.system.file_locks import wait_for_lock

_KERNEL_PACKAGE = "linux-image-cloud-{}"
#: Disk that making a part takes at least, with what it is made from; checked before it begins.
_NEEDED_BYTES = {"kernel": 150 << 20, "initramfs": 32 << 20, "root": 100 << 20}
_KERNEL_PATTERN = r"linux-image-\d.*"

#: Debian's own, which needs no compiler, or one that is compiled for machines.
KernelChoice = Literal["stock", "custom"]


class RootSource(Protocol):
    """What a root filesystem is made from: a recipe, or somebody's container image."""

    #: Name of the image that it becomes.
    name: str

    async def prepare(self, build: Build) -> None:
        """What must be done before its inputs are known. Raises HostError, InvalidImage."""
        ...

    def inputs(self) -> list[str]:
        """Equal inputs give an equal root filesystem."""
        ...

    async def is_current(self, facts: RootfsMetadata, build: Build) -> bool:
        """Whether making it anew would give what these facts tell of, as far as its origin says."""
        ...

    async def make(self, out: Path, work: Path, build: Build) -> RootfsMetadata:
        """Make it into the file `out`; `work` is an empty folder. Raises HostError."""
        ...

    def origin(self) -> str:
        """Where it comes from, for people."""
        ...

    def manifest(self, facts: RootfsMetadata) -> dict[str, Any]:
        """The fields of the manifest that are its own: description, languages, env, user and so on."""
        ...


async def build_image(
    name: str,
    settings: Settings,
    progress: Progress,
    *,
    refresh: bool = False,
    additions: Additions | None = None,
    kernel: KernelChoice = "stock",
) -> Image:
    """Build the image of a recipe, or as much of it as is not there already.

    With `additions` it is an image of another recipe with more in it, called `name`. `refresh` asks the archive for
    newer packages. A custom `kernel` is compiled here, once for each version of its source. Raises UnknownImage for a
    name without a recipe, InvalidOption, and HostError (MissingTool, DiskFull, ImageBuildError, DataFolderError) when
    it cannot be built; then nothing of it is left.
    """
    recipe = additions.recipe(name, settings.data_dir) if additions else find_recipe(name, settings.data_dir)
    return await make_image(RecipeRoot(recipe, settings), settings, progress, refresh=refresh, kernel=kernel)


async def make_image(
    source: RootSource,
    settings: Settings,
    progress: Progress,
    *,
    refresh: bool = False,
    kernel: KernelChoice = "stock",
) -> Image:
    """Make an image around the source's root filesystem and register it. Raises HostError; then nothing is left."""
    architecture = platform.machine()
    if architecture not in DEBIAN_ARCHITECTURES:
        raise HostError(f"belljar builds images for {', '.join(DEBIAN_ARCHITECTURES)}; this host is {architecture}")
    if kernel == "custom" and architecture != "x86_64":
        raise HostError(f"there is no configuration of a custom kernel for {architecture}; build with --kernel stock")
    try:
        with build_dir(settings.data_dir, progress) as work:
            return await Build(source, settings, architecture, work, progress, refresh, kernel).run()
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(f"the disk of {settings.data_dir} is full; free some space and build again") from None
        raise DataFolderError(f"cannot build in {settings.data_dir}: {error}") from None


@contextlib.contextmanager
def build_dir(data_dir: Path, progress: Progress) -> Iterator[Path]:
    """A folder for one build at a time, gone when it ends; another build of this data folder is waited for."""
    paths = DataDir(data_dir)
    cache = private_folder(paths.cache)
    with wait_for_lock(
        paths.build_lock, on_wait=lambda: progress.step("waiting for another build in this data folder to end")
    ):
        for stale in cache.glob("build-*"):
            remove_tree(stale)
        work = Path(tempfile.mkdtemp(prefix="build-", dir=cache))
        try:
            yield work
        finally:
            remove_tree(work)


class Build:
    """One build: its steps share a log, the caller's progress, and an archive that is opened when one needs it."""

    def __init__(
        self,
        source: RootSource,
        settings: Settings,
        architecture: str,
        work: Path,
        progress: Progress,
        refresh: bool,
        kernel: KernelChoice,
    ) -> None:
        self._source = source
        self._settings = settings
        self.architecture = architecture
        self.work = work
        self.progress = progress
        self._refresh = refresh
        self._kernel_choice = kernel
        self._images = Images(settings.data_dir)
        self.log = settings.paths.build_logs / f"image-{source.name}.log"
        self._archive: Archive | None = None
        self._facts: RootfsMetadata | None = None
        self._unpacked: KernelFiles | None = None

    async def run(self) -> Image:
        self._images.parts.mkdir(parents=True, exist_ok=True)
        self.log.unlink(missing_ok=True)
        await self._source.prepare(self)
        suite, agent = self._settings.debian_suite, agent_binary(self.architecture)
        if self._kernel_choice == "custom":
            kernel = await self._custom_kernel_part([suite, self.architecture, configuration_digest()])
        else:
            kernel = await self._part("kernel", [suite, self.architecture], self._kernel)
        contents = [agent.read_bytes(), *prefork_programs().values()]
        digests = [hashlib.sha256(content).hexdigest() for content in contents]
        initramfs = await self._part("initramfs", [kernel.sha256, *digests, *MODULES], self._initramfs)
        inputs = [self.architecture, *self._source.inputs()]
        if self._refresh and await self._root_is_current(inputs):
            self._refresh = False
        root = await self._part("root", inputs, self._root)
        return write_manifest(self._images, self._manifest(kernel, initramfs, root, self._facts_of(inputs)))

    async def _root_is_current(self, inputs: list[str]) -> bool:
        """Whether a refreshed root filesystem would be the one that is there."""
        part = self._made("root", inputs)
        if part is None:
            return False
        return await self._source.is_current(self._facts_of(inputs), self)

    def _facts_of(self, inputs: list[str]) -> RootfsMetadata:
        return RootfsMetadata.model_validate_json(self._part_note("facts", inputs).read_text())

    def _made(self, kind: str, inputs: list[str]) -> Part | None:
        """The part that these inputs gave before, if it is still there."""
        note = self._part_note(kind, inputs)
        if not note.exists():
            return None
        part = Part.model_validate_json(note.read_text())
        whole = (self._images.parts / part.sha256).is_file()
        return part if whole and (kind != "root" or self._part_note("facts", inputs).exists()) else None

    def _part_note(self, kind: str, inputs: list[str]) -> Path:
        return self._note(f"{kind}-{hashlib.sha256(chr(0).join(inputs).encode()).hexdigest()[:32]}")

    async def _part(self, kind: str, inputs: list[str], make: Callable[[Path], Awaitable[str]]) -> Part:
        """The part that these inputs gave before, or a new one, made into a file and kept under its digest."""
        known = self._made(kind, inputs)
        if known is not None and not self._refresh:
            return known
        disk_space_of(self._settings).require_bytes(_NEEDED_BYTES[kind], f"making the {kind} of an image")
        made = self.work / kind
        origin = await make(made)
        digest = await asyncio.to_thread(_digest, made)
        part = Part(sha256=digest, size_bytes=made.stat().st_size, origin=origin)
        self._images.make_room(part.size_bytes, self._settings)
        if kind == "root":
            assert self._facts is not None
            _write_note(self._part_note("facts", inputs), self._facts.model_dump_json())
        made.chmod(0o444)
        made.replace(self._images.parts / digest)
        self._images.remember_digest(self._images.parts / digest, digest)
        _write_note(self._part_note(kind, inputs), part.model_dump_json())
        return part

    def _note(self, name: str) -> Path:
        return self._settings.paths.build_notes / f"{name}.json"

    async def open_archive(self) -> Archive:
        if self._archive is None:
            settings = self._settings
            self._archive = open_apt(
                settings.paths.apt_cache,
                settings.debian_suite,
                DEBIAN_ARCHITECTURES[self.architecture],
                settings.debian_mirror,
                settings.debian_security_mirror,
                self.log,
            )
            self.progress.step(f"reading Debian's package lists ({settings.debian_suite})")
            await self._archive.update(even_if_recent=self._refresh)
        return self._archive

    async def _kernel_files(self) -> KernelFiles:
        if self._unpacked is None:
            archive = await self.open_archive()
            package = _KERNEL_PACKAGE.format(archive.architecture)
            package = await archive.dependency(package, _KERNEL_PATTERN)
            self.progress.step(f"fetching the kernel ({package})")
            deb = await archive.download(package)
            self._unpacked = await unpack_kernel(deb, self.work, self.log)
        return self._unpacked

    async def _kernel(self, out: Path) -> str:
        files = await self._kernel_files()
        shutil.copyfile(files.elf, out)
        return f"Debian linux {files.release}"

    async def _custom_kernel_part(self, inputs: list[str]) -> Part:
        """The kernel that was compiled before, unless a newer source is asked for and there is one."""
        known = self._made("kernel", inputs)
        if known is not None and not (self._refresh and known.origin != kernel_origin(await self._source_version())):
            return known
        return await self._part("kernel", inputs, self._custom_kernel)

    async def _source_package(self) -> str:
        return await (await self.open_archive()).dependency(SOURCE_PACKAGE, SOURCE_PATTERN)

    async def _source_version(self) -> str:
        return await (await self.open_archive()).version(await self._source_package())

    async def _custom_kernel(self, out: Path) -> str:
        need_compiler()  # said before anything is fetched
        archive, package = await self.open_archive(), await self._source_package()
        version = await archive.version(package)
        self.progress.step(f"fetching the kernel's source ({package} {version})")
        deb = await archive.download(package)
        work = self.work / "kernel-source.d"
        work.mkdir()
        await compile_kernel(deb, out, work, self.log, self.progress)
        shutil.rmtree(work)
        return kernel_origin(version)

    async def _initramfs(self, out: Path) -> str:
        if self._kernel_choice == "custom":
            self.progress.step("making the initramfs")
            out.write_bytes(build_initramfs(agent_binary(self.architecture), None, prefork_programs()))
            return "the agent"
        files = await self._kernel_files()
        self.progress.step("making the initramfs")
        out.write_bytes(build_initramfs(agent_binary(self.architecture), files.modules, prefork_programs()))
        return f"the agent and modules of linux {files.release}"

    async def _root(self, out: Path) -> str:
        work = self.work / "root.d"
        work.mkdir()
        self._facts = await self._source.make(out, work, self)
        return self._source.origin()

    def _manifest(self, kernel: Part, initramfs: Part, root: Part, facts: RootfsMetadata) -> Manifest:
        fields = self._source.manifest(facts)
        if self._kernel_choice == "stock":
            fields["min_memory_mb"] = max(STOCK_KERNEL_MIN_MB, fields.get("min_memory_mb", 0))
        manifest = Manifest(
            name=self._source.name,
            architecture=self.architecture,
            digest="",
            kernel=kernel,
            initramfs=initramfs,
            root=root,
            packages=facts.packages,
            other_packages=facts.other_packages,
            versions=facts.versions,
            **fields,
        )
        return manifest.model_copy(update={"digest": manifest_digest(manifest)})


class RecipeRoot:
    """A root filesystem of a recipe."""

    def __init__(self, recipe: Recipe, settings: Settings) -> None:
        self.name = recipe.name
        self._recipe = recipe
        self._suite = settings.debian_suite

    async def prepare(self, build: Build) -> None:
        pass

    def inputs(self) -> list[str]:
        fields = {"packages", "pip", "npm", "exclude", "files", "prepare"}
        versions = [[language.name, *language.version] for language in self._recipe.languages]
        preforks = programs_in_root(language.prefork for language in self._recipe.languages)
        digests = [hashlib.sha256(text).hexdigest() for text in preforks.values()]
        return [self._suite, self._recipe.model_dump_json(include=fields), json.dumps(versions), str(FORMAT), *digests]

    async def is_current(self, facts: RootfsMetadata, build: Build) -> bool:
        if self._recipe.pip or self._recipe.npm:
            return False  # what an index would answer today is known only by asking it
        return await (await build.open_archive()).versions(facts.packages) == facts.packages

    async def make(self, out: Path, work: Path, build: Build) -> RootfsMetadata:
        archive = await build.open_archive()
        await archive.check(self._recipe.packages)
        build.progress.step(f"making the root filesystem of {self.name} (half a minute or so)")
        return await build_root(self._recipe, archive, out, work)

    def origin(self) -> str:
        return f"Debian {self._suite}: {', '.join(self._recipe.packages) or 'essential packages'}"

    def manifest(self, facts: RootfsMetadata) -> dict[str, Any]:
        recipe = self._recipe
        digest = hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()
        return {
            "description": recipe.description,
            "languages": recipe.languages,
            "env": recipe.env,
            "min_memory_mb": recipe.min_memory_mb,
            "origin": f"recipe sha256:{digest}",
        }


def manifest_digest(manifest: Manifest) -> str:
    """sha256 over the canonical JSON of everything but the digest and the name, which another image may take over."""
    fields = manifest.model_dump(mode="json", exclude={"digest", "name"})
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_note(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, text)
