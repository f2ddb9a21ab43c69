"""Pages: the images of this server, and what is in one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from belljar.control.api.routes.dashboard.pages import Pages, PagesDep
from belljar.control.api.rules import require
from belljar.control.projects.scopes import Scope
from belljar.images.catalog import summary
from belljar.model.errors import NotFound
from belljar.model.image import Image

router = APIRouter(include_in_schema=False)

#: Packages that a page shows; a search finds the others.
_MAX_PACKAGES = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageView:
    """An image as its pages show it."""

    name: str
    description: str
    digest: str
    architecture: str
    origin: str
    size_bytes: int
    parts: list[dict[str, Any]]
    languages: list[dict[str, Any]]
    kernel: str
    min_memory_mb: int
    package_count: int
    built_at: datetime | None
    #: For operators: those that nodes have of it.
    snapshots: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Package:
    """A package in an image."""

    name: str
    version: str
    kind: str


@router.get("/images", dependencies=[require(Scope.IMAGES_READ)])
async def show_images(page: PagesDep) -> Response:
    """Show the images."""
    snapshots = await _snapshots(page)
    views = await asyncio.to_thread(lambda: [_view(page, image, snapshots) for image in page.services.images.list()])
    return await page.show("images.html", images=views)


@router.get("/images/{name}", dependencies=[require(Scope.IMAGES_READ)])
async def show_image(name: str, page: PagesDep, q: Annotated[str, Query(max_length=100)] = "") -> Response:
    """Show one image, with its packages that have `q` in their name."""
    image = await asyncio.to_thread(page.services.images.find, name)
    if image is None:
        raise NotFound(f"there is no image {name[:80]!r} here; build it with belljar image build")
    snapshots = await _snapshots(page)
    view = await asyncio.to_thread(_view, page, image, snapshots)
    packages = _packages(image)
    query = q.strip()
    matching = [each for each in packages if query.lower() in each.name.lower()]
    return await page.show(
        "image.html",
        image=view,
        packages=packages,
        shown=matching[:_MAX_PACKAGES],
        matches=len(matching),
        query=query,
    )


async def _snapshots(page: Pages) -> list[dict[str, Any]]:
    if not page.identity.is_operator:
        return []
    return [{"node": node.id, **each} for node in await page.services.nodes.list() for each in node.snapshots]


def _view(page: Pages, image: Image, snapshots: list[dict[str, Any]]) -> ImageView:
    manifest, shown = image.manifest, summary(image, snapshots)
    origin = manifest.kernel_origin
    kernel = f"{origin.version or 'of a file'} ({origin.source})" if origin is not None else manifest.kernel.origin
    named = zip(("kernel", "initramfs", "root file system"), manifest.parts, strict=True)
    return ImageView(
        name=manifest.name,
        description=manifest.description,
        digest=manifest.digest,
        architecture=manifest.architecture,
        origin=manifest.origin,
        size_bytes=manifest.size_bytes,
        parts=[{"name": name, "size_bytes": part.size_bytes} for name, part in named],
        languages=shown["languages"],  # type: ignore[arg-type]
        kernel=kernel,
        min_memory_mb=manifest.min_memory_mb,
        package_count=len(_packages(image)),
        built_at=page.services.images.registered_at(manifest.name),
        snapshots=shown["snapshots"],  # type: ignore[arg-type]
    )


def _packages(image: Image) -> list[Package]:
    found = [Package(name, version, "Debian") for name, version in image.manifest.packages.items()]
    for kind, packages in image.manifest.other_packages.items():
        found += [Package(name, version, kind) for name, version in packages.items()]
    return sorted(found, key=lambda each: each.name.lower())
