"""A root filesystem that is a container image, and the two ways to build an image from one."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from belljar.images.apt import DEBIAN_ARCHITECTURES
from belljar.images.build import build_from_source
from belljar.images.build_context import BuildContext
from belljar.images.build_sandbox import remove_tree, sandboxed_command
from belljar.images.catalog import check_image_name
from belljar.images.erofs import EPOCH, mkfs_command
from belljar.images.host_tools import require_tools, run_tool
from belljar.images.oci.config import ImageConfig, read_image_config
from belljar.images.oci.fetch import ImageReference, build_dockerfile, default_name, fetch_layout, parse_reference
from belljar.images.oci.layout import LayoutImage, read_layout
from belljar.images.oci.tree_pack import ArchiveLayer
from belljar.images.oci.unpack import UnpackRequest, UnpackResult
from belljar.images.progress import Progress
from belljar.images.recipe import recipes
from belljar.images.rootfs_source import RootfsMetadata
from belljar.images.subordinate_ids import require_subordinate_ids
from belljar.model.errors import ImageBuildError, InvalidImage
from belljar.model.image import Image, Language
from belljar.settings import Settings

#: Changed when the unpacking of images changes, so that root filesystems of older versions are not reused.
_FORMAT = "oci-1"
_UNPACK_SECONDS = 3600
_MB = 1024 * 1024
_MAX_RESULT_BYTES = 16 * _MB


async def import_image(reference: str, name: str | None, settings: Settings, progress: Progress) -> Image:
    """Import a container image: a layout, an archive, or an image of a registry.

    Raises InvalidOption, InvalidImage, MissingTool, DiskFull, HostError; a failed import registers and leaves nothing.
    """
    parsed = parse_reference(reference)
    source = OciRootfs(check_image_name(name or default_name(reference)), parsed, settings)
    return await build_from_source(source, settings, progress)


async def build_from_dockerfile(
    name: str, dockerfile: Path, context: Path | None, settings: Settings, progress: Progress
) -> Image:
    """Build an image from a Dockerfile; the context is by default the Dockerfile's folder. Raises as `import_image`."""
    folder = context or dockerfile.absolute().parent
    return await build_from_source(
        DockerfileRootfs(check_image_name(name), dockerfile, folder, settings), settings, progress
    )


class OciRootfs:
    """The root filesystem of a container image."""

    def __init__(self, name: str, reference: ImageReference, settings: Settings) -> None:
        self.name = name
        self._reference = reference
        self._settings = settings
        self._fetched: LayoutImage | None = None
        self._config = ImageConfig()
        self._known_languages = _recipe_languages(settings.data_dir)

    async def prepare(self, context: BuildContext) -> None:
        """Fetch the image and parse its config. Raises InvalidImage, MissingTool, DiskFull, HostError."""
        require_subordinate_ids()  # before anything is fetched
        context.progress.step(f"fetching {self._reference.text}")
        architecture = DEBIAN_ARCHITECTURES[context.architecture]
        layout = await self._fetch(context, architecture)
        self._fetched = read_layout(layout, architecture=architecture, tag=self._reference.tag)
        self._config = read_image_config(self._fetched.config)

    async def _fetch(self, context: BuildContext, architecture: str) -> Path:
        folder = context.work / "layout"
        return await fetch_layout(self._reference, folder, architecture=architecture, log=context.log)

    def inputs(self) -> list[str]:
        """Return the digests of the image, and the languages to look for in it."""
        image = self._image
        known = json.dumps([language.model_dump(mode="json") for language in self._known_languages])
        return [_FORMAT, image.digest, image.config_digest, known]

    async def is_current(self, metadata: RootfsMetadata, context: BuildContext) -> bool:
        """Return True: the inputs contain the digest of the fetched image."""
        return True

    async def build(self, out: Path, work: Path, context: BuildContext) -> RootfsMetadata:
        """Unpack the image's layers in a separate process. Raises InvalidImage, ImageBuildError, DiskFull."""
        image = self._image
        context.progress.step(f"unpacking {len(image.layers)} layers")
        tree, request_file = work / "tree", work / "request.json"
        tree.mkdir()
        request_file.write_text(self._request(image, tree, out).model_dump_json())
        try:
            result = await _unpack(request_file, context.log)
        finally:
            await asyncio.shield(asyncio.to_thread(remove_tree, tree))
        if result.error is not None:
            raise InvalidImage(result.error)
        return RootfsMetadata(
            packages=result.packages,
            other_packages=result.other_packages,
            languages=result.languages,
            user=result.user,
        )

    def _request(self, image: LayoutImage, tree: Path, out: Path) -> UnpackRequest:
        layers = [
            ArchiveLayer(sha256=blob.sha256, size_bytes=blob.size_bytes, path=str(blob.path), diff_id=diff_id)
            for blob, diff_id in zip(image.layers, image.diff_ids, strict=True)
        ]
        return UnpackRequest(
            layers=tuple(layers),
            config=self._config,
            known_languages=self._known_languages,
            tree=str(tree),
            out=str(out),
            max_bytes=self._settings.max_image_mb * _MB,
            max_files=self._settings.max_image_files,
            mkfs=mkfs_command(),
            epoch=EPOCH,
        )

    def origin(self) -> str:
        """Return the reference and the digest."""
        return f"{self._reference.text} {self._image.digest}"

    def manifest_fields(self, metadata: RootfsMetadata) -> dict[str, Any]:
        """Return the fields from the image's labels and config, and from the metadata."""
        labels = (self._image.config.get("config") or {}).get("Labels") or {}
        title = labels.get("org.opencontainers.image.title") if isinstance(labels, dict) else None
        return {
            "description": str(title)[:200] if title else f"imported from {self._reference.text}"[:200],
            "languages": metadata.languages,
            "env": self._config.env,
            "origin": f"oci {self._image.digest}",
            "user": metadata.user,
            "working_folder": self._config.working_folder,
        }

    @property
    def _image(self) -> LayoutImage:
        assert self._fetched is not None, "prepare must run first"
        return self._fetched


class DockerfileRootfs(OciRootfs):
    """The root filesystem that a Dockerfile builds."""

    def __init__(self, name: str, dockerfile: Path, context: Path, settings: Settings) -> None:
        super().__init__(name, ImageReference(transport=str(dockerfile)), settings)
        self._dockerfile = dockerfile
        self._context_folder = context

    async def _fetch(self, context: BuildContext, architecture: str) -> Path:
        if not self._dockerfile.is_file() or not self._context_folder.is_dir():
            raise ImageBuildError(
                f"the Dockerfile {self._dockerfile} or its context folder {self._context_folder} does not exist"
            )
        context.progress.step("building it with buildah")
        work = context.work / "buildah"
        work.mkdir()
        layout = context.work / "layout"
        return await build_dockerfile(self._dockerfile, self._context_folder, layout, work=work, log=context.log)


async def _unpack(request_file: Path, log: Path) -> UnpackResult:
    require_tools("mkfs.erofs", "zstd")
    command = sandboxed_command([sys.executable, "-P", "-m", "belljar.images.oci.unpack", str(request_file)])
    output = await run_tool(
        command, name="unpacking", log=log, timeout_seconds=_UNPACK_SECONDS, cwd=request_file.parent
    )
    if len(output) > _MAX_RESULT_BYTES:
        raise InvalidImage(f"the image's list of packages and languages is over {_MAX_RESULT_BYTES // _MB} MB")
    try:
        return UnpackResult.model_validate_json(output)
    except ValidationError as error:
        raise ImageBuildError(f"cannot read the result of unpacking: {error.errors()[0]['msg']}") from None


def _recipe_languages(data_dir: Path) -> tuple[Language, ...]:
    languages: dict[str, Language] = {}
    for recipe in recipes(data_dir).values():
        for language in recipe.languages:
            languages.setdefault(language.name, language)
    return tuple(languages.values())
