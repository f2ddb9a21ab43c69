"""Read an OCI image layout on disk: its index, one manifest, its config and layers, each verified by its digest.

Source: the OCI image specification (image-layout.md, image-index.md, manifest.md, config.md); Docker's media types are
equivalent.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belljar.model.errors import InvalidImage

_MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
_MAX_LAYERS = 512
_MAX_DEPTH = 4
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_TAG = "org.opencontainers.image.ref.name"


@dataclass(frozen=True, kw_only=True, slots=True)
class Blob:
    """A file of a layout, named by its digest."""

    sha256: str
    size_bytes: int
    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutImage:
    """One image of a layout, with its layers from the lowest."""

    digest: str
    config: dict[str, Any]
    config_digest: str
    layers: tuple[Blob, ...]
    #: sha256 of each layer's decompressed archive.
    diff_ids: tuple[str, ...]


def read_layout(folder: Path, *, architecture: str, tag: str | None = None) -> LayoutImage:
    """Return the image in a layout for an architecture (in Go's spelling: amd64), among several the one with the tag.

    It verifies the digests of JSON documents; `check_blob` verifies those of layers. Raises InvalidImage.
    """
    manifest = _choose(folder, architecture, tag)
    descriptor = _field(manifest.document, "config", dict)
    blob = _blob(folder, descriptor)
    config = _document(blob, "config")
    declared = config.get("architecture")
    if declared != architecture or config.get("os", "linux") != "linux":
        raise InvalidImage(
            f"the image is for {config.get('os', 'linux')}/{declared}; this host runs linux/{architecture}"
        )
    layers = [_blob(folder, layer) for layer in _field(manifest.document, "layers", list)]
    diff_ids = [_sha256(each) for each in _field(_field(config, "rootfs", dict), "diff_ids", list)]
    if len(layers) != len(diff_ids) or len(layers) > _MAX_LAYERS:
        raise InvalidImage(
            f"the image has {len(layers)} layers and {len(diff_ids)} in its config; allowed: {_MAX_LAYERS}, and equal"
        )
    return LayoutImage(
        digest=f"sha256:{manifest.blob.sha256}",
        config=config,
        config_digest=blob.sha256,
        layers=tuple(layers),
        diff_ids=tuple(diff_ids),
    )


def check_blob(blob: Blob) -> None:
    """Raise InvalidImage unless the file has the size and the digest of its descriptor."""
    try:
        with blob.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise InvalidImage(f"the image lacks the blob sha256:{blob.sha256}: {error.strerror}") from None
    if size != blob.size_bytes or digest != blob.sha256:
        raise InvalidImage(f"the blob sha256:{blob.sha256} has another size or digest; it is damaged or was changed")


@dataclass(frozen=True, slots=True)
class _Manifest:
    blob: Blob
    document: dict[str, Any]
    tag: str | None


def _choose(folder: Path, architecture: str, tag: str | None) -> _Manifest:
    index = folder / "index.json"
    try:
        if index.stat().st_size > _MAX_DOCUMENT_BYTES:
            raise InvalidImage("the layout's index.json is too large")
        document = _parse(index.read_bytes(), "index.json")
    except OSError as error:
        raise InvalidImage(f"{folder} is not an OCI image layout: index.json: {error.strerror}") from None
    other_platforms: list[str] = []
    manifests = _manifests(folder, document, architecture, None, 0, other_platforms)
    if tag is not None:
        manifests = [manifest for manifest in manifests if manifest.tag == tag]
    if not manifests and other_platforms:
        platforms = ", ".join(sorted(set(other_platforms)))
        raise InvalidImage(f"the image is for {platforms}; this host runs linux/{architecture}")
    if not manifests:
        raise InvalidImage(f"the layout has no image{f' with the tag {tag!r}' if tag else ''}")
    if len({manifest.blob.sha256 for manifest in manifests}) > 1:
        tags = ", ".join(sorted({manifest.tag or "(none)" for manifest in manifests}))[:300]
        raise InvalidImage(f"the layout has several images; give one of their tags as PATH:TAG: {tags}")
    return manifests[0]


def _manifests(
    folder: Path, index: dict[str, Any], architecture: str, tag: str | None, depth: int, other_platforms: list[str]
) -> list[_Manifest]:
    """Return the manifests for the architecture in an index and its nested ones; add to `other_platforms`."""
    if depth > _MAX_DEPTH:
        raise InvalidImage("the layout's indexes are nested too deeply")
    manifests = []
    for descriptor in _field(index, "manifests", list)[:1000]:
        if not isinstance(descriptor, dict):
            raise InvalidImage("the layout's index has an entry that is not a descriptor")
        platform = descriptor.get("platform") or {}
        declared = platform.get("os", "linux"), platform.get("architecture", architecture)
        if declared != ("linux", architecture):
            other_platforms.append(f"{declared[0]}/{declared[1]}"[:60])
            continue
        annotations = descriptor.get("annotations") or {}
        own_tag = annotations.get(_TAG) or tag
        blob = _blob(folder, descriptor)
        document = _document(blob, "manifest")
        if "manifests" in document:
            manifests += _manifests(folder, document, architecture, own_tag, depth + 1, other_platforms)
        else:
            manifests.append(_Manifest(blob, document, own_tag))
    return manifests


def _blob(folder: Path, descriptor: Any) -> Blob:
    if not isinstance(descriptor, dict) or not isinstance(descriptor.get("size"), int) or descriptor["size"] < 0:
        raise InvalidImage("the image has a descriptor without a size")
    sha256 = _sha256(descriptor.get("digest"))
    path = folder / "blobs" / "sha256" / sha256
    if path.is_symlink() and folder.resolve() not in path.resolve().parents:
        raise InvalidImage(f"the blob sha256:{sha256} is a link out of the layout")
    return Blob(sha256=sha256, size_bytes=descriptor["size"], path=path)


def _sha256(digest: Any) -> str:
    match = _DIGEST.match(digest) if isinstance(digest, str) else None
    if not match:
        raise InvalidImage(f"the image has a digest that is not a sha256: {str(digest)[:80]!r}")
    return match[1]


def _document(blob: Blob, name: str) -> dict[str, Any]:
    if blob.size_bytes > _MAX_DOCUMENT_BYTES:
        raise InvalidImage(f"the image's {name} is too large")
    check_blob(blob)
    return _parse(blob.path.read_bytes(), name)


def _parse(data: bytes, name: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidImage(f"the image's {name} is not JSON") from None
    if not isinstance(document, dict):
        raise InvalidImage(f"the image's {name} is not a JSON object")
    return document


def _field(document: dict[str, Any], name: str, kind: type) -> Any:
    value = document.get(name)
    if not isinstance(value, kind):
        raise InvalidImage(f"the image lacks the required field {name!r}, or it has a wrong type")
    return value
