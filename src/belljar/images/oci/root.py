"""A root filesystem that is somebody's container image, and the two ways to make an image of one."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from belljar.images.apt import DEBIAN_ARCHITECTURES
from belljar.images.build import Build, make_image
from belljar.images.catalog import check_image_name
from belljar.images.contained import contained, remove_tree
from belljar.images.oci.config import ImageConfig, read_wishes
from belljar.images.oci.fetch import Source, build_dockerfile, fetch_layout, find_source, name_of
from belljar.images.oci.layout import LayoutImage, read_layout
from belljar.images.oci.unpack import OrderedLayer, UnpackRequest, UnpackResult
from belljar.images.progress import Progress
from belljar.images.recipe import recipes
from belljar.images.rootfs import EPOCH, MKFS
from belljar.images.rootfs_metadata import RootfsMetadata
from belljar.images.subordinate import need_subordinate_ids
from belljar.images.tool import call, need
from belljar.model.errors import ImageBuildError, InvalidImage
from belljar.model.image import Image, Language
from belljar.settings import Settings

#: Changes when the way that images are unpacked does.
_FORMAT = "oci-1"
_UNPACK_SECONDS = 3600
_MB = 1024 * 1024
_MAX_ANSWER_BYTES = 16 * _MB


async def import_image(reference: str, name: str | None, settings: Settings, progress: Progress) -> Image:
    """Make an image of a container image: a layout, an archive, or a registry's.

    Raises InvalidOption, InvalidImage, MissingTool, DiskFull, HostError; then nothing is registered or left.
    """
    source = find_source(reference)
    return await make_image(OciRoot(check_image_name(name or name_of(reference)), source, settings), settings, progress)


async def build_from_dockerfile(
    name: str, dockerfile: Path, context: Path | None, settings: Settings, progress: Progress
) -> Image:
    """Make an image of what a Dockerfile builds; its folder is the context unless another is given. Raises as above."""
    root = DockerfileRoot(check_image_name(name), dockerfile, context or dockerfile.absolute().parent, settings)
    return await make_image(root, settings, progress)


class OciRoot:
    """The root filesystem of a container image."""

    def __init__(self, name: str, source: Source, settings: Settings) -> None:
        self.name = name
        self._source = source
        self._settings = settings
        self._image: LayoutImage | None = None
        self._wishes = ImageConfig()
        self._known = _languages(settings.data_dir)

    async def prepare(self, build: Build) -> None:
        need_subordinate_ids()  # said before anything is fetched
        build.progress.step(f"fetching {self._source.shown}")
        architecture = DEBIAN_ARCHITECTURES[build.architecture]
        layout = await self._layout(build, architecture)
        self._image = read_layout(layout, architecture=architecture, tag=self._source.tag)
        self._wishes = read_wishes(self._image.config)

    async def _layout(self, build: Build, architecture: str) -> Path:
        return await fetch_layout(self._source, build.work / "layout", architecture=architecture, log=build.log)

    def inputs(self) -> list[str]:
        image = self._read()
        known = json.dumps([language.model_dump(mode="json") for language in self._known])
        return [_FORMAT, image.digest, image.config_digest, known]

    async def is_current(self, facts: RootfsMetadata, build: Build) -> bool:
        return True  # the digest of what was fetched is among the inputs

    async def make(self, out: Path, work: Path, build: Build) -> RootfsMetadata:
        image = self._read()
        build.progress.step(f"unpacking {len(image.layers)} layers")
        tree, order = work / "tree", work / "order.json"
        tree.mkdir()
        order.write_text(self._order(image, tree, out).model_dump_json())
        try:
            found = await _unpack(order, build.log)
        finally:
            await asyncio.shield(asyncio.to_thread(remove_tree, tree))
        if found.error is not None:
            raise InvalidImage(found.error)
        return RootfsMetadata(
            packages=found.packages,
            other_packages=found.other_packages,
            languages=found.languages,
            user=found.user,
        )

    def _order(self, image: LayoutImage, tree: Path, out: Path) -> UnpackRequest:
        layers = [
            OrderedLayer(sha256=blob.sha256, size_bytes=blob.size_bytes, path=str(blob.path), diff_id=diff_id)
            for blob, diff_id in zip(image.layers, image.diff_ids, strict=True)
        ]
        return UnpackRequest(
            layers=tuple(layers),
            wishes=self._wishes,
            known=self._known,
            tree=str(tree),
            out=str(out),
            max_bytes=self._settings.max_image_mb * _MB,
            max_files=self._settings.max_image_files,
            mkfs=MKFS,
            epoch=EPOCH,
        )

    def origin(self) -> str:
        return f"{self._source.shown} {self._read().digest}"

    def manifest(self, facts: RootfsMetadata) -> dict[str, Any]:
        labels = (self._read().config.get("config") or {}).get("Labels") or {}
        title = labels.get("org.opencontainers.image.title") if isinstance(labels, dict) else None
        return {
            "description": str(title)[:200] if title else f"imported from {self._source.shown}"[:200],
            "languages": facts.languages,
            "env": self._wishes.env,
            "origin": f"oci {self._read().digest}",
            "user": facts.user,
            "working_folder": self._wishes.working_folder,
        }

    def _read(self) -> LayoutImage:
        assert self._image is not None, "prepare comes first"
        return self._image


class DockerfileRoot(OciRoot):
    """The root filesystem of what a Dockerfile builds."""

    def __init__(self, name: str, dockerfile: Path, context: Path, settings: Settings) -> None:
        super().__init__(name, Source(transport=str(dockerfile)), settings)
        self._dockerfile = dockerfile
        self._context = context

    async def _layout(self, build: Build, architecture: str) -> Path:
        if not self._dockerfile.is_file() or not self._context.is_dir():
            raise ImageBuildError(f"there is no Dockerfile {self._dockerfile} with a folder {self._context} as context")
        build.progress.step("building it with buildah")
        work = build.work / "buildah"
        work.mkdir()
        return await build_dockerfile(self._dockerfile, self._context, build.work / "layout", work=work, log=build.log)


async def _unpack(order: Path, log: Path) -> UnpackResult:
    need("mkfs.erofs", "zstd")
    command = contained([sys.executable, "-P", "-m", "belljar.images.oci.unpack", str(order)])
    answer = await call(command, name="unpacking", log=log, timeout_seconds=_UNPACK_SECONDS, cwd=order.parent)
    if len(answer) > _MAX_ANSWER_BYTES:
        raise InvalidImage("the image holds more packages and languages than can be listed")
    try:
        return UnpackResult.model_validate_json(answer)
    except ValidationError as error:
        raise ImageBuildError(f"unpacking gave no answer that can be read: {error.errors()[0]['msg']}") from None


def _languages(data_dir: Path) -> tuple[Language, ...]:
    known: dict[str, Language] = {}
    for recipe in recipes(data_dir).values():
        for language in recipe.languages:
            known.setdefault(language.name, language)
    return tuple(known.values())
