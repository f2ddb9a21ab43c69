"""Preparing a file, an archive or a folder, as `belljar run` does."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from belljar.model.errors import BelljarError, InvalidScript, TooLarge, UnknownLanguage
from belljar.model.image import Language
from belljar.scripts.limits import UploadLimits
from belljar.scripts.prepare import PreparedScript, prepare

pytestmark = pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils")


@pytest.fixture
def made(tmp_path: Path, languages: list[Language]):  # type: ignore[no-untyped-def]
    """Return a function that prepares a source in a new work folder."""
    count = 0

    async def make(source: Path | bytes, filename: str, **options: object) -> PreparedScript:
        nonlocal count
        count += 1
        work = tmp_path / f"work{count}"
        work.mkdir()
        if isinstance(source, bytes):
            (work / "source").write_bytes(source)
            source = work / "source"
        arguments = {"language": None, "entrypoint": None, "limits": UploadLimits()} | options
        return await prepare(source, filename=filename, languages=languages, work=work, **arguments)  # type: ignore[arg-type]

    return make


def listed(disk: Path, path: str = "/") -> str:
    return subprocess.run(["dump.erofs", f"--path={path}", "--ls", disk], capture_output=True, text=True).stdout


async def test_one_file_becomes_a_disk_with_that_file(made) -> None:  # type: ignore[no-untyped-def]
    prepared = await made(b"print(1)\n", "dir/hello.py")
    assert (prepared.script.name, prepared.script.language, prepared.script.entrypoint) == (
        "hello.py",
        "python",
        "hello.py",
    )
    assert (prepared.script.size_bytes, prepared.script.file_count) == (9, 1)
    assert "hello.py" in listed(prepared.disk)
    assert prepared.disk.stat().st_size % 4096 == 0


async def test_a_zip_a_tar_and_a_folder_of_the_same_files_are_the_same_script(made, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    content = {"main.py": b"import lib.a", "lib/a.py": b"a = 1"}
    as_zip, as_tar = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(as_zip, "w") as zip_archive:
        for name, data in content.items():
            zip_archive.writestr(f"project/{name}", data)
    with tarfile.open(fileobj=as_tar, mode="w:gz") as tar_archive:
        for name, data in reversed(content.items()):
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            tar_archive.addfile(member, io.BytesIO(data))
            path = tmp_path / "folder" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    all_three = [
        await made(as_zip.getvalue(), "a.zip"),
        await made(as_tar.getvalue(), "b.tar.gz"),
        await made(tmp_path / "folder", "folder"),
    ]
    assert len({prepared.script.id for prepared in all_three}) == 1
    assert len({prepared.disk.read_bytes() for prepared in all_three}) == 1
    assert {prepared.script.entrypoint for prepared in all_three} == {"main.py"}
    assert "a.py" in listed(all_three[0].disk, "/lib")


async def test_another_language_or_content_is_another_script(made) -> None:  # type: ignore[no-untyped-def]
    ids = [
        (await made(b"echo", "a.sh")).script.id,
        (await made(b"echo", "a.sh", language="python")).script.id,
        (await made(b"echo ", "a.sh")).script.id,
        (await made(b"echo", "b.sh")).script.id,
    ]
    assert len(set(ids)) == 4


async def test_a_shebang_and_latin1_are_fine(made) -> None:  # type: ignore[no-untyped-def]
    prepared = await made("#!/usr/bin/env python3\n# coding: latin-1\nprint('é')".encode("latin-1"), "-")
    assert (prepared.script.language, prepared.script.entrypoint, prepared.script.name) == ("python", "main.py", "-")


@pytest.mark.parametrize(
    ("data", "filename", "options", "error", "message"),
    [
        (b"", "a.py", {}, InvalidScript, "empty"),
        (b"x", "a.xyz", {}, UnknownLanguage, "give `language`"),
        (b"x", "a.py", {"language": "cobol"}, UnknownLanguage, "python, shell, binary"),
        (b"x\0", "a.py", {}, InvalidScript, "NUL"),
        (b"x", "a.py", {"entrypoint": "b.py"}, InvalidScript, "a single file"),
        (b"x" * 11, "a.py", {"limits": UploadLimits(max_upload_bytes=10)}, TooLarge, "max_upload_mb"),
        (b"PK\x05\x06" + bytes(18), "a.zip", {}, InvalidScript, "has no files"),
        (b"nonsense", "a.zip", {}, InvalidScript, "named like an archive"),
    ],
)
async def test_an_invalid_upload_is_refused_with_one_line(  # type: ignore[no-untyped-def]
    made, data: bytes, filename: str, options: dict[str, object], error: type[BelljarError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        await made(data, filename, **options)
    assert "\n" not in caught.value.message


async def test_a_missing_or_special_source_is_refused(made, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidScript, match="No such file"):
        await made(tmp_path / "nothing", "nothing")
    with pytest.raises(InvalidScript, match="device"):
        await made(Path("/dev/null"), "null")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidScript, match="has no files"):
        await made(tmp_path / "empty", "empty")
