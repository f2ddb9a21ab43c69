"""The options of mkfs.erofs for reproducible filesystems, and the packing of an archive into one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from belljar.images.host_tools import run_tool
from belljar.images.oci.tree_pack import ArchiveLayer, TreePackRequest, TreePackResult
from belljar.model.errors import ImageBuildError, InvalidImage

#: The time of all files that a build creates: 2023-06-10, when Debian 12 came out.
EPOCH = 1686355200
_UUID = "62656c6c-6a61-7200-0000-000000000001"
_UNPACK_SECONDS = 600


def mkfs_command(epoch: int = EPOCH) -> tuple[str, ...]:
    """Return mkfs.erofs with the options for reproducible output; `epoch` is the time of the filesystem."""
    return ("mkfs.erofs", "--quiet", "-x-1", f"-U{_UUID}", f"-T{epoch}", "--preserve-mtime")


async def pack_archive(
    archive: Path,
    sha256: str,
    out: Path,
    *,
    work: Path,
    mkfs: Sequence[str],
    epoch: int,
    max_bytes: int,
    max_files: int,
    log: Path,
) -> None:
    """Extract a tar archive that may be hostile, and pack its files into the filesystem `out`.

    `sha256` is the archive's digest, `work` a folder for temporary files, `epoch` the time of folders and links. A
    process with bounded memory extracts at most `max_bytes` and `max_files`.

    Raises InvalidImage for a hostile archive or one over the limits, ImageBuildError when the process failed.
    """
    tree, request_file = work / "tree", work / "request.json"
    tree.mkdir()
    tree.chmod(0o755)
    layer = ArchiveLayer(sha256=sha256, size_bytes=archive.stat().st_size, path=str(archive), diff_id=sha256)
    request = TreePackRequest(
        layers=(layer,),
        tree=str(tree),
        out=str(out),
        max_bytes=max_bytes,
        max_files=max_files,
        mkfs=tuple(mkfs),
        epoch=epoch,
    )
    request_file.write_text(request.model_dump_json())
    command = [sys.executable, "-P", "-m", "belljar.images.oci.tree_pack", str(request_file)]
    output = await run_tool(command, log=log, timeout_seconds=_UNPACK_SECONDS, cwd=work)
    try:
        result = TreePackResult.model_validate_json(output)
    except ValidationError as error:
        raise ImageBuildError(f"cannot read the result of extracting: {error.errors()[0]['msg']}") from None
    if result.error is not None:
        raise InvalidImage(result.error)
