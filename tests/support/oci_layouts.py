"""Container images made by hand, which may be malformed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def entry(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Return a member of an archive; `fields` are attributes of TarInfo."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o755 if fields.get("type") == tarfile.DIRTYPE else 0o644
    for key, value in fields.items():
        setattr(member, key, value)
    return member, data


def folder(name: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, **fields)


def link(name: str, target: str, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.SYMTYPE, linkname=target, **fields)


def hard_link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, data in members:
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@dataclass
class Layout:
    """An OCI image layout in a folder."""

    folder: Path
    architecture: str = "amd64"
    manifests: list[dict[str, Any]] = field(default_factory=list)

    def blob(self, data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        path = self.folder / "blobs" / "sha256" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    def add(
        self,
        layers: Iterable[bytes],
        config: dict[str, Any] | None = None,
        *,
        tag: str | None = None,
        compress: bool = True,
        diff_ids: list[str] | None = None,
        architecture: str | None = None,
    ) -> Layout:
        """Add an image with these layers (tar archives) and this config."""
        layers = list(layers)
        digests = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
        kind = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if compress else "")
        blobs = [
            {"mediaType": kind} | self.blob(gzip.compress(layer, 1, mtime=0) if compress else layer) for layer in layers
        ]
        document = {
            "architecture": architecture or self.architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids if diff_ids is not None else digests},
        }
        config_blob = self.blob(json.dumps(document).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json"} | config_blob,
            "layers": blobs,
        }
        descriptor = {"mediaType": manifest["mediaType"]} | self.blob(json.dumps(manifest).encode())
        if tag is not None:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": tag}
        self.manifests.append(descriptor)
        return self.write()

    def write(self) -> Layout:
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        index = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.manifests,
        }
        (self.folder / "index.json").write_text(json.dumps(index))
        return self


def new_layout(folder: Path) -> Layout:
    folder.mkdir()
    return Layout(folder)
