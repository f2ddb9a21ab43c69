"""Where a container image is taken from: a layout, an archive, a registry, a Dockerfile. It ends as a layout on disk.

skopeo copies archives and registries, buildah builds Dockerfiles; both with their own settings and logins. What they
leave is checked again like everything else.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path

from belljar.images.contained import contained
from belljar.images.tool import call
from belljar.model.errors import ImageBuildError, InvalidImage, InvalidOption

_COPY_SECONDS = 3600
_BUILD_SECONDS = 3600
_TRANSPORTS = ("docker://", "docker-archive:", "oci-archive:", "oci:", "dir:", "docker-daemon:", "containers-storage:")
_REGISTRY_REFERENCE = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9.:_/\[\]-]*(@sha256:[0-9a-f]{64})?\Z")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A container image that is to be had: a layout that lies there already, or what skopeo is asked for."""

    layout: Path | None = None
    tag: str | None = None
    transport: str | None = None

    @property
    def shown(self) -> str:
        return str(self.layout) if self.layout else str(self.transport)


def find_source(reference: str) -> Source:
    """What REF|PATH means: a folder that is a layout (PATH or PATH:TAG), an archive's path, else a registry's image.

    skopeo's own spelling (docker://…, oci-archive:…) is understood too. Raises InvalidOption.
    """
    if reference.startswith("oci:"):
        reference = reference.removeprefix("oci:")
    elif reference.startswith(_TRANSPORTS):
        return Source(transport=reference)
    for path, tag in ((reference, None), reference.rpartition(":")[::2]):
        if path and Path(path).is_dir():
            if not (Path(path) / "index.json").is_file():
                raise InvalidOption(f"{path} is a folder and no OCI image layout: it has no index.json", option="ref")
            return Source(layout=Path(path).absolute(), tag=tag)
    if Path(reference).is_file():
        return Source(transport=f"{_archive_kind(Path(reference))}:{Path(reference).absolute()}")
    if reference.startswith(("/", ".")) or not _REGISTRY_REFERENCE.match(reference):
        raise InvalidOption(
            f"there is no {reference[:200]!r}; give a layout's folder, an archive, or a registry's image", option="ref"
        )
    return Source(transport=f"docker://{reference}")


def name_of(reference: str) -> str:
    """A name for the image when none is given: the last part of the reference, without its tag and ending."""
    last = reference.split("@sha256:")[0].rstrip("/").rsplit("/", 1)[-1]
    last = last.split(":")[-1] if re.match(r"[a-z-]+:[^:]*\.(tar|oci|tgz)", last) else last.split(":")[0]
    name = re.sub(r"\.(tar|tar\.gz|tgz|oci)\Z", "", last).lower()
    return re.sub(r"[^a-z0-9._-]", "-", name).strip("._-") or "image"


async def fetch_layout(source: Source, folder: Path, *, architecture: str, log: Path) -> Path:
    """The layout of a source: where it lies, or a copy in `folder`. Raises InvalidImage, MissingTool, DiskFull."""
    if source.layout is not None:
        return source.layout
    assert source.transport is not None
    options = ["--insecure-policy", f"--override-arch={architecture}", "--override-os=linux"]
    insecure = ["--src-tls-verify=false"] if _is_on_loopback(source.transport) else []
    command = ["skopeo", *options, "copy", "--quiet", *insecure, source.transport, f"oci:{folder}:image"]
    try:
        await call(command, log=log, timeout_seconds=_COPY_SECONDS, cwd=folder.parent)
    except ImageBuildError as error:
        raise InvalidImage(f"cannot fetch {source.transport}: {_reason(error)}") from None
    return folder


async def build_dockerfile(dockerfile: Path, context: Path, folder: Path, *, work: Path, log: Path) -> Path:
    """The layout of what a Dockerfile builds. Raises ImageBuildError with the failing step, MissingTool, DiskFull.

    buildah runs its commands on this host, chrooted and with this host's network: it is for Dockerfiles that you would
    build here anyway.
    """
    storage = [
        f"--root={work}/storage",
        f"--runroot={work}/run",
        "--storage-driver=vfs",
    ]
    options = ["--isolation=chroot", "--layers=false", f"--file={dockerfile.absolute()}", f"--tag=oci:{folder}:image"]
    command = ["buildah", *storage, "bud", *options, str(context.absolute())]
    await call(
        # An ordinary user's buildah makes a user namespace of its own.
        contained(command) if os.geteuid() == 0 else command,
        name="buildah",
        log=log,
        timeout_seconds=_BUILD_SECONDS,
        cwd=work,
        env={"TMPDIR": str(work)},
        own_output=log,
    )
    return folder


def _archive_kind(path: Path) -> str:
    """What skopeo calls an archive. `docker save` writes a manifest.json, and from Docker 25 on a layout besides."""
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
        raise InvalidImage(f"{path} is no archive of a container image, or damaged") from None
    raise InvalidImage(f"{path} is no archive of a container image: it has no index.json and no manifest.json")


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
    """skopeo's words, without the form that its log has."""
    found = re.search(r'level=fatal msg="((?:[^"\\]|\\.)*)"', error.message)
    return found[1].replace('\\"', '"') if found else error.message
