"""Unpack a container image into a root filesystem: `python -m belljar.images.oci.unpack REQUEST.json`.

A separate process, like `tree_pack`, because the image may be hostile. For an ordinary user it runs in a user
namespace, where it can give files the owners that the image declares.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pydantic import Field

from belljar.images.oci.config import ImageConfig
from belljar.images.oci.inspect import alpine_packages, debian_packages, languages_of, python_packages, user_of
from belljar.images.oci.tree import RootTree
from belljar.images.oci.tree_pack import TreePackRequest, TreePackResult, extract, pack, print_result
from belljar.model.image import Language, User


class UnpackRequest(TreePackRequest):
    """The layers of an image, with its config."""

    config: ImageConfig
    #: The languages to look for in the image.
    known_languages: tuple[Language, ...]


class UnpackResult(TreePackResult):
    """The content of the image."""

    user: User = User()
    languages: tuple[Language, ...] = ()
    packages: dict[str, str] = Field(default_factory=dict)
    other_packages: dict[str, dict[str, str]] = Field(default_factory=dict)


def unpack(request: UnpackRequest) -> UnpackResult:
    """Extract the layers, complete the tree, inspect it and pack it. Raises InvalidImage."""
    tree = extract(request)
    user = user_of(tree, request.config.user)
    _add_folders(tree, request, user)
    _add_user_name(tree, user)
    result = _inspect(tree, request, user)
    pack(request)
    return result


def _inspect(tree: RootTree, request: UnpackRequest, user: User) -> UnpackResult:
    others = {"apk": alpine_packages(tree), "pypi": python_packages(tree)}
    return UnpackResult(
        user=user,
        languages=languages_of(tree, request.config, request.known_languages),
        packages=debian_packages(tree),
        other_packages={kind: packages for kind, packages in others.items() if packages},
    )


def _add_folders(tree: RootTree, request: UnpackRequest, user: User) -> None:
    """Create the folders that the agent mounts on, and the image's working folder."""
    os.chmod(request.tree, 0o755)  # noqa: PTH101, S103
    for name in ("job", "work", "proc", "sys", "dev", "tmp"):
        path = f"{request.tree}/{name}"
        if os.path.lexists(path) and (os.path.islink(path) or not os.path.isdir(path)):  # noqa: PTH112, PTH114
            os.unlink(path)  # noqa: PTH108
            tree.forget()
        os.makedirs(path, mode=0o755, exist_ok=True)  # noqa: PTH103
    working_folder = request.config.working_folder
    if working_folder is not None and tree.find(working_folder) is None:
        folder = tree.folder([part for part in working_folder.split("/") if part])
        if os.geteuid() == 0:
            os.chown(folder, user.uid, user.gid)


def _add_user_name(tree: RootTree, user: User) -> None:
    """Add the job's user to the image's /etc/passwd, if that exists and lacks the uid."""
    passwd = tree.find("/etc/passwd")
    text = tree.read("/etc/passwd")
    if passwd is None or not text or any(line.split(":")[2:3] == [str(user.uid)] for line in text.splitlines()):
        return
    with open(passwd, "a") as file:  # noqa: PTH123
        file.write(("" if text.endswith("\n") else "\n") + f"job:x:{user.uid}:{user.gid}::/work:/bin/sh\n")
    os.utime(passwd, (0, 0))


def main() -> None:
    """Answer the request in the file that the first argument names."""
    request = UnpackRequest.model_validate_json(Path(sys.argv[1]).read_text())
    print_result(lambda: unpack(request))


if __name__ == "__main__":
    main()
