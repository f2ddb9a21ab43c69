"""Get a container image as a layout on disk: from a layout, an archive, a registry or a Dockerfile.

skopeo copies archives and images of registries, buildah builds Dockerfiles, both with their own settings and logins.
Their output is verified like every layout.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

from belljar.images.build_sandbox import sandboxed_command
from belljar.images.host_tools import run_tool
from belljar.model.errors import ImageBuildError, InvalidImage, InvalidOption

_COPY_SECONDS = 3600
_BUILD_SECONDS = 3600
_TRANSPORTS = ("docker://", "docker-archive:", "oci-archive:", "oci:", "dir:", "docker-daemon:", "containers-storage:")
_REGISTRY_REFERENCE = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9.:_/\[\]-]*(@sha256:[0-9a-f]{64})?\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageReference:
    """A container image to import: a layout on disk with an optional tag, or a reference for skopeo."""

    layout: Path | None = None
    tag: str | None = None
    transport: str | None = None

    @property
    def text(self) -> str:
        """The reference for messages."""
        return str(self.layout) if self.layout else str(self.transport)


def parse_reference(reference: str) -> ImageReference:
    """Parse REF|PATH: a layout's folder (PATH or PATH:TAG), an archive's path, else a registry's image.

    skopeo's references (docker://…, oci-archive:…) are accepted too. Raises InvalidOption, InvalidImage.
    """
    if reference.startswith("oci:"):
        reference = reference.removeprefix("oci:")
    elif reference.startswith(_TRANSPORTS):
        return ImageReference(transport=reference)
    for path, tag in ((reference, None), reference.rpartition(":")[::2]):
        if path and Path(path).is_dir():
            if not (Path(path) / "index.json").is_file():
                raise InvalidOption(f"the folder {path} is not an OCI image layout: it has no index.json", option="ref")
            return ImageReference(layout=Path(path).absolute(), tag=tag)
    if Path(reference).is_file():
        return ImageReference(transport=f"{_archive_kind(Path(reference))}:{Path(reference).absolute()}")
    if reference.startswith(("/", ".")) or not _REGISTRY_REFERENCE.match(reference):
        raise InvalidOption(
            f"{reference[:200]!r} does not exist; give a layout's folder, an archive, or a registry's image",
            option="ref",
        )
    return ImageReference(transport=f"docker://{reference}")


def default_name(reference: str) -> str:
    """Return the default name of the image: the last part of the reference, without its tag and extension."""
    last = reference.split("@sha256:")[0].rstrip("/").rsplit("/", 1)[-1]
    last = last.split(":")[-1] if re.match(r"[a-z-]+:[^:]*\.(tar|oci|tgz)", last) else last.split(":")[0]
    name = re.sub(r"\.(tar|tar\.gz|tgz|oci)\Z", "", last).lower()
    return re.sub(r"[^a-z0-9._-]", "-", name).strip("._-") or "image"


async def fetch_layout(reference: ImageReference, folder: Path, *, architecture: str, log: Path) -> Path:
    """Return the layout's folder, or copy the image into `folder`. Raises InvalidImage, MissingTool, DiskFull."""
    if reference.layout is not None:
        return reference.layout
    transport = reference.transport
    assert transport is not None
    options = ["--insecure-policy", f"--override-arch={architecture}", "--override-os=linux"]
    insecure = ["--src-tls-verify=false"] if _is_on_loopback(transport) else []
    command = ["skopeo", *options, "copy", "--quiet", *insecure, transport, f"oci:{folder}:image"]
    try:
        await run_tool(command, log=log, timeout_seconds=_COPY_SECONDS, cwd=folder.parent)
    except ImageBuildError as error:
        hint = "; check the name, and that this host reaches the registry" if transport.startswith("docker://") else ""
        raise InvalidImage(f"cannot fetch {transport}: {_reason(error)}{hint}") from None
    return folder


async def build_dockerfile(dockerfile: Path, context: Path, folder: Path, *, work: Path, log: Path) -> Path:
    """Build a Dockerfile into a layout in `folder` and return it; `work` is for buildah's temporary files.

    buildah runs the Dockerfile's commands on this host in a chroot with the host's network, so use it for trusted
    Dockerfiles only. Raises ImageBuildError with the failing step, MissingTool, DiskFull.
    """
    storage = [
        f"--root={work}/storage",
        f"--runroot={work}/run",
        "--storage-driver=vfs",
    ]
    options = ["--isolation=chroot", "--layers=false", f"--file={dockerfile.absolute()}", f"--tag=oci:{folder}:image"]
    command = ["buildah", *storage, "bud", *options, str(context.absolute())]
    await run_tool(
        # For an ordinary user buildah creates a user namespace itself.
        sandboxed_command(command) if os.geteuid() == 0 else command,
        name="buildah",
        log=log,
        timeout_seconds=_BUILD_SECONDS,
        cwd=work,
        env={"TMPDIR": str(work)},
        output_log=log,
    )
    return folder


def _archive_kind(path: Path) -> str:
    """Return skopeo's name for an archive's format. `docker save` writes manifest.json, from Docker 25 a layout too."""
    import tarfile

    try:
        with tarfile.open(path) as archive:
            for _ in range(10_000):
                member = archive.next()
                if member is None:
                    break
                archive.members = []  # type: ignore[attr-defined]
                if member.name.removeprefix("./") == "index.json":
                    return "oci-archive"
                if member.name.removeprefix("./") == "manifest.json":
                    return "docker-archive"
    except (tarfile.TarError, EOFError, OSError, ValueError):
        raise InvalidImage(f"{path} is not an archive of a container image, or damaged") from None
    raise InvalidImage(f"{path} is not an archive of a container image: it has no index.json and no manifest.json")


def _is_on_loopback(transport: str) -> bool:
    if not transport.startswith("docker://"):
        return False
    host = transport.removeprefix("docker://").split("/")[0].rsplit(":", 1)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _reason(error: ImageBuildError) -> str:
    """Return skopeo's error message without its log format."""
    match = re.search(r'level=fatal msg="((?:[^"\\]|\\.)*)"', error.message)
    return match[1].replace('\\"', '"') if match else error.message
