"""The process that takes a container image apart: `python -m belljar.images.oci.unpack ORDER.json`.

A process of its own, because what it reads is hostile: its memory is bounded, it can be killed at any moment, and for
an ordinary user it runs in a user namespace, where it may give files the owners that the image says. It prints one JSON
object: what it found, or an error that is the image's.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from pydantic import Field

from belljar.images.oci.config import ImageConfig
from belljar.images.oci.inspect import alpine_packages, debian_packages, languages_of, python_packages, user_of
from belljar.images.oci.layer import Entries, LayerApplier
from belljar.images.oci.layout import Blob, check_blob
from belljar.images.oci.stream import Budget, open_layer
from belljar.images.oci.tree import RootTree
from belljar.model.errors import InvalidImage
from belljar.model.image import Language, User
from belljar.model.value import Value

#: No layer needs more: archives are streams, and a header in one is small.
_MEMORY_BYTES = 1024 * 1024 * 1024
_PACK_SECONDS = 600


class OrderedLayer(Value):
    sha256: str
    size_bytes: int
    path: str
    #: sha256 of its archive, decompressed.
    diff_id: str


class UnpackRequest(Value):
    """What is to be unpacked, and the limits."""

    layers: tuple[OrderedLayer, ...]
    wishes: ImageConfig
    known: tuple[Language, ...]
    #: An empty folder, and the file to make.
    tree: str
    out: str
    max_bytes: int
    max_files: int
    mkfs: tuple[str, ...]
    #: The time of folders, which the order of their files would otherwise change.
    epoch: int
    #: Whether machines boot it; else it is a tree of files and nothing more.
    is_image: bool = True


class UnpackResult(Value):
    """What was in it; or `error`."""

    error: str | None = None
    user: User = User()
    languages: tuple[Language, ...] = ()
    packages: dict[str, str] = Field(default_factory=dict)
    other_packages: dict[str, dict[str, str]] = Field(default_factory=dict)


def unpack(order: UnpackRequest) -> UnpackResult:
    """Lay the layers over each other, finish the tree, look into it, and pack it. Raises InvalidImage."""
    tree = RootTree(Path(order.tree))
    budget, entries = Budget(order.max_bytes), Entries(order.max_files)
    for layer in order.layers:
        blob = Blob(sha256=layer.sha256, size_bytes=layer.size_bytes, path=Path(layer.path))
        check_blob(blob)
        with open_layer(blob.path, budget) as stream:
            LayerApplier(tree, entries).apply(stream)
            if stream.finish() != layer.diff_id:
                raise InvalidImage(f"the layer sha256:{layer.sha256} unpacks to something else than the config says")
    found = _finish_image(tree, order) if order.is_image else UnpackResult()
    _settle_times(order)
    bound_memory(resource.RLIM_INFINITY)  # mkfs.erofs holds every inode
    subprocess.run([*order.mkfs, order.out, order.tree], check=True, timeout=_PACK_SECONDS, stdout=subprocess.DEVNULL)
    return found


def _finish_image(tree: RootTree, order: UnpackRequest) -> UnpackResult:
    user = user_of(tree, order.wishes.user)
    _finish(tree, order, user)
    others = {"apk": alpine_packages(tree), "pypi": python_packages(tree)}
    return UnpackResult(
        user=user,
        languages=languages_of(tree, order.wishes, order.known),
        packages=debian_packages(tree),
        other_packages={kind: packages for kind, packages in others.items() if packages},
    )


def _finish(tree: RootTree, order: UnpackRequest, user: User) -> None:
    """The folders that the agent mounts on, the working folder, and a name for the job's user where names are kept."""
    os.chmod(order.tree, 0o755)  # noqa: PTH101, S103
    for name in ("job", "work", "proc", "sys", "dev", "tmp"):
        path = f"{order.tree}/{name}"
        if os.path.lexists(path) and (os.path.islink(path) or not os.path.isdir(path)):  # noqa: PTH112, PTH114
            os.unlink(path)  # noqa: PTH108
            tree.forget()
        os.makedirs(path, mode=0o755, exist_ok=True)  # noqa: PTH103
    if order.wishes.working_folder is not None and tree.find(order.wishes.working_folder) is None:
        folder = tree.folder([part for part in order.wishes.working_folder.split("/") if part])
        if os.geteuid() == 0:
            os.chown(folder, user.uid, user.gid)
    _name_user(tree, user)


def _name_user(tree: RootTree, user: User) -> None:
    passwd = tree.find("/etc/passwd")
    text = tree.read("/etc/passwd")
    if passwd is None or not text or any(line.split(":")[2:3] == [str(user.uid)] for line in text.splitlines()):
        return
    with open(passwd, "a") as file:  # noqa: PTH123
        file.write(("" if text.endswith("\n") else "\n") + f"job:x:{user.uid}:{user.gid}::/work:/bin/sh\n")
    os.utime(passwd, (0, 0))


def _settle_times(order: UnpackRequest) -> None:
    for folder, folders, files in os.walk(order.tree, topdown=False):
        for name in (*folders, *files):
            path = f"{folder}/{name}"
            if os.path.islink(path):  # noqa: PTH114
                os.utime(path, (order.epoch, order.epoch), follow_symlinks=False)
        os.utime(folder, (order.epoch, order.epoch))


def bound_memory(most_bytes: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, hard))


def main() -> None:
    order = UnpackRequest.model_validate_json(Path(sys.argv[1]).read_text())
    bound_memory(_MEMORY_BYTES)
    os.umask(0o022)
    try:
        found = unpack(order)
    except InvalidImage as error:
        found = UnpackResult(error=error.message)
    except MemoryError:
        found = UnpackResult(error="the image has a layer that cannot be read within bounds of memory")
    print(json.dumps(found.model_dump(mode="json")))  # noqa: T201 (its answer)


if __name__ == "__main__":
    main()
