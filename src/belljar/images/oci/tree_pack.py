"""Extract archives on top of each other into a tree and pack it: `python -m belljar.images.oci.tree_pack REQUEST.json`.

It is a separate process because the archives may be hostile: its memory is bounded, and it can be killed at any time.
It prints one JSON object, a result or an error about the archives.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from belljar.images.oci.layer import EntryCounter, LayerApplier
from belljar.images.oci.layout import Blob, check_blob
from belljar.images.oci.stream import ByteBudget, open_layer
from belljar.images.oci.tree import RootTree
from belljar.model.errors import InvalidImage
from belljar.model.value import Value

#: No layer needs more: archives are streams with small headers.
_MEMORY_BYTES = 1024 * 1024 * 1024
_PACK_SECONDS = 600


class ArchiveLayer(Value):
    """One archive, perhaps compressed: its digest, its size, its path on the host."""

    sha256: str
    size_bytes: int
    path: str
    #: sha256 of the decompressed archive.
    diff_id: str


class TreePackRequest(Value):
    """The archives to extract, the filesystem to make, and the limits."""

    #: From the lowest; a later one replaces files of an earlier one.
    layers: tuple[ArchiveLayer, ...]
    #: An empty folder to extract into.
    tree: str
    #: The filesystem to make.
    out: str
    max_bytes: int
    max_files: int
    #: mkfs.erofs with its options.
    mkfs: tuple[str, ...]
    #: The time of folders and links, which would otherwise depend on the order of extraction.
    epoch: int


class TreePackResult(Value):
    """The result for the parent process; `error` says what is wrong with the archives."""

    error: str | None = None


def extract(request: TreePackRequest) -> RootTree:
    """Extract the layers into the tree. Raises InvalidImage for hostile or damaged layers, and over the limits."""
    tree = RootTree(Path(request.tree))
    budget, entries = ByteBudget(request.max_bytes), EntryCounter(request.max_files)
    for layer in request.layers:
        blob = Blob(sha256=layer.sha256, size_bytes=layer.size_bytes, path=Path(layer.path))
        check_blob(blob)
        with open_layer(blob.path, budget) as stream:
            LayerApplier(tree, entries).apply(stream)
            if stream.finish() != layer.diff_id:
                raise InvalidImage(f"the layer sha256:{layer.sha256} does not have the digest that the config declares")
    return tree


def pack(request: TreePackRequest) -> None:
    """Pack the tree into the filesystem. Raises OSError, subprocess.SubprocessError."""
    _set_times(request)
    _limit_memory(resource.RLIM_INFINITY)  # mkfs.erofs keeps every inode in memory
    command = [*request.mkfs, request.out, request.tree]
    subprocess.run(command, check=True, timeout=_PACK_SECONDS, stdout=subprocess.DEVNULL)


def print_result(work: Callable[[], TreePackResult]) -> None:
    """Run `work` with bounded memory and print its result as JSON."""
    _limit_memory(_MEMORY_BYTES)
    os.umask(0o022)
    try:
        result = work()
    except InvalidImage as error:
        result = TreePackResult(error=error.message)
    except MemoryError:
        result = TreePackResult(
            error=f"the image has a layer that needs over {_MEMORY_BYTES >> 20} MB of memory to read"
        )
    print(json.dumps(result.model_dump(mode="json")))  # noqa: T201 (the result is this process's output)


def _set_times(request: TreePackRequest) -> None:
    times = (request.epoch, request.epoch)
    for folder, folders, files in os.walk(request.tree, topdown=False):
        for name in (*folders, *files):
            path = f"{folder}/{name}"
            if os.path.islink(path):  # noqa: PTH114
                os.utime(path, times, follow_symlinks=False)
        os.utime(folder, times)


def _limit_memory(max_bytes: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, hard))


def _extract_and_pack(request: TreePackRequest) -> TreePackResult:
    extract(request)
    pack(request)
    return TreePackResult()


def main() -> None:
    """Answer the request in the file that the first argument names."""
    request = TreePackRequest.model_validate_json(Path(sys.argv[1]).read_text())
    print_result(lambda: _extract_and_pack(request))


if __name__ == "__main__":
    main()
