"""Create archives of every format, and extract one like an upload."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

from belljar.scripts.archive import HEAD_BYTES, archive_kind, unpack
from belljar.scripts.limits import MB, ExtractionBudget, UploadLimits
from belljar.scripts.tree import Tree

TAR_MODES = {"tar": "w", "tar.gz": "w:gz", "tar.xz": "w:xz"}
SMALL = UploadLimits(max_unpacked_bytes=MB, max_members=20, max_depth=4, max_ratio=20, ratio_floor_bytes=200_000)


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, data


def tar(*members: tuple[tarfile.TarInfo, bytes], mode: str = "w", format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=format) as archive:  # type: ignore[call-overload]
        for member, data in members:
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def zipped(*members: tuple[str, bytes], mode: int = 0, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = compression
            archive.writestr(info, data)
    return out.getvalue()


def unpacked(folder: Path, data: bytes, name: str = "upload", limits: UploadLimits = SMALL) -> Tree:
    source = folder / "upload"
    source.write_bytes(data)
    kind = archive_kind(data[:HEAD_BYTES], name)
    assert kind is not None
    (folder / "tree").mkdir()
    budget = ExtractionBudget(limits, len(data))
    tree = Tree(folder / "tree", budget)
    unpack(source, kind, tree, budget, folder / "plain.tar")
    tree.create_links()
    return tree


def files_of(tree: Tree) -> dict[str, bytes]:
    return {name: (tree.root / name).read_bytes() for name in tree.files}
