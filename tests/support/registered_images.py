"""Registered images that cannot boot: real manifests, parts without content."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from belljar.images.build import manifest_digest
from belljar.images.catalog import Images
from belljar.images.recipe import recipes
from belljar.model.image import Image, Language, Manifest, Part


def register(data_dir: Path, name: str = "python", *, kernel: bytes = b"kernel", root: bytes = b"") -> Image:
    """Register an image of that name, with the languages of the recipe of its name (or Python's)."""
    images, known = Images(data_dir), recipes(data_dir)
    images.blobs.folder.mkdir(parents=True, exist_ok=True)
    languages: tuple[Language, ...] = known.get(name, known["python"]).languages
    manifest = Manifest(
        name=name,
        architecture=platform.machine(),
        digest="",
        kernel=part(images, kernel),
        initramfs=part(images, b"initramfs"),
        root=part(images, root or name.encode()),
        languages=languages,
    )
    return images.register(manifest.model_copy(update={"digest": manifest_digest(manifest)}))


def part(images: Images, data: bytes) -> Part:
    digest = hashlib.sha256(data).hexdigest()
    (images.blobs.folder / digest).write_bytes(data)
    return Part(sha256=digest, size_bytes=len(data), origin="a test")
