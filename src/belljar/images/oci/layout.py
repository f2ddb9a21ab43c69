"""An OCI image layout on disk: from its index to one manifest, its config and its layers, each checked by its digest.

Source: the OCI image specification (image-layout.md, image-index.md, manifest.md, config.md); Docker's media types name
the same things.
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
    """A file of a layout, named by its content."""

    sha256: str
    size_bytes: int
    path: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class LayoutImage:
    """One image of a layout: its config, and its layers from the lowest."""

    digest: str
    config: dict[str, Any]
    config_digest: str
    layers: tuple[Blob, ...]
    #: sha256 of each layer's archive when it is decompressed.
    diff_ids: tuple[str, ...]


def read_layout(folder: Path, *, architecture: str, tag: str | None = None) -> LayoutImage:
    """The image in a layout for an architecture (as Go spells it: amd64); of several the one with the tag.

    Digests of the documents are checked here, those of layers by `check_blob`. Raises InvalidImage.
    """
    manifest = _choose(folder, architecture, tag)
    descriptor = _of(manifest.document, "config", dict)
    blob = _blob(folder, descriptor)
    config = _document(blob, "config")
    found = config.get("architecture")
    if found != architecture or config.get("os", "linux") != "linux":
        raise InvalidImage(f"the image is for {config.get('os', 'linux')}/{found}; this host runs linux/{architecture}")
    layers = [_blob(folder, layer) for layer in _of(manifest.document, "layers", list)]
    diff_ids = [_sha256(each) for each in _of(_of(config, "rootfs", dict), "diff_ids", list)]
    if len(layers) != len(diff_ids) or len(layers) > _MAX_LAYERS:
        raise InvalidImage(f"the image has {len(layers)} layers and a config of {len(diff_ids)}; at most {_MAX_LAYERS}")
    return LayoutImage(
        digest=f"sha256:{manifest.blob.sha256}",
        config=config,
        config_digest=blob.sha256,
        layers=tuple(layers),
        diff_ids=tuple(diff_ids),
    )


def check_blob(blob: Blob) -> None:
    """Raises InvalidImage unless the file has the size and the digest that it is named by."""
    try:
        with blob.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
    except OSError as error:
        raise InvalidImage(f"the image lacks the blob sha256:{blob.sha256}: {error.strerror}") from None
    if size != blob.size_bytes or digest != blob.sha256:
        raise InvalidImage(f"the blob sha256:{blob.sha256} is not what its name says; it is damaged or was changed")


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
        raise InvalidImage(f"{folder} is no OCI image layout: index.json: {error.strerror}") from None
    passed: list[str] = []
    found = _manifests(folder, document, architecture, None, 0, passed)
    if tag is not None:
        found = [each for each in found if each.tag == tag]
    if not found and passed:
        raise InvalidImage(f"the image is for {', '.join(sorted(set(passed)))}; this host runs linux/{architecture}")
    if not found:
        raise InvalidImage(f"the layout has no image{f' with the tag {tag!r}' if tag else ''}")
    if len({each.blob.sha256 for each in found}) > 1:
        tags = ", ".join(sorted({each.tag or "(none)" for each in found}))[:300]
        raise InvalidImage(f"the layout has several images; give one of their tags as PATH:TAG: {tags}")
    return found[0]


def _manifests(
    folder: Path, index: dict[str, Any], architecture: str, tag: str | None, depth: int, passed: list[str]
) -> list[_Manifest]:
    if depth > _MAX_DEPTH:
        raise InvalidImage("the layout's indexes are nested too deeply")
    found = []
    for descriptor in _of(index, "manifests", list)[:1000]:
        if not isinstance(descriptor, dict):
            raise InvalidImage("the layout's index has an entry that is no descriptor")
        platform = descriptor.get("platform") or {}
        os_name, fits = platform.get("os", "linux"), platform.get("architecture", architecture)
        if (os_name, fits) != ("linux", architecture):
            passed.append(f"{os_name}/{fits}"[:60])
            continue
        annotations = descriptor.get("annotations") or {}
        own = annotations.get(_TAG) or tag
        blob = _blob(folder, descriptor)
        document = _document(blob, "manifest")
        if "manifests" in document:
            found += _manifests(folder, document, architecture, own, depth + 1, passed)
        else:
            found.append(_Manifest(blob, document, own))
    return found


def _blob(folder: Path, descriptor: Any) -> Blob:
    if not isinstance(descriptor, dict) or not isinstance(descriptor.get("size"), int) or descriptor["size"] < 0:
        raise InvalidImage("the image has a descriptor without a size")
    sha256 = _sha256(descriptor.get("digest"))
    path = folder / "blobs" / "sha256" / sha256
    if path.is_symlink() and folder.resolve() not in path.resolve().parents:
        raise InvalidImage(f"the blob sha256:{sha256} is a link out of the layout")
    return Blob(sha256=sha256, size_bytes=descriptor["size"], path=path)


def _sha256(digest: Any) -> str:
    named = _DIGEST.match(digest) if isinstance(digest, str) else None
    if not named:
        raise InvalidImage(f"the image has a digest that is no sha256: {str(digest)[:80]!r}")
    return named[1]


def _document(blob: Blob, what: str) -> dict[str, Any]:
    if blob.size_bytes > _MAX_DOCUMENT_BYTES:
        raise InvalidImage(f"the image's {what} is too large")
    check_blob(blob)
    return _parse(blob.path.read_bytes(), what)


def _parse(data: bytes, what: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise InvalidImage(f"the image's {what} is no JSON") from None
    if not isinstance(document, dict):
        raise InvalidImage(f"the image's {what} is no JSON object")
    return document


def _of(document: dict[str, Any], name: str, kind: type) -> Any:
    value = document.get(name)
    if not isinstance(value, kind):
        raise InvalidImage(f"the image lacks {name!r} where it must have one")
    return value
