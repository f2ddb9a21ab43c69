"""Build an image: a list of steps, each of which is skipped when its result is in the cache.

Each step builds a part, which is addressed by its content. The manifest is registered last, so an interrupted build
registers nothing. Its files are removed at the end, those of a killed build by the next one.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from belljar.images.agent_binary import agent_binary
from belljar.images.apt import DEBIAN_ARCHITECTURES
from belljar.images.build_context import BuildContext, build_dir
from belljar.images.catalog import Images
from belljar.images.custom_kernel import CustomKernel
from belljar.images.initramfs import build_initramfs
from belljar.images.kernel_elf import kernel_release
from belljar.images.kernel_source import KernelChoice, KernelSource, UserKernel
from belljar.images.part_cache import PartCache
from belljar.images.prefork_programs import prefork_programs
from belljar.images.progress import Progress
from belljar.images.recipe import find_recipe
from belljar.images.recipe_extension import RecipeExtension
from belljar.images.recipe_rootfs import RecipeRootfs
from belljar.images.rootfs_source import RootfsMetadata, RootfsSource
from belljar.images.stock_kernel import BackportsKernel, StockKernel
from belljar.images.user_kernel import FileKernel, read_user_kernel
from belljar.model.errors import DataFolderError, DiskFull, HostError, is_disk_full
from belljar.model.image import Image, KernelOrigin, Manifest, Part
from belljar.settings import Settings
from belljar.settings.disk_space import disk_space_of

#: Disk that building a part needs at least, in bytes, checked before it begins.
_MIN_DISK_BYTES = {"kernel": 150 << 20, "initramfs": 32 << 20, "root": 100 << 20}

#: Boots a machine of an image that is complete but has no name yet. Raises HostError when it does not work.
TrialBoot = Callable[[Image], Awaitable[None]]


async def build_image(
    name: str,
    settings: Settings,
    progress: Progress,
    *,
    refresh: bool = False,
    extension: RecipeExtension | None = None,
    kernel: KernelChoice = "stock",
    trial_boot: TrialBoot | None = None,
) -> Image:
    """Build the image of the recipe `name`, using parts from the cache.

    With an `extension`, the image is that of another recipe with more packages, and is called `name`. `refresh` asks
    Debian for newer packages. A custom `kernel` is compiled on this host, once for each version of its source.
    `trial_boot` boots an image with another kernel than the stock one before its name refers to it.

    Raises UnknownImage for a name without a recipe, InvalidOption, and HostError (MissingTool, DiskFull,
    ImageBuildError, DataFolderError) when it cannot be built; a failed build leaves no files.
    """
    recipe = extension.recipe(name, settings.data_dir) if extension else find_recipe(name, settings.data_dir)
    source = RecipeRootfs(recipe, settings)
    return await build_from_source(source, settings, progress, refresh=refresh, kernel=kernel, trial_boot=trial_boot)


async def build_from_source(
    source: RootfsSource,
    settings: Settings,
    progress: Progress,
    *,
    refresh: bool = False,
    kernel: KernelChoice = "stock",
    trial_boot: TrialBoot | None = None,
) -> Image:
    """Build an image around the source's root filesystem and register it.

    Raises HostError, InvalidImage; a failed build leaves no files.
    """
    architecture = platform.machine()
    if architecture not in DEBIAN_ARCHITECTURES:
        raise HostError(f"belljar builds images for {', '.join(DEBIAN_ARCHITECTURES)}; this host is {architecture}")
    if kernel == "custom" and architecture != "x86_64":
        raise HostError(f"there is no custom kernel configuration for {architecture}; build with --kernel stock")
    if isinstance(kernel, UserKernel) and architecture != "x86_64":
        raise HostError(f"belljar takes kernels from files on x86_64 only; this host is {architecture}")
    kernel_file = read_user_kernel(kernel) if isinstance(kernel, UserKernel) else b""
    try:
        with build_dir(settings.data_dir, progress) as work:
            context = BuildContext(source.name, settings, architecture, work, progress, refresh=refresh)
            kernel_source = _kernel_source(kernel, kernel_file, context)
            return await _Build(source, kernel_source, context, None if kernel == "stock" else trial_boot).run()
    except OSError as error:
        if is_disk_full(error):
            raise DiskFull(f"the disk of {settings.data_dir} is full; free some space and build again") from None
        raise DataFolderError(f"cannot build in {settings.data_dir}: {error}") from None


def _kernel_source(kernel: KernelChoice, kernel_file: bytes, context: BuildContext) -> KernelSource:
    """Return the source of the chosen kernel; `kernel_file` is the content of the user's."""
    if isinstance(kernel, UserKernel):
        return FileKernel(kernel, context, kernel_file)
    if kernel == "custom":
        return CustomKernel(context)
    return BackportsKernel(context) if kernel == "backports" else StockKernel(context)


@dataclass(frozen=True, slots=True)
class _Built:
    """The origin of a file that a step built, and its metadata when it is a root filesystem."""

    origin: str
    metadata: RootfsMetadata | None = None


class _Build:
    """The steps of one build."""

    def __init__(
        self, source: RootfsSource, kernel: KernelSource, context: BuildContext, trial_boot: TrialBoot | None
    ) -> None:
        self._source = source
        self._kernel = kernel
        self._context = context
        self._trial_boot = trial_boot
        self._images = Images(context.settings.data_dir)
        self._cache = PartCache(context.settings, self._images.blobs)

    async def run(self) -> Image:
        self._images.blobs.folder.mkdir(parents=True, exist_ok=True)
        self._context.log.unlink(missing_ok=True)
        await self._kernel.prepare()
        await self._source.prepare(self._context)
        agent = agent_binary(self._context.architecture)
        kernel = await self._kernel_part()
        initramfs = await self._initramfs_part(kernel, agent)
        root, metadata = await self._rootfs_part()
        manifest = self._manifest(kernel, initramfs, root, metadata)
        if self._trial_boot is not None and manifest.digest not in self._images.digests():
            await self._trial_boot(self._images.image(manifest))
        return self._images.register(manifest)

    async def _kernel_part(self) -> Part:
        async def build(out: Path) -> _Built:
            return _Built(await self._kernel.build(out))

        return await self._part("kernel", self._kernel.inputs(), build, self._kernel.is_current)

    async def _initramfs_part(self, kernel: Part, agent: Path) -> Part:
        programs = prefork_programs()

        async def build(out: Path) -> _Built:
            modules = await self._kernel.modules()
            self._context.progress.step("building the initramfs")
            out.write_bytes(build_initramfs(agent, modules, programs))
            return _Built(f"the agent and modules of linux {modules.release}" if modules else "the agent")

        async def is_current(_: Part) -> bool:
            return False  # building it takes less time than a comparison

        digests = [hashlib.sha256(content).hexdigest() for content in (agent.read_bytes(), *programs.values())]
        return await self._part(
            "initramfs", [kernel.sha256, *digests, *self._kernel.module_inputs()], build, is_current
        )

    async def _rootfs_part(self) -> tuple[Part, RootfsMetadata]:
        inputs = [self._context.architecture, *self._source.inputs()]

        async def build(out: Path) -> _Built:
            work = self._context.work / "root.d"
            work.mkdir()
            metadata = await self._source.build(out, work, self._context)
            return _Built(self._source.origin(), metadata)

        async def is_current(_: Part) -> bool:
            return await self._source.is_current(self._cache.metadata(inputs), self._context)

        part = await self._part("root", inputs, build, is_current)
        return part, self._cache.metadata(inputs)

    async def _part(
        self,
        kind: str,
        inputs: list[str],
        build: Callable[[Path], Awaitable[_Built]],
        is_current: Callable[[Part], Awaitable[bool]],
    ) -> Part:
        """Return the cached part of these inputs, or build it; with `refresh` a part that is not current is rebuilt."""
        cached = self._cache.find(kind, inputs)
        if cached is not None and not (self._context.refresh and not await is_current(cached)):
            return cached
        disk_space_of(self._context.settings).require_bytes(_MIN_DISK_BYTES[kind], f"building the {kind} of an image")
        file = self._context.work / kind
        built = await build(file)
        return await self._cache.add(kind, inputs, file, built.origin, built.metadata)

    def _manifest(self, kernel: Part, initramfs: Part, root: Part, metadata: RootfsMetadata) -> Manifest:
        fields = self._source.manifest_fields(metadata)
        fields["min_memory_mb"] = max(self._kernel.min_memory_mb, fields.get("min_memory_mb", 0))
        manifest = Manifest(
            name=self._source.name,
            architecture=self._context.architecture,
            digest="",
            kernel=kernel,
            kernel_origin=KernelOrigin(
                source=self._kernel.name,
                version=kernel_release(self._images.blobs.folder / kernel.sha256),
                file_sha256=self._kernel.file_sha256,
            ),
            initramfs=initramfs,
            root=root,
            packages=metadata.packages,
            other_packages=metadata.other_packages,
            versions=metadata.versions,
            **fields,
        )
        return manifest.model_copy(update={"digest": manifest_digest(manifest)})


def manifest_digest(manifest: Manifest) -> str:
    """Return the sha256 over the manifest's canonical JSON without its digest and its name, which may change."""
    fields = manifest.model_dump(mode="json", exclude={"digest", "name"})
    return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
