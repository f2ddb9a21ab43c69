"""Make the software bill of materials of an image: a CycloneDX 1.5 document with a package URL for each package.

Source: the CycloneDX 1.5 JSON schema, the package URL specification. The same image gives the same document: it has no
time, and its serial number is derived from the digest.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from belljar import __version__
from belljar.images.apt import DEBIAN_ARCHITECTURES
from belljar.model.image import Manifest


def bill_of_materials(manifest: Manifest) -> dict[str, Any]:
    """Return the document of an image."""
    files = [
        {
            "type": "file",
            "bom-ref": f"part:{kind}",
            "name": kind,
            "description": part.origin,
            "hashes": [{"alg": "SHA-256", "content": part.sha256}],
        }
        for kind, part in (("kernel", manifest.kernel), ("initramfs", manifest.initramfs), ("root", manifest.root))
    ]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.UUID(manifest.digest[:32], version=4)}",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "belljar", "version": __version__}]},
            "component": {
                "type": "container",
                "bom-ref": f"image:{manifest.digest}",
                "name": manifest.name,
                "version": f"sha256:{manifest.digest}",
                "properties": [{"name": "belljar:origin", "value": manifest.origin}],
            },
        },
        "components": [*files, *_packages(manifest)],
    }


def _packages(manifest: Manifest) -> Iterator[dict[str, str]]:
    architecture = DEBIAN_ARCHITECTURES.get(manifest.architecture, manifest.architecture)
    for name, version in sorted(manifest.packages.items()):
        yield _package(name, version, f"pkg:deb/debian/{quote(name)}@{quote(version)}?arch={architecture}")
    for kind, packages in sorted(manifest.other_packages.items()):
        namespace = "alpine/" if kind == "apk" else ""
        for name, version in sorted(packages.items()):
            yield _package(name, version, f"pkg:{kind}/{namespace}{quote(name, safe='/')}@{quote(version)}")


def _package(name: str, version: str, url: str) -> dict[str, str]:
    return {"type": "library", "bom-ref": url, "name": name, "version": version, "purl": url}
